"""Keep the folder of a fine-tuning: settings first, a record of each run, the best model so far, results last.

Settings that differ are refused. A fine-tuning that was stopped continues with the runs that have no record.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scaler.config.typed import differences
from scaler.core import folders
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import read_json, write_json

SETTINGS, RESULTS, RUNS, CANDIDATES, MODEL = "settings.json", "results.json", "runs", "candidates", "model"
PREDICTIONS = "predictions.jsonl"


def begin(folder: Path, settings: Mapping[str, Any]) -> IO[str]:
    """Make the folder or continue in it, and hold it until the returned file is closed.

    Raises: ScalerError for a folder of something else, of other settings, or that another process works in.
    """
    path = folder / SETTINGS
    folders.claim(folder, (SETTINGS,), "a fine-tuning", option="--out")
    lock = folders.lock(folder)
    try:
        if not path.is_file():
            with explain_disk_errors(folder):
                write_json(path, settings)
        elif different := differences(read_json(path), json.loads(json.dumps(settings))):
            name, (old, new) = next(iter(different.items()))
            raise ScalerError(f"--out {folder}: was begun with {name}={old!r}, and not {new!r}; name another folder")
        with explain_disk_errors(folder):
            (folder / RUNS).mkdir(exist_ok=True)
            (folder / CANDIDATES).mkdir(exist_ok=True)
    except ScalerError:
        lock.close()
        raise
    return lock


def name_of(learning_rate: float, seed: int) -> str:
    """Return the name of a run."""
    return f"lr-{learning_rate}-seed-{seed}"


def record(folder: Path, learning_rate: float, seed: int) -> dict[str, Any] | None:
    """Return the record of a run; None if it is not done."""
    path = folder / RUNS / f"{name_of(learning_rate, seed)}.json"
    return read_json(path) if path.is_file() else None


def is_best(folder: Path, new: Mapping[str, Any], seeds: Sequence[int], chosen_by: str) -> bool:
    """Return whether a run is better on the validation examples than all others done with its learning rate."""
    others = (record(folder, new["learning_rate"], seed) for seed in seeds)
    return all(new["validation"][chosen_by] > other["validation"][chosen_by] for other in others if other)


def keep_candidate(folder: Path, learning_rate: float, partial: Path) -> None:
    """Replace the best model so far of a learning rate."""
    place = candidate(folder, learning_rate)
    shutil.rmtree(place, ignore_errors=True)
    partial.rename(place)


def candidate(folder: Path, learning_rate: float) -> Path:
    """Return the folder of the best model of a learning rate, with its predictions."""
    return folder / CANDIDATES / f"lr-{learning_rate}"


def write_record(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the record of a run, which marks it as done."""
    write_json(folder / RUNS / f"{name_of(content['learning_rate'], content['seed'])}.json", content)


def test_scores(folders: Sequence[Path], models: Sequence[Path]) -> dict[Path, dict[str, dict[str, Any]]]:
    """Return test scores of fine-tunings by model and data: mean and deviation over their seeds.

    Raises: ScalerError for a folder without results, or of another model.
    """
    scores: dict[Path, dict[str, dict[str, Any]]] = {path: {} for path in models}
    for folder in folders:
        try:
            content = json.loads((folder / RESULTS).read_text(encoding="utf-8"))
            settings, name = content["settings"], content["chosen_by"]
            origin, score = Path(settings["model"]).resolve(), content["test"][name]
            task = "/".join(Path(next(iter(settings["data"]))).parts[-2:])  # the first file of training
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            problem = f"{folder}: no {RESULTS} of a finished fine-tuning in it; finish it first"
            raise ScalerError(problem) from error
        if origin not in scores:
            raise ScalerError(f"{folder}: fine-tuned from {settings['model']}, which is not among the models")
        column = f"{task}{' from scratch' * bool(settings['from_scratch'])}, {name.replace('_', ' ')}"
        if column in scores[origin]:
            raise ScalerError(f"{folder}: {settings['model']} has a fine-tuning on {task} already; name one of the two")
        scores[origin][column] = score
    return scores

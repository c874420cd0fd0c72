"""Keep the folder of a fine-tuning: settings first, a record of each run, the best model so far, results last.

Settings that differ are refused. A fine-tuning that was stopped continues with the runs that have no record.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scaler.config.typed import refuse_differences
from scaler.core import folders
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import read_json, write_json

SETTINGS, RESULTS, RUNS, CANDIDATES, MODEL = "settings.json", "results.json", "runs", "candidates", "model"
PREDICTIONS = "predictions.jsonl"


def begin(folder: Path, settings: Mapping[str, Any]) -> IO[str]:
    """Make the folder or continue in it, and hold it until the returned file is closed.

    Raises: ScalerError for a folder of something else, of other settings, or that another process works in.
    """
    folders.claim(folder, (SETTINGS,), "a fine-tuning", option="--out")
    lock = folders.lock(folder)
    try:
        with explain_disk_errors(folder):
            if not (folder / SETTINGS).is_file():
                write_json(folder / SETTINGS, settings)
            refuse_differences(f"--out {folder}: was begun with", read_json(folder / SETTINGS), settings)
            (folder / RUNS).mkdir(exist_ok=True)
            (folder / CANDIDATES).mkdir(exist_ok=True)
    except ScalerError:
        lock.close()
        raise
    return lock


def record_file(folder: Path, learning_rate: float, seed: int) -> Path:
    """Return the file with the record of a run, which marks it as done; its stem is the name of the run."""
    return folder / RUNS / f"lr-{learning_rate}-seed-{seed}.json"


def record(folder: Path, learning_rate: float, seed: int) -> dict[str, Any] | None:
    """Return the record of a run; None if it is not done."""
    path = record_file(folder, learning_rate, seed)
    return read_json(path) if path.is_file() else None


def candidate(folder: Path, learning_rate: float) -> Path:
    """Return the folder of the best model of a learning rate, with its predictions."""
    return folder / CANDIDATES / f"lr-{learning_rate}"


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

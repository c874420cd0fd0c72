"""Write the results and the cost of a sweep: a table, results.json, best.yaml, a chart, TensorBoard's scalars."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from scaler.config import typed
from scaler.config.recipe import Recipe
from scaler.core import provenance
from scaler.core.files import read_json, write_json, write_whole
from scaler.core.text import duration, percent, table
from scaler.sweeps import pictures
from scaler.sweeps import trial as sweep_trial
from scaler.sweeps.space import Parameter, format_value, importances

SETTINGS, RESULTS, BEST, PICTURE, BOARD = "settings.json", "results.json", "best.yaml", "sweep.png", "tensorboard"
ORDER = ("finished", "pruned", "running", "failed")


def write(folder: Path) -> dict[str, Any]:
    """Write all results anew, and return what results.json has."""
    about = read_json(folder / SETTINGS)
    trials = sorted(sweep_trial.records(folder), key=_rank)
    seq_len = about["recipe"]["data"]["seq_len"]
    for trial in trials:
        trial["heldout_loss"] = sweep_trial.last_loss(trial) if trial["losses"] else None
        trial["tokens"] = trial["steps"] * trial["rows"] * seq_len
    whole = about["recipe"]["training"]["steps"] * about["recipe"]["training"]["rows"] * seq_len
    left = [
        trial["of_steps"] * trial["rows"] * seq_len - trial["tokens"] for trial in trials if trial["state"] == "pruned"
    ]
    space = [Parameter(**{**one, "choices": tuple(one["choices"])}) for one in about["space"]]
    content = {
        "settings": about,
        "best": trials[0]["trial"] if trials and trials[0]["state"] == "finished" else None,
        "importances": importances(space, trials),
        "trials": trials,
        "cost": {
            **{name: sum(trial[name] for trial in trials) for name in ("steps", "tokens", "seconds")},
            **{"tokens_of_a_whole_training": whole, "tokens_saved_by_halving": sum(left)},
        },
        "packages": {**provenance.versions(), "optuna": metadata.version("optuna")},
        "commit": provenance.commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    if content["best"] is not None:
        plain = typed.apply(read_json(folder / SETTINGS)["recipe"], trials[0]["overrides"])
        best = replace(typed.build(Recipe, plain, ""), name=f"{plain['name']}-best")
        overrides = " ".join(trials[0]["overrides"]) or "the recipe as it was"
        write_whole(folder / BEST, f"# trial {trials[0]['trial']} of {folder.name}: {overrides}\n{best.to_yaml()}")
    write_json(folder / RESULTS, content)
    pictures.draw(space, trials, folder / PICTURE)
    _write_scalars(trials, folder / BOARD)
    return content


def _rank(trial: dict[str, Any]) -> tuple[Any, ...]:
    """Sort finished trials by loss, then those that halving stopped, the last stopped first, and failed ones last."""
    return ORDER.index(trial["state"]), -len(trial["losses"]), sweep_trial.last_loss(trial), trial["trial"]


def render(content: dict[str, Any], folder: Path) -> str:
    """Return the table, the best trial, the importances and the cost as text."""
    keys = [one["key"] for one in content["settings"]["space"]]
    rows = [["rank", "trial", "state", "held-out", "steps", "tokens", "seconds", *keys]]
    for rank, trial in enumerate(content["trials"], 1):
        loss, values = trial["heldout_loss"], trial["parameters"].values()
        rows.append([str(rank), str(trial["trial"]), trial["state"], "-" if loss is None else f"{loss:.3f}"])
        rows[-1] += [f"{trial['steps']:,}/{trial['of_steps']:,}", f"{trial['tokens']:,}", f"{trial['seconds']:.0f}"]
        rows[-1] += [f"{value:.3g}" if isinstance(value, float) else format_value(value) for value in values]
    lines = table(rows)
    lines += [f"trial {trial['trial']} failed: {trial['error']}" for trial in content["trials"] if "error" in trial]
    cost, best = content["cost"], content["best"]
    if best is not None:
        ended = {trial["trial"]: trial["heldout_loss"] for trial in content["trials"] if trial["state"] == "finished"}
        own = f"{ended[0]:.3f}" if 0 in ended else "not finished"
        lines.append(
            f"best: trial {best}, held-out loss {ended[best]:.3f} (trial 0, the recipe as it is: {own}), one seed each"
        )
    if content["importances"]:
        parts = ", ".join(f"{key} {percent(value)}" for key, value in content["importances"].items())
        lines.append(f"importance of the parameters: {parts}")
    whole = cost["tokens"] + cost["tokens_saved_by_halving"]
    lines.append(
        f"cost: {len(content['trials'])} trials, {cost['steps']:,} steps, {cost['tokens']:,} tokens "
        f"({cost['tokens'] / cost['tokens_of_a_whole_training']:.1f} whole trainings), {duration(cost['seconds'])} of "
        f"training; halving saved {cost['tokens_saved_by_halving'] / max(1, whole):.0%} of the tokens"
    )
    lines.append(f"  {folder / RESULTS}, {folder / PICTURE}; tensorboard --logdir {folder}")
    if best is not None:
        lines.append(f"  deepspeed scaler/train.py --recipe {folder / BEST}")
    return "\n".join(lines)


def _write_scalars(trials: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write TensorBoard's HParams: parameters, state, and the last held-out loss of each trial."""
    from torch.utils.tensorboard import SummaryWriter  # seconds for torch

    shutil.rmtree(folder, ignore_errors=True)
    board = SummaryWriter(str(folder))
    for trial in trials:
        values = {
            key: value if isinstance(value, bool | int | float | str) else format_value(value)
            for key, value in trial["parameters"].items()
        }
        loss = math.nan if trial["heldout_loss"] is None else trial["heldout_loss"]
        board.add_hparams(
            {**values, "state": trial["state"]},
            {"sweep/heldout_loss": loss, "sweep/tokens": trial["tokens"]},
            run_name=f"trial-{trial['trial']:04d}",
        )
    board.close()

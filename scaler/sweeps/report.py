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

from scaler.config import recipe
from scaler.core import charts, provenance
from scaler.core.board import Board
from scaler.core.errors import dispensable
from scaler.core.files import read_json, write_json, write_whole
from scaler.core.folders import is_held
from scaler.core.text import duration, percent, table
from scaler.sweeps import trial as sweep_trial
from scaler.sweeps.space import Parameter, format_value, importances
from scaler.training import run_folder

SETTINGS, BASE = "settings.json", "base.yaml"  # BASE: the recipe of trial 0
RESULTS, BEST, PICTURE, BOARD = "results.json", "best.yaml", "sweep.png", "tensorboard"
# in the chart; by rank in the table
MARKS = {"finished": "o", "pruned": "x", "running": ".", "stopped": ".", "failed": "v"}
COLOURS = ("tab:orange", "tab:blue")  # of trial 0, and of the others


def write(folder: Path) -> dict[str, Any]:
    """Write all results anew, and return what results.json has."""
    about = read_json(folder / SETTINGS)
    trials = sorted(sweep_trial.records(folder), key=_rank)
    seq_len = about["recipe"]["data"]["seq_len"]
    space = [Parameter(**{**one, "choices": tuple(one["choices"])}) for one in about["space"]]
    found = importances(space, trials)
    for trial in trials:
        run = sweep_trial.run_dir(folder, trial["trial"])
        if trial["state"] == "running" and {is_held(run), is_held(run / run_folder.LOGS)} == {False}:
            trial["state"] = "stopped"
        trial["heldout_loss"] = sweep_trial.last_loss(trial) if trial["losses"] else None
        trial["tokens"] = trial["steps"] * trial["rows"] * seq_len
    whole = about["recipe"]["training"]["steps"] * about["recipe"]["training"]["rows"] * seq_len
    left = [
        trial["of_steps"] * trial["rows"] * seq_len - trial["tokens"] for trial in trials if trial["state"] == "pruned"
    ]
    content = {
        "settings": about,
        "best": trials[0]["trial"] if trials and trials[0]["state"] == "finished" else None,
        "importances": found,
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
        best = recipe.load(str(folder / BASE), trials[0]["overrides"])
        overrides = " ".join(trials[0]["overrides"]) or "the recipe as it was"
        head = f"# trial {trials[0]['trial']} of {folder.name}: {overrides}\n"
        write_whole(folder / BEST, head + replace(best, name=f"{best.name}-best").to_yaml())
    write_json(folder / RESULTS, content)
    with dispensable(f"{folder / PICTURE}: no picture"):
        _draw(space, trials, folder / PICTURE)
    _write_scalars(trials, folder / BOARD)
    return content


def _rank(trial: dict[str, Any]) -> tuple[Any, ...]:
    """Sort finished trials by loss, then those that halving stopped, the last stopped first, and failed ones last."""
    return [*MARKS].index(trial["state"]), -len(trial["losses"]), sweep_trial.last_loss(trial), trial["trial"]


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
    shutil.rmtree(folder, ignore_errors=True)
    board = Board(folder)
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


def _draw(space: Sequence[Parameter], trials: Sequence[dict[str, Any]], path: Path) -> None:
    """Draw the loss over each parameter, and over the fraction of the tokens; crosses were stopped by halving."""
    figure, panels = charts.panels(len(space) + 1, 4.5 * (len(space) + 1), 4, dpi=120, layout="tight")
    seen = [loss for trial in trials for loss in trial["losses"].values()]
    for axes, one in zip(panels, space, strict=False):
        tried = [trial["parameters"][one.key] for trial in trials]
        names = list(dict.fromkeys(map(format_value, [*one.choices, *tried])))
        for trial in trials:
            value, loss = trial["parameters"][one.key], trial["heldout_loss"]
            place = names.index(format_value(value)) if one.choices else value
            if trial["state"] == "failed":
                loss = max(seen, default=1.0)
            if place is not None and loss is not None:
                colour = "tab:red" if trial["state"] == "failed" else COLOURS[trial["trial"] > 0]
                axes.scatter(place, loss, marker=MARKS[trial["state"]], color=colour)
        axes.set(xlabel=one.key, ylabel="last held-out loss (nats)", xscale="log" if one.log else "linear")
        if one.choices:
            axes.set_xticks(range(len(names)), names)
        else:
            axes.axvspan(one.low, one.high, alpha=0.05)  # the range that was searched
    curves = panels[-1]
    for trial in trials:
        evaluations = trial["of_steps"] // trial["evaluate_every"]
        fractions = [int(number) / evaluations for number in trial["losses"]]
        colour, marker = COLOURS[trial["trial"] > 0], MARKS[trial["state"]]
        curves.plot(fractions, [*trial["losses"].values()], color=colour, marker=marker, markersize=4, alpha=0.7)
    curves.set(xlabel="fraction of the tokens", ylabel="held-out loss (nats)")
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.suptitle("dots: finished (orange: the recipe as it is); crosses: stopped by halving; red, on top: failed")
    charts.save(figure, path)

"""What a sweep found and what it cost, from its folder: a table, results.json, best.yaml, a picture, TensorBoard."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from scaler.config import typed
from scaler.config.recipe import Recipe
from scaler.core import charts, provenance
from scaler.core.files import read_json, write_json, write_whole
from scaler.core.text import duration
from scaler.sweeps import space as sweep_space
from scaler.sweeps import trial as sweep_trial

SETTINGS, RESULTS, BEST, PICTURE, BOARD = "settings.json", "results.json", "best.yaml", "sweep.png", "tensorboard"
ORDER = ("finished", "pruned", "running", "failed")
MARKS = {"finished": "o", "pruned": "x", "running": ".", "failed": "v"}
COLOURS = ("tab:orange", "tab:blue")  # of trial 0, and of the others


def write(folder: Path) -> str:
    """Write all of it anew; return what to say."""
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
    content = {
        "settings": about,
        "best": trials[0]["trial"] if trials and trials[0]["state"] == "finished" else None,
        "trials": trials,
        "cost": {
            **{name: sum(trial[name] for trial in trials) for name in ("steps", "tokens", "seconds")},
            **{"tokens_of_a_whole_training": whole, "tokens_saved_by_halving": sum(left)},
        },
        "packages": {**provenance.versions(), "optuna": metadata.version("optuna")},
        "commit": provenance.commit(),
        "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }
    space = [sweep_space.Parameter(**{**one, "choices": tuple(one["choices"])}) for one in about["space"]]
    if content["best"] is not None:
        plain = typed.apply(read_json(folder / SETTINGS)["recipe"], trials[0]["overrides"])
        best = replace(typed.build(Recipe, plain, ""), name=f"{plain['name']}-best")
        found = " ".join(trials[0]["overrides"]) or "the recipe as it was"
        write_whole(folder / BEST, f"# trial {trials[0]['trial']} of {folder.name}: {found}\n{best.to_yaml()}")
    write_json(folder / RESULTS, content)
    _draw(space, trials, folder / PICTURE)
    _show(trials, folder / BOARD)
    return render(content, folder)


def _rank(trial: dict[str, Any]) -> tuple[Any, ...]:
    """Finished ones by their loss, then those that halving stopped, the last stopped first, and failed ones last."""
    return ORDER.index(trial["state"]), -len(trial["losses"]), sweep_trial.last_loss(trial), trial["trial"]


def render(content: dict[str, Any], folder: Path) -> str:
    """The table, what is best, and what it cost."""
    keys = [one["key"] for one in content["settings"]["space"]]
    rows = [["rank", "trial", "state", "held-out", "steps", "tokens", "seconds", *keys]]
    for rank, trial in enumerate(content["trials"], 1):
        loss, values = trial["heldout_loss"], trial["parameters"].values()
        rows.append([str(rank), str(trial["trial"]), trial["state"], "-" if loss is None else f"{loss:.3f}"])
        rows[-1] += [f"{trial['steps']:,}/{trial['of_steps']:,}", f"{trial['tokens']:,}", f"{trial['seconds']:.0f}"]
        rows[-1] += [f"{value:.3g}" if isinstance(value, float) else sweep_space.said(value) for value in values]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines += [f"trial {trial['trial']} failed: {trial['error']}" for trial in content["trials"] if "error" in trial]
    cost, best = content["cost"], content["best"]
    if best is not None:
        ended = {trial["trial"]: trial["heldout_loss"] for trial in content["trials"] if trial["state"] == "finished"}
        own = f"{ended[0]:.3f}" if 0 in ended else "not finished"
        lines.append(
            f"best: trial {best}, held-out loss {ended[best]:.3f} (trial 0, the recipe as it is: {own}), one seed each"
        )
    whole = cost["tokens"] + cost["tokens_saved_by_halving"]
    lines.append(
        f"cost: {len(content['trials'])} trials, {cost['steps']:,} steps, {cost['tokens']:,} tokens "
        f"({cost['tokens'] / cost['tokens_of_a_whole_training']:.1f} whole trainings), {duration(cost['seconds'])} of "
        f"training; halving has saved {cost['tokens_saved_by_halving'] / max(1, whole):.0%} of the tokens"
    )
    lines.append(f"  {folder / RESULTS}, {folder / PICTURE}; tensorboard --logdir {folder}")
    if best is not None:
        lines.append(f"  deepspeed scaler/train.py --recipe {folder / BEST}")
    return "\n".join(lines)


def _draw(space: Sequence[sweep_space.Parameter], trials: Sequence[dict[str, Any]], path: Path) -> None:
    """Loss over each parameter, and over the share of the tokens; crosses were stopped by halving."""
    figure, panels = charts.panels(len(space) + 1, 4.5 * (len(space) + 1), 4, dpi=120, layout="tight")
    seen = [loss for trial in trials for loss in trial["losses"].values()]
    for axes, one in zip(panels, space, strict=False):
        names = list(dict.fromkeys(map(sweep_space.said, [*one.choices, *(t["parameters"][one.key] for t in trials)])))
        for trial in trials:
            value, loss = trial["parameters"][one.key], trial["heldout_loss"]
            place = names.index(sweep_space.said(value)) if one.choices else value
            if trial["state"] == "failed":
                loss = max(seen, default=1.0)
            if place is not None and loss is not None:
                colour = "tab:red" if trial["state"] == "failed" else COLOURS[trial["trial"] > 0]
                axes.scatter(place, loss, marker=MARKS[trial["state"]], color=colour)
        axes.set(xlabel=one.key, ylabel="last held-out loss (nats)", xscale="log" if one.log else "linear")
        if one.choices:
            axes.set_xticks(range(len(names)), names)
        else:
            axes.axvspan(one.low, one.high, alpha=0.05)  # what was searched
    curves = panels[-1]
    for trial in trials:
        evaluations = trial["of_steps"] // trial["evaluate_every"]
        shares = [int(number) / evaluations for number in trial["losses"]]
        how: dict[str, Any] = {
            "color": COLOURS[trial["trial"] > 0],
            "marker": MARKS[trial["state"]],
            "markersize": 4,
            "alpha": 0.7,
        }
        curves.plot(shares, [*trial["losses"].values()], **how)
    curves.set(xlabel="share of the tokens", ylabel="held-out loss (nats)")
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.suptitle("dots: finished (orange: the recipe's own); crosses: stopped by halving; red, on top: failed")
    charts.save(figure, path)


def _show(trials: Sequence[dict[str, Any]], folder: Path) -> None:
    """TensorBoard's HParams: parameters, state, and the last held-out loss of each trial."""
    shutil.rmtree(folder, ignore_errors=True)
    board = SummaryWriter(str(folder))
    for trial in trials:
        values = {
            key: value if isinstance(value, bool | int | float | str) else sweep_space.said(value)
            for key, value in trial["parameters"].items()
        }
        loss = math.nan if trial["heldout_loss"] is None else trial["heldout_loss"]
        board.add_hparams(
            {**values, "state": trial["state"]},
            {"sweep/heldout_loss": loss, "sweep/tokens": trial["tokens"]},
            run_name=f"trial-{trial['trial']:04d}",
        )
    board.close()

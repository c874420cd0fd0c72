"""Draw the trials of a sweep."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaler.core import charts
from scaler.sweeps.space import Parameter, format_value

MARKS = {"finished": "o", "pruned": "x", "running": ".", "failed": "v"}
COLOURS = ("tab:orange", "tab:blue")  # of trial 0, and of the others


def draw(space: Sequence[Parameter], trials: Sequence[dict[str, Any]], path: Path) -> None:
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
        how: dict[str, Any] = {
            "color": COLOURS[trial["trial"] > 0],
            "marker": MARKS[trial["state"]],
            "markersize": 4,
            "alpha": 0.7,
        }
        curves.plot(fractions, [*trial["losses"].values()], **how)
    curves.set(xlabel="fraction of the tokens", ylabel="held-out loss (nats)")
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.suptitle("dots: finished (orange: the recipe as it is); crosses: stopped by halving; red, on top: failed")
    charts.save(figure, path)

"""Draw the curves and the confusion matrix of a fine-tuning."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaler.core import charts
from scaler.core.charts import Figure, MaxNLocator

CURVES, CONFUSION = "curves.png", "confusion.png"
MOST_NUMBERS = 20  # classes up to which the confusion matrix shows its counts


def draw(content: Mapping[str, Any], counts: Sequence[Sequence[int]], columns: Sequence[str], folder: Path) -> None:
    """Draw curves and confusion matrix, as PNG files and for TensorBoard."""
    from torch.utils.tensorboard import SummaryWriter  # seconds for torch

    board = SummaryWriter(str(folder / "tensorboard"))
    for name, figure in ((CURVES, _curves(content)), (CONFUSION, _confusion(content["labels"], columns, counts))):
        charts.save(figure, folder / name)
        board.add_figure(name.partition(".")[0], figure)
    board.close()


def _curves(content: Mapping[str, Any]) -> Figure:
    """Draw training loss and validation score over the epochs: a colour per learning rate, a line per seed."""
    figure, both = charts.panels(2, 10, 4, dpi=120, layout="tight")
    rates = [entry["learning_rate"] for entry in content["learning_rates"]]
    for axes, key in zip(both, ("train_loss", content["chosen_by"]), strict=True):
        labelled = set()
        for record in content["runs"]:
            rate = record["learning_rate"]
            points = [(entry["epoch"], entry[key]) for entry in record["history"] if key in entry]
            label = None if rate in labelled else f"learning rate {rate:g}"
            axes.plot(*zip(*points, strict=True), color=f"C{rates.index(rate) % 10}", linewidth=1, label=label)
            labelled.add(rate)
        axes.set(xlabel="epoch", ylabel=("training loss (nats)", f"validation {key}")[key != "train_loss"])
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.grid(alpha=0.3)
    both[1].legend()
    return figure


def _confusion(labels: Sequence[str], columns: Sequence[str], counts: Sequence[Sequence[int]]) -> Figure:
    """Draw the counts, each row coloured by its fractions, because classes differ in size."""
    side = max(5.0, 0.3 * len(labels))
    figure, axes = charts.one_panel(max(5.0, 0.3 * len(columns)) + 1, side, layout="tight")
    fractions = [[value / (sum(row) or 1) for value in row] for row in counts]
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(columns)), columns, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    axes.set(xlabel="predicted", ylabel="label", title="test examples")
    if len(labels) <= MOST_NUMBERS:
        for y, row in enumerate(counts):
            for x, value in enumerate(row):
                axes.text(x, y, f"{value}", ha="center", va="center", color=("black", "white")[fractions[y][x] > 0.5])
    return figure

"""Summarise a fine-tuning: the choice, means and deviations, a table, charts, and the model card."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaler.core import charts
from scaler.core.board import Board
from scaler.core.charts import Figure, MaxNLocator
from scaler.core.errors import dispensable
from scaler.core.text import quantity
from scaler.finetuning import scores
from scaler.finetuning.examples import TOKENS

CURVES, CONFUSION = "curves.png", "confusion.png"
MOST_NUMBERS = 20  # classes up to which the confusion matrix shows its counts
MOST_INCHES = 30.0  # of the confusion matrix; a picture of 1,000 classes would take gigabytes
MOST_CHARACTERS = 40  # of a class in it


def spread(values: Sequence[float]) -> dict[str, float | None]:
    """Return mean and sample standard deviation; no deviation of a single value."""
    return {"mean": statistics.fmean(values), "deviation": statistics.stdev(values) if len(values) > 1 else None}


def summary(records: Sequence[Mapping[str, Any]], task: str) -> dict[str, Any]:
    """Choose by the validation examples: the learning rate with the best mean, and its best run.

    Returns: "learning_rates" (validation score of each), "chosen" (learning rate and seed of the model that is kept)
    and "test" (mean and deviation over the seeds of the chosen learning rate).
    """
    chosen_by = scores.chosen_by(task)
    rates = list(dict.fromkeys(record["learning_rate"] for record in records))
    of_rate = {rate: [record for record in records if record["learning_rate"] == rate] for rate in rates}
    validation = {
        rate: spread([record["validation"][chosen_by] for record in of_one]) for rate, of_one in of_rate.items()
    }
    rate = max(rates, key=lambda rate: validation[rate]["mean"] or 0.0)
    best = max(of_rate[rate], key=lambda record: record["validation"][chosen_by])
    return {
        "chosen_by": chosen_by,
        "learning_rates": [{"learning_rate": rate, "validation": validation[rate]} for rate in rates],
        "chosen": {"learning_rate": rate, "seed": best["seed"]},
        "test": {name: spread([record["test"][name] for record in of_rate[rate]]) for name in best["test"]},
    }


def format_spread(values: Mapping[str, float | None]) -> str:
    """Format mean and deviation in per cent.

    >>> format_spread({"mean": 0.81234, "deviation": 0.0123}), format_spread({"mean": 0.5, "deviation": None})
    ('81.23 ± 1.23 %', '50.00 %')
    """
    mean, deviation = (values["mean"] or 0.0) * 100, values["deviation"]
    return f"{mean:.2f} %" if deviation is None else f"{mean:.2f} ± {deviation * 100:.2f} %"


def render(content: Mapping[str, Any]) -> str:
    """Return the results as a table for the terminal."""
    chosen, name = content["chosen"], content["chosen_by"].replace("_", " ")
    sizes = ", ".join(f"{split} {count:,}" for split, count in content["examples"].items())
    seeds = quantity(len({record["seed"] for record in content["runs"]}), "seed")
    lines = [
        f"{content['settings']['model']}{' from scratch' * content['settings']['from_scratch']}: "
        f"{content['settings']['task']}, {len(content['labels'])} labels; {sizes}",
        f"  {'learning rate':<16} validation {name}, {seeds}",
    ]
    for entry in content["learning_rates"]:
        mark = "  chosen" * (entry["learning_rate"] == chosen["learning_rate"])
        lines.append(f"  {entry['learning_rate']:<16g} {format_spread(entry['validation'])}{mark}")
    lines.append(f"  {'test':<16} {'model':<20} without learning")
    for score, values in content["test"].items():
        lines.append(
            f"  {score.replace('_', ' '):<16} {format_spread(values):<20} {content['without_learning'][score]:.2%}"
        )
    return "\n".join([*lines, *(f"  note: {note}" for note in content["notes"])])


def draw(content: Mapping[str, Any], counts: Sequence[Sequence[int]], columns: Sequence[str], folder: Path) -> None:
    """Draw curves and confusion matrix, as PNG files and for TensorBoard."""
    board = Board(folder / "tensorboard")
    figures = {CURVES: lambda: _curves(content), CONFUSION: lambda: _confusion(content["labels"], columns, counts)}
    for name, make in figures.items():
        with dispensable(f"{folder / name}: no picture"):
            figure = make()
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
    high, wide = (min(MOST_INCHES, max(5.0, 0.3 * len(names))) for names in (labels, columns))
    figure, axes = charts.one_panel(wide + 1, high, layout="tight")
    fractions = [[value / (sum(row) or 1) for value in row] for row in counts]
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    if max(high, wide) < MOST_INCHES:  # otherwise names would overlap
        axes.set_xticks(range(len(columns)), map(_short, columns), rotation=90)
        axes.set_yticks(range(len(labels)), map(_short, labels))
    axes.set(xlabel="predicted", ylabel="label", title="test examples")
    if len(labels) <= MOST_NUMBERS:
        for y, row in enumerate(counts):
            for x, value in enumerate(row):
                axes.text(x, y, f"{value}", ha="center", va="center", color=("black", "white")[fractions[y][x] > 0.5])
    return figure


def _short(name: str) -> str:
    return name if len(name) <= MOST_CHARACTERS else f"{name[:MOST_CHARACTERS]}..."


def model_card(content: Mapping[str, Any], name: str, base: str, command: str, tried: str) -> str:
    """Return the model folder's README: base model, programs that read it, data, scores and settings."""
    settings, chosen = content["settings"], content["chosen"]
    words = settings["task"] == TOKENS
    tag = "token-classification" if words else "text-classification"
    kept = next(record for record in content["runs"] if all(record[key] == chosen[key] for key in chosen))
    how = ', aggregation_strategy="first"' if words else ", truncation=True"
    use = f'pipeline("{tag}", model="PATH/TO/THIS/FOLDER"{how if words else ""})("A text."{"" if words else how})'
    rows = "\n".join(
        f"| {score} | {kept['test'][score]:.4f} | {format_spread(values)} | {content['without_learning'][score]:.4f} |"
        for score, values in content["test"].items()
    )
    files = "\n".join(f"- `{Path(path).name}`, XXH3 {xxh3}" for path, xxh3 in settings["data"].items())
    sizes = ", ".join(f"{count:,} for {split}" for split, count in content["examples"].items())
    notes = "".join(f"\n- {note}" for note in content["notes"])
    start = (
        "with the same configuration from random weights" if settings["from_scratch"] else "from the pretrained model"
    )
    return f"""---
library_name: transformers
pipeline_tag: {tag}
tags: [{tag}]
---
# {name}

{settings["task"].capitalize()} with {len(content["labels"])} labels, trained {start} `{base}`.

```python
from transformers import pipeline

{use}
```

{tried}

## Data
{files}

Examples: {sizes}.{notes}

## Measured
On the test examples; learning rate and epoch were chosen by the validation examples ({content["chosen_by"]}).
Without learning: always the most common answer; for a word, its most common tag.

| | this model | mean and deviation of {len(settings["seeds"])} seeds | without learning |
|---|---|---|---|
{rows}

## Settings
Learning rate {chosen["learning_rate"]:g}, seed {chosen["seed"]}, best epoch {kept["best_epoch"]} of {kept["epochs"]};
batch {settings["batch_size"]}, at most {settings["max_length"]} tokens a text, {settings["precision"]}.

Made with `{command}`.
"""

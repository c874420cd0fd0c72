"""Summarise a fine-tuning: the choice, means and deviations, a table, and the model card."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from scaler.finetuning import scores
from scaler.finetuning.examples import TOKENS


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
    seeds = len({record["seed"] for record in content["runs"]})
    lines = [
        f"{content['settings']['model']}{' from scratch' * content['settings']['from_scratch']}: "
        f"{content['settings']['task']}, {len(content['labels'])} labels; {sizes}",
        f"  {'learning rate':<16} validation {name}, {seeds} seed{'s' * (seeds != 1)}",
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


def model_card(content: Mapping[str, Any], name: str, base: str, command: str) -> str:
    """Return the model folder's README: base model, data, scores and settings."""
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

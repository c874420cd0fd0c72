"""Evaluate an exported model on rows that training never read: `python -m scaler.evaluate runs/quickstart`.

Rows and masks are fixed, so the figures of models with one tokenizer can be compared; the loss per character compares
vocabularies, too. They are printed, and written to evaluation_SPLIT.json in the run's folder (or the model's own).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaler.config.recipe import load
from scaler.core.cli import command
from scaler.core.errors import explain_disk_errors
from scaler.core.files import write_json
from scaler.evaluation.evaluate import SPLITS, measure, render
from scaler.model.exported import find_with_recipe


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run, an export, or any Transformers folder")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help=f"({SPLITS[0]})")
    parser.add_argument("--recipe", help="whose data to evaluate on, name or YAML file (the run's)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    arguments = parser.parse_args()
    folder, place, recipe = find_with_recipe(arguments.model, arguments.recipe)
    content = measure(folder, load(recipe), arguments.split)
    path = place / f"evaluation_{arguments.split}.json"
    with explain_disk_errors(place):
        write_json(path, content)
    print(json.dumps(content, indent=2) if arguments.json else f"{render(content)}\n  {path}")


if __name__ == "__main__":
    main()

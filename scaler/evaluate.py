"""Evaluate an exported model on rows that training never read.

Rows and masks are fixed, so the figures of models with one tokenizer can be compared; the loss per character compares
vocabularies, too. They are printed, and written to evaluation_SPLIT.json in the run's folder (or the model's own).
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("evaluate", __doc__)
    made.add_argument("model", type=Path, metavar="MODEL", help="a run, an export, or any Transformers folder")
    made.add_argument(
        "--split",
        choices=("test", "heldout"),
        default="test",
        help="rows to read (default: test)",
    )
    made.add_argument("--recipe", metavar="RECIPE", help="name or YAML file of the rows' recipe (default: the run's)")
    made.add_json("the figures")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.evaluation import evaluate

    evaluate.run(arguments)


if __name__ == "__main__":
    main()

"""Compare masked language models of any vocabulary on the same hidden words.

`scaler compare runs/A runs/B --texts data/R/dedup/test-*`: of fine-tunings named by --finetuned the score on their test
examples is added. An uncased model has the easier words: it need not guess capitals and accents.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("compare", __doc__)
    made.add_argument(
        "models",
        nargs="+",
        type=Path,
        metavar="MODEL",
        help="a run, an export, a Transformers folder, or a folder of runs, of which the newest is taken",
    )
    made.add_argument(
        "--texts",
        nargs="+",
        type=Path,
        required=True,
        metavar="FILE",
        help="documents that no model was trained on: .jsonl, .jsonl.zst",
    )
    made.add_argument("--most", type=at_least(1), default=2000, help="documents to read at most (default: %(default)s)")
    made.add_argument(
        "--finetuned",
        nargs="+",
        type=Path,
        default=[],
        metavar="DIR",
        help="fine-tunings whose scores are added (default: none)",
    )
    made.add_argument("--out", type=Path, metavar="FILE", help="file for the figures as JSON (default: none)")
    made.add_json("the figures")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.finetuning.folder import test_scores
    from scaler.model import exported

    folders = [exported.find_newest(path).resolve() for path in arguments.models]
    scores = test_scores(arguments.finetuned, folders)
    from scaler.evaluation import compare

    compare.run(arguments, folders, scores)


if __name__ == "__main__":
    main()

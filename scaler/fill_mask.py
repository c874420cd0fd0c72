"""Fill the mask in a sentence with an exported model.

`scaler fill-mask runs/quickstart "The name of the S3 <mask>."` prints the likeliest words and their probabilities.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("fill-mask", __doc__)
    made.add_argument(
        "model",
        nargs="?",
        type=Path,
        default=Path("runs"),
        metavar="MODEL",
        help="a run, an export, or a folder of runs, of which the newest is taken (default: runs)",
    )
    made.add_argument("sentence", nargs="*", default=[], metavar="SENTENCE", help="with <mask> (default: examples)")
    made.add_argument("--top", type=at_least(1), default=5, help="guesses for each mask (default: %(default)s)")
    made.add_json("the guesses")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.evaluation import fill_mask

    fill_mask.run(arguments)


if __name__ == "__main__":
    main()

"""Show what is in prepared data.

`scaler inspect data/quickstart` shows the sources and their mix, and what cleaning and deduplication dropped, with
examples. It shows the lengths of documents (as text, and as a picture, DIR/lengths.png), the most and the least
frequent tokens, the fraction of unknown tokens, bytes per token, and the neighbours of some word vectors. Last come how
full the rows are, and some rows, decoded.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("inspect", __doc__)
    made.add_argument("folder", type=Path, metavar="DIR", help="a recipe's data folder")
    made.add_argument("--samples", type=at_least(0), default=3, help="rows to show (default: %(default)s)")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.prepared.inspect import show

    show(arguments.folder, arguments.samples)


if __name__ == "__main__":
    main()

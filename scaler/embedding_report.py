"""Describe word vectors, and what they bring to the runs that start from them.

`scaler embeddings --recipe R --out DIR [runs/WORD2VEC runs/RANDOM]` shows coverage, norms before and after scaling, and
nearest neighbours, and writes TensorBoard's projector for the most frequent entries. Of runs with and without the
vectors it draws the held-out losses in one picture.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("embeddings", __doc__)
    made.add_argument(
        "--recipe", required=True, metavar="RECIPE", help="name or YAML file of a recipe with a section word2vec"
    )
    made.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the report")
    made.add_argument(
        "--words",
        nargs="+",
        default=[],
        metavar="WORD",
        help="words to show neighbours of (default: frequent ones)",
    )
    made.add_argument(
        "--until",
        type=at_least(1),
        default=1000,
        metavar="STEP",
        help="last step to compare (default: %(default)s)",
    )
    made.add_json("the report")
    made.add_argument(
        "runs", nargs="*", default=[], type=Path, metavar="runs/NAME", help="runs to compare (default: none)"
    )
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.evaluation import word_vectors

    word_vectors.run(arguments)


if __name__ == "__main__":
    main()

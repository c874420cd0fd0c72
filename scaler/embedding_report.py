"""What word vectors bring: `python -m scaler.embedding_report --recipe R --out DIR [runs/WORD2VEC runs/RANDOM]`.

Coverage, norms before and after scaling, nearest neighbours, and TensorBoard's projector on the most frequent entries;
and of runs with and without the vectors, their held-out losses in one picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scaler.config.recipe import load
from scaler.core.cli import command
from scaler.core.files import write_json
from scaler.evaluation.word_vectors import of_runs, of_vectors, render


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.embedding_report",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--recipe", required=True, help="name or YAML file of a recipe with a section word2vec")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--words", nargs="+", default=[], help="whose neighbours are shown (the most frequent)")
    parser.add_argument("--until", type=int, default=1000, help="last step of the runs that is compared (1,000)")
    parser.add_argument("runs", nargs="*", type=Path, metavar="runs/NAME")
    arguments = parser.parse_args()
    content = of_vectors(load(arguments.recipe), arguments.words, arguments.out)
    content["runs"] = of_runs(arguments.runs, arguments.until, arguments.out) if arguments.runs else {}
    write_json(arguments.out / "report.json", content)
    print(render(content))
    print(f"  {arguments.out / 'report.json'}\n  tensorboard --logdir {arguments.out / 'projector'}")


if __name__ == "__main__":
    main()

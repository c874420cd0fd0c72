"""Drop documents that repeat an earlier one: `python -m data_prep.dedup CLEAN --out DIR`.

Held-out documents come first, then those of the test, then the others, each in the order of the recipe's sources: of
equal or nearly equal documents the first stays. So no training document repeats a held-out or a test one, no test
document a held-out one, and more training data never moves either split.

Near-duplicates are found by MinHash (Broder 1997) over runs of `ngram` words, with locality-sensitive hashing: two
documents of Jaccard similarity s meet with probability 1 - (1 - s**band_rows)**bands.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.cleaning.clean import summary
from data_prep.cleaning.dedup import make
from data_prep.formats import texts
from data_prep.pipeline.workers import worker_pool
from scaler.config.data_sections import Dedup
from scaler.config.recipe import section
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.dedup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("text", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, help="(one a core)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe's section `dedup`")
    arguments = parser.parse_intermixed_args()
    with worker_pool(arguments.processes) as pool:
        settings = section(Dedup, "dedup", arguments.settings)
        written = make(arguments.text, arguments.out, settings, pool)
    print(texts.describe(arguments.out))
    print(summary(texts.manifest(arguments.out)["counts"]))
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

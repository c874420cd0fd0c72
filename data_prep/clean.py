"""Clean a folder of text: `python -m data_prep.clean CORPUS --out DIR unicode_repair=true languages=[en]`.

Each step is a switch of the recipe's `cleaning` section. The manifest counts what each step dropped and changed, and
dropped.jsonl keeps some examples of each for a look.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.cleaning.clean import make, summary
from data_prep.formats import texts
from data_prep.pipeline.workers import worker_pool
from scaler.config.data_sections import Cleaning
from scaler.config.recipe import section
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, help="(one a core)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe's section `cleaning`")
    arguments = parser.parse_intermixed_args()
    with worker_pool(arguments.processes) as pool:
        settings = section(Cleaning, "cleaning", arguments.settings)
        written = make(arguments.corpus, arguments.out, settings, pool)
    print(texts.describe(arguments.out))
    print(summary(texts.manifest(arguments.out)["counts"]))
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

"""Drop documents that repeat an earlier one.

`scaler dedup CLEAN --out DIR`: held-out documents come first, then those of the test, then the others, each in the
order of the recipe's sources. Of equal or nearly equal documents the first stays. So no training document repeats a
held-out or a test one, no test document a held-out one, and more training data never moves either split.

Near-duplicates are found by MinHash (Broder 1997) over runs of `ngram` words, with locality-sensitive hashing: two
documents of Jaccard similarity s meet with probability 1 - (1 - s**band_rows)**bands.
"""

from __future__ import annotations

from data_prep.pipeline.options import add_out, add_processes, add_settings, add_text
from scaler.config.data_sections import Dedup
from scaler.config.recipe import section
from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("dedup", __doc__)
    add_text(made, "text")
    add_out(made)
    add_processes(made)
    add_settings(made, "dedup")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.cleaning.dedup import make
    from data_prep.cleaning.tally import summary
    from data_prep.formats import texts
    from data_prep.pipeline.workers import worker_pool

    with worker_pool(arguments.processes) as pool:
        settings = section(Dedup, "dedup", arguments.settings)
        written = make(arguments.text, arguments.out, settings, pool)
    print(texts.describe(arguments.out))
    print(summary(texts.manifest(arguments.out).get("counts", {})))
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

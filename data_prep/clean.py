"""Clean a folder of text.

`scaler clean CORPUS --out DIR unicode_repair=true languages=[en]`: each step is a switch of the recipe's section
`cleaning`. The manifest counts what each step dropped and changed, and dropped.jsonl keeps some examples of each.
"""

from __future__ import annotations

from data_prep.pipeline.options import add_out, add_processes, add_settings, add_text
from scaler.config.data_sections import Cleaning
from scaler.config.recipe import section
from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("clean", __doc__)
    add_text(made, "corpus")
    add_out(made)
    add_processes(made)
    add_settings(made, "cleaning")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.cleaning.clean import make
    from data_prep.cleaning.tally import summary
    from data_prep.formats import texts
    from data_prep.pipeline.workers import worker_pool

    with worker_pool(arguments.processes) as pool:
        settings = section(Cleaning, "cleaning", arguments.settings)
        written = make(arguments.corpus, arguments.out, settings, pool)
    print(texts.describe(arguments.out))
    print(summary(texts.manifest(arguments.out).get("counts", {})))
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

"""Write a corpus folder from sources of text.

`scaler corpus my/texts --out data/mine/corpus`: a source is a file, a folder, a pattern such as 'my/*.jsonl', a Hugging
Face data set (OWNER/NAME), or "aws-docs". Read are text (.txt, .md, .rst), JSON (.jsonl, .ndjson, .json), tables (.csv,
.tsv, .parquet) and pages (.html), with .gz or .zst behind, too. The folder holds the documents as they are, each in the
split that its hash says, and a manifest. What is left out is counted and printed.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from data_prep.pipeline.options import add_processes
from scaler.config import typed
from scaler.config.data_sections import Corpus, Source
from scaler.core.cli import Parser, command

# of the recipe's `corpus` and its sources: name of the value, and meaning
OF_A_SOURCE = {
    "text_field": ("FIELD", "field with the text in JSON, tables and hub data sets; a.b is that field, or b of a"),
    "id_field": ("FIELD", "field that names each document, at most once (default: none)"),
    "text_unit": ("UNIT", "a document in .txt, .md, .rst: paragraph, line or file (default: file if many and small)"),
    "hub_config": ("NAME", "configuration of a hub data set (default: its only one)"),
    "hub_split": ("SPLIT", "split of a hub data set that is read"),
    "hub_revision": ("COMMIT", "commit of a hub data set, so that it never changes (default: the newest)"),
    "max_mib": ("MIB", "text of each source, in MiB, after which no more is read (default: all)"),
}
OF_ALL = {
    "heldout_percent": ("PERCENT", "percent of the documents kept apart, for evaluation while training"),
    "test_percent": ("PERCENT", "percent of the documents kept apart for `scaler evaluate` alone; 0: none"),
    "part_mib": ("MIB", "text in one file, in MiB, and so in one shard"),
    "max_document_mib": ("MIB", "longest document in MiB; a longer one is taken for a damaged file"),
    "unusable_percent": ("PERCENT", "percent of a source's records that may have no text to read; more are refused"),
}


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("corpus", __doc__)
    made.add_argument(
        "source", nargs="+", metavar="SOURCE", help="files, folders, patterns, data sets of the hub, or aws-docs"
    )
    made.add_argument(
        "--out", type=Path, default=Path("data/corpus"), metavar="DIR", help="folder to write (default: %(default)s)"
    )
    add_processes(made)
    for owner, options in ((Source, OF_A_SOURCE), (Corpus, OF_ALL)):
        defaults = {field.name: field.default for field in dataclasses.fields(owner)}
        for name, (metavar, meaning) in options.items():
            kind, default = typed.value_type(owner, name), defaults[name]
            otherwise = "" if default is None else " (default: %(default)s)"
            made.add_argument(f"--{name}", type=kind, default=default, metavar=metavar, help=meaning + otherwise)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    of_source = {name: getattr(arguments, name) for name in OF_A_SOURCE}
    sources = tuple(Source(source=source, **of_source) for source in arguments.source)
    corpus = Corpus(sources=sources, **{name: getattr(arguments, name) for name in OF_ALL})
    from data_prep.formats import texts
    from data_prep.pipeline import accounts
    from data_prep.pipeline.workers import worker_pool
    from data_prep.sources.corpus import make

    with worker_pool(arguments.processes) as pool:
        written = make(corpus, arguments.out, pool)
    print("\n".join([texts.describe(arguments.out), *accounts.of_sources(texts.manifest(arguments.out))]))
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

"""Write a corpus folder: `python -m data_prep.corpus aws-docs --out data/mine/corpus`.

A source is "aws-docs", a file or folder of .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or a Hugging Face data
set id. The folder holds the documents as they are, each in the split that its hash says, and a manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from data_prep.formats import texts
from data_prep.pipeline.workers import worker_pool
from data_prep.sources.corpus import make
from scaler.config import typed
from scaler.config.data_sections import Corpus, Source
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", nargs="+")
    parser.add_argument("--out", type=Path, default=Path("data/corpus"), help="folder to write (data/corpus)")
    parser.add_argument("--processes", type=int, help="(one a core)")
    for owner in (Source, Corpus):
        for field in dataclasses.fields(owner):
            if field.name not in ("source", "sources", "name", "weight", "epochs", "tokens"):
                kind = typed.value_type(owner, field.name)
                parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"({field.default})")
    arguments = vars(parser.parse_args())
    out, processes = arguments.pop("out"), arguments.pop("processes")
    of_source = {
        field.name: arguments.pop(field.name)
        for field in dataclasses.fields(Source)
        if field.name in arguments and field.name != "source"
    }
    listed = tuple(Source(source=source, **of_source) for source in arguments.pop("source"))
    with worker_pool(processes) as pool:
        written = make(Corpus(sources=listed, **arguments), out, pool)
    print(texts.describe(out))
    print(f"{out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

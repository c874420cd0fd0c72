"""Tokenise text into shards.

`scaler shards TEXT TOKENIZER --out DIR --processes 8`: every file of text becomes one shard of Megatron-LM's .bin/.idx
format, so the shards depend on the text alone, and not on the number of processes.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.pipeline.options import add_out, add_processes, add_text
from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("shards", __doc__)
    add_text(made, "text")
    made.add_argument("tokenizer", type=Path, metavar="TOKENIZER", help="folder of a Transformers tokenizer")
    add_out(made)
    add_processes(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.pipeline.workers import worker_pool
    from data_prep.tokens.shards import make

    with worker_pool(arguments.processes) as pool:
        written = make(arguments.text, arguments.tokenizer, arguments.out, pool)
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

"""Tokenise text into shards: `python -m data_prep.shards TEXT TOKENIZER --out DIR --processes 8`.

Every file of text becomes one shard of Megatron-LM's .bin/.idx format, so the shards hang on the text alone and not
on the number of processes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.pipeline.workers import worker_pool
from data_prep.tokens.shards import make
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.shards", description=__doc__)
    parser.add_argument("text", type=Path, help="folder that corpus, clean or dedup wrote")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, help="(one a core)")
    arguments = parser.parse_args()
    with worker_pool(arguments.processes) as pool:
        written = make(arguments.text, arguments.tokenizer, arguments.out, pool)
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

"""Pack shards into the rows that training reads: `python -m data_prep.rows SHARDS TOKENIZER --out DIR --seq_len 512`.

Each shard becomes one file of rows, small ones some together: the documents that the mix takes of it, cut to the row's
length, each between its special tokens, packed so that hardly a position is padding.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.formats import texts
from data_prep.pipeline.workers import worker_pool
from data_prep.tokens.rows import make
from scaler.config.data_sections import Corpus, Source
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.rows", description=__doc__)
    parser.add_argument("shards", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seq_len", type=int, required=True, help="tokens in a row")
    parser.add_argument("--min_tokens", type=int, default=1, help="ordinary tokens in a row, so many can be masked (1)")
    parser.add_argument("--processes", type=int, help="(one a core)")
    arguments = parser.parse_args()
    corpus = Corpus(sources=(Source("shards"),))
    with worker_pool(arguments.processes) as pool:
        written = make(
            arguments.shards,
            arguments.tokenizer,
            arguments.out,
            arguments.seq_len,
            dict.fromkeys(texts.SPLITS, arguments.min_tokens),
            corpus,
            pool,
        )
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

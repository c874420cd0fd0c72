"""Pack shards into the rows that training reads.

`scaler rows SHARDS TOKENIZER --out DIR --seq_len 512`: each shard becomes one file of rows, small ones some together.
The documents that the mix takes of it are cut to the row's length, each between its special tokens, and packed so that
hardly a position is padding.
"""

from __future__ import annotations

from data_prep.pipeline.options import add_out, add_processes, add_shards_and_tokenizer
from scaler.config.data_sections import Corpus, Source
from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("rows", __doc__)
    add_shards_and_tokenizer(made)
    add_out(made)
    made.add_argument("--seq_len", type=at_least(1), required=True, metavar="TOKENS", help="tokens in a row")
    made.add_argument(
        "--min_tokens",
        type=at_least(1),
        default=1,
        metavar="TOKENS",
        help="ordinary tokens in each row at least, so that as many can be masked (default: %(default)s)",
    )
    add_processes(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.formats import texts
    from data_prep.pipeline.workers import worker_pool
    from data_prep.tokens.rows import make

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

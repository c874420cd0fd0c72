"""Train a vector for each entry: `python -m data_prep.word2vec SHARDS TOKENIZER --out DIR vector_size=768`.

gensim's word2vec over the token ids of the training documents, so the words are the tokenizer's entries, and row i is
entry i. Settings are the keys of the recipe's section `word2vec`; with `ready_made=FILE` the vectors are taken from
there. Stopped, the same command goes on from the last save; with one thread it then comes to the same bytes.

Entries that occur less than `min_count` times, special tokens among them, are neither trained nor context, as in
Mikolov's program. Theirs is a vector drawn from a normal distribution with the mean and standard deviation, dimension
by dimension, of the rarest that are trained (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models", takes those of all). A vector grows with its entry's count, so that is how theirs would look (docs/log.md).
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.vocabulary.word2vec import describe, make
from scaler.config.data_sections import Word2Vec
from scaler.config.recipe import section
from scaler.core.cli import command
from scaler.data.word_vectors import KIND


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.word2vec", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("shards", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, help="that train (one a core)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe's section `word2vec`")
    arguments = parser.parse_intermixed_args()
    settings = section(Word2Vec, KIND, arguments.settings)
    written = make(arguments.shards, arguments.tokenizer, arguments.out, settings, arguments.seed, arguments.threads)
    print(f"{arguments.out} {'written' if written else 'is up to date'}: {describe(arguments.out)}")


if __name__ == "__main__":
    main()

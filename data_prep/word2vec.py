"""Train a vector for each entry of the vocabulary.

`scaler word2vec SHARDS TOKENIZER --out DIR vector_size=768` runs gensim's word2vec over the token ids of the training
documents, so the words are the tokenizer's entries, and row i is entry i. With `ready_made=FILE` the vectors are taken
from there. Stopped, the same command continues from the last save; with one thread it then comes to the same bytes.

Entries that occur less than `min_count` times, special tokens among them, are neither trained nor context, as in
Mikolov's program. Theirs is a vector drawn from a normal distribution with the mean and standard deviation, dimension
by dimension, of the rarest that are trained (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language
Models", takes those of all). A vector grows with its entry's count, so that is how theirs would look (docs/log).
"""

from __future__ import annotations

from data_prep.pipeline.options import add_out, add_settings, add_shards_and_tokenizer
from scaler.config.data_sections import Word2Vec
from scaler.config.recipe import section
from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("word2vec", __doc__)
    add_shards_and_tokenizer(made)
    add_out(made)
    made.add_argument(
        "--threads", type=at_least(1), metavar="N", help="threads that train (default: one for each core)"
    )
    made.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the training (default: %(default)s)")
    add_settings(made, "word2vec")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    settings = section(Word2Vec, "word2vec", arguments.settings)
    from data_prep.vocabulary.word2vec import describe, make

    written = make(arguments.shards, arguments.tokenizer, arguments.out, settings, arguments.seed, arguments.threads)
    print(f"{arguments.out} {'written' if written else 'is up to date'}: {describe(arguments.out)}")


if __name__ == "__main__":
    main()

"""Train a tokenizer on a corpus.

`scaler tokenizer TEXT --out DIR vocab_size=50265` writes a Transformers tokenizer: a byte-level BPE with RoBERTa's
special tokens, or a vocabulary of pieces or of whole words with BERT's.
"""

from __future__ import annotations

from data_prep.pipeline.options import add_out, add_settings, add_text
from scaler.config.data_sections import Tokenizer
from scaler.config.recipe import section
from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("tokenizer", __doc__)
    add_text(made, "text")
    add_out(made)
    add_settings(made, "tokenizer")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    settings = section(Tokenizer, "tokenizer", arguments.settings)
    from data_prep.formats import manifests
    from data_prep.vocabulary.tokenizer import make

    written = make(arguments.text, arguments.out, settings)
    entries = manifests.read(arguments.out, "tokenizer")["vocab_size"]
    print(f"{arguments.out} {'written' if written else 'is up to date'}: {entries:,} entries")


if __name__ == "__main__":
    main()

"""Train a tokenizer on a corpus: `python -m data_prep.tokenizer TEXT --out DIR vocab_size=50265`.

The folder is a Transformers tokenizer: a byte-level BPE with RoBERTa's special tokens, or a vocabulary of pieces or of
whole words with BERT's.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.vocabulary.tokenizer import make
from scaler.config.data_sections import Tokenizer
from scaler.config.recipe import section
from scaler.core.cli import command
from scaler.core.files import read_manifest


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.tokenizer", description=__doc__)
    parser.add_argument("text", type=Path, help="folder that corpus, clean or dedup wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("settings", nargs="*", metavar="key=value", help="of the recipe's section `tokenizer`")
    arguments = parser.parse_intermixed_args()
    settings = section(Tokenizer, "tokenizer", arguments.settings)
    written = make(arguments.text, arguments.out, settings)
    entries = read_manifest(arguments.out, "tokenizer")["vocab_size"]
    print(f"{arguments.out} {'written' if written else 'is up to date'}: {entries:,} entries")


if __name__ == "__main__":
    main()

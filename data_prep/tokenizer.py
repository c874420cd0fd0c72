"""Train a byte-level BPE on a corpus: `python -m data_prep.tokenizer CORPUS --out DIR --vocab_size 50265`.

The folder is a Transformers tokenizer, RoBERTa's special tokens included.
"""

from __future__ import annotations

import argparse
import atexit
import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from tokenizers import AddedToken, ByteLevelBPETokenizer, processors
from transformers import PreTrainedTokenizerFast

from data_prep import folders, sources
from scaler.errors import EXIT_INTERRUPTED, command
from scaler.recipe import Corpus, Tokenizer
from scaler.token_shards import MANIFEST, MANIFEST_FORMAT, checksum, write_json

# RoBERTa's order (Liu et al. 2019; fairseq's dictionary)
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
MASK_TOKEN = "<mask>"
MAX_LENGTH = 512


def texts(corpus: Path, split: str) -> Iterator[str]:
    """The documents of one split of a corpus folder."""
    for entry in folders.read_manifest(corpus, "corpus")["splits"][split]:
        yield from sources.read_file(corpus / entry["name"], Corpus(source=""))


def make(corpus: Path, folder: Path, settings: Tokenizer) -> bool:
    """Train the tokenizer unless the folder already is what this corpus makes; say whether it was trained."""
    made_from = {"corpus": folders.checksum_of_manifest(corpus, "corpus"), "vocab_size": settings.vocab_size}
    if folders.is_current(folder, "tokenizer", made_from) and (folder / "tokenizer.json").is_file():
        return False
    bpe = ByteLevelBPETokenizer()
    mask_token = AddedToken(MASK_TOKEN, lstrip=True, special=True)  # it stands for a word and the space before it
    with folders.staged(folder, "tokenizer") as partial:
        _in_background(
            lambda: bpe.train_from_iterator(
                texts(corpus, "train"),
                vocab_size=settings.vocab_size,
                min_frequency=2,
                special_tokens=[*SPECIAL_TOKENS.values(), mask_token],
                show_progress=sys.stderr.isatty(),
            )
        )
        tokenizer = bpe._tokenizer
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>",
            pair="<s> $A </s> </s> $B </s>",  # as RoBERTa
            special_tokens=[(token, bpe.token_to_id(token)) for token in ("<s>", "</s>")],
        )
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            cls_token="<s>",
            sep_token="</s>",
            mask_token=mask_token,
            model_max_length=MAX_LENGTH,
            **SPECIAL_TOKENS,
        ).save_pretrained(partial)
        write_json(
            partial / MANIFEST,
            {
                "format": MANIFEST_FORMAT,
                "kind": "tokenizer",
                "made_from": made_from,
                "vocab_size": bpe.get_vocab_size(),
                "tokenizer_xxh3": checksum(partial / "tokenizer.json"),
            },
        )
    return True


def _in_background(work: Callable[[], None]) -> None:
    """Wait for `work` in a thread of its own, so that Ctrl-C is heard while it computes without Python."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    try:
        thread.start()
        thread.join()
    except KeyboardInterrupt:
        atexit.register(os._exit, EXIT_INTERRUPTED)  # a thread inside the trainer cannot be unwound, only left
        raise
    if errors:
        raise errors[0]


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.tokenizer", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, required=True)
    arguments = parser.parse_args()
    written = make(arguments.corpus, arguments.out, Tokenizer(arguments.vocab_size))
    entries = json.loads((arguments.out / MANIFEST).read_text(encoding="utf-8"))["vocab_size"]
    print(f"{arguments.out} {'written' if written else 'is up to date'}: {entries:,} entries")


if __name__ == "__main__":
    main()

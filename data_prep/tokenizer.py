"""Train a byte-level BPE on a corpus: `python -m data_prep.tokenizer TEXT --out DIR --vocab_size 50265`.

The folder is a Transformers tokenizer, RoBERTa's special tokens included.
"""

from __future__ import annotations

import argparse
import atexit
import dataclasses
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import xxhash
from tokenizers import AddedToken, ByteLevelBPETokenizer, processors

from data_prep import folders, texts
from scaler.errors import EXIT_INTERRUPTED, ScalerError, command
from scaler.manifests import checksum, read_manifest
from scaler.recipe import Tokenizer

# RoBERTa's order (Liu et al. 2019; fairseq's dictionary)
SPECIAL_TOKENS = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
MASK_TOKEN = "<mask>"
MAX_LENGTH = 512
SAMPLE_SEED = 1  # another than that of the splits


def sample(text: Path, most_bytes: int) -> Iterator[str]:
    """Training documents of a folder of text: all, or about `most_bytes` of them, chosen by their hash."""
    files = texts.entries(texts.manifest(text), "train")
    share = most_bytes / max(1, sum(entry["bytes"] for entry in files))
    for entry in files:
        for document in texts.read(text, entry):
            if share >= 1 or xxhash.xxh3_64_intdigest(document.text.encode(), seed=SAMPLE_SEED) < share * 2**64:
                yield document.text


def special_ids(folder: Path) -> dict[str, int]:
    """The ids that rows are laid out with: begin_id, end_id, pad_id.

    Raises: ScalerError when one is not there, or two are the same: a begin id says where a document begins.
    """
    tokenizer = _loaded(folder)
    ids = {"begin_id": tokenizer.cls_token_id, "end_id": tokenizer.sep_token_id, "pad_id": tokenizer.pad_token_id}
    for role, value in ids.items():
        if value is None:
            raise ScalerError(f"{folder}: the tokenizer has no {role[:-3]} token, which masked-LM rows need")
    if len(set(ids.values())) < len(ids):
        raise ScalerError(f"{folder}: its begin, end and pad tokens are not three different ones, as rows need")
    return ids


def every_special_id(folder: Path) -> list[int]:
    """The ids of all special tokens, which are never masked, ascending."""
    return sorted(_loaded(folder).all_special_ids)


def _loaded(folder: Path) -> Any:
    from transformers import AutoTokenizer  # seconds, that each worker would spend too

    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more narrow
        reason = " ".join(str(error).split())
        raise ScalerError(f"{folder}: not a tokenizer that Transformers can load ({reason})") from error


def make(text: Path, folder: Path, settings: Tokenizer) -> bool:
    """Train the tokenizer unless the folder already is what this text makes; say whether it was trained."""
    made_from = {
        "text": folders.checksum_of_manifest(text, texts.manifest(text)["kind"]),
        "vocab_size": settings.vocab_size,
        "sample_mib": settings.sample_mib,
    }
    if folders.is_current(folder, "tokenizer", made_from) and (folder / "tokenizer.json").is_file():
        return False
    from transformers import PreTrainedTokenizerFast

    bpe = ByteLevelBPETokenizer()
    mask_token = AddedToken(MASK_TOKEN, lstrip=True, special=True)  # it stands for a word and the space before it
    with folders.staged(folder, "tokenizer", made_from) as partial:
        _in_background(
            lambda: bpe.train_from_iterator(
                sample(text, settings.sample_mib << 20),
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
        folders.write_manifest(
            partial,
            "tokenizer",
            made_from,
            vocab_size=bpe.get_vocab_size(),
            history=[
                *texts.manifest(text)["history"],
                {"stage": "tokenizer", "settings": dataclasses.asdict(settings)},
            ],
            tokenizer_xxh3=checksum(partial / "tokenizer.json"),
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
    parser.add_argument("text", type=Path, help="folder that corpus, clean or dedup wrote")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocab_size", type=int, required=True)
    default = Tokenizer.sample_mib
    parser.add_argument("--sample_mib", type=int, default=default, help=f"of text to train on ({default})")
    arguments = parser.parse_args()
    written = make(arguments.text, arguments.out, Tokenizer(arguments.vocab_size, arguments.sample_mib))
    entries = read_manifest(arguments.out, "tokenizer")["vocab_size"]
    print(f"{arguments.out} {'written' if written else 'is up to date'}: {entries:,} entries")


if __name__ == "__main__":
    main()

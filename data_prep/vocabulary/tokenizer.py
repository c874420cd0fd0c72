"""Train a tokenizer on a text folder."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import tokenizers
import xxhash
from tokenizers import AddedToken, ByteLevelBPETokenizer, processors

from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.vocabulary import wordpiece
from data_prep.vocabulary.long_words import LONGEST, Cutter
from scaler.config.data_sections import Tokenizer
from scaler.core.errors import EXIT_INTERRUPTED
from scaler.core.files import checksum
from scaler.data.tokenizer import save_tokenizer

# RoBERTa's order (Liu et al. 2019; fairseq's dictionary)
SPECIAL_TOKENS: dict[str, Any] = {
    **{"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"},
    # the mask stands for a word and the space before it
    **{"cls_token": "<s>", "sep_token": "</s>", "mask_token": AddedToken("<mask>", lstrip=True, special=True)},
}
Result = TypeVar("Result")
logger = logging.getLogger(__name__)
SAMPLE_SEED = 1  # another than that of the splits


def sample(text: Path, most_bytes: int, cutter: Cutter | None = None) -> Iterator[str]:
    """Yield training documents of a folder of text: all, or about `most_bytes` of them, chosen by their hash.

    Args:
        cutter: yields documents with long words in pieces.
    """
    files = texts.entries(texts.manifest(text), "train")
    share = most_bytes / max(1, sum(entry["bytes"] for entry in files))
    for entry in files:
        for number, document in enumerate(texts.read(text, entry), 1):
            if share >= 1 or xxhash.xxh3_64_intdigest(document.text.encode(), seed=SAMPLE_SEED) < share * 2**64:
                named = f" ({document.id})" if document.id is not None else ""
                where = f"document {number:,}{named} of {text / entry['name']}{texts.EXTENSION}"
                yield from cutter.pieces(document.text, where) if cutter else (document.text,)


def make(text: Path, folder: Path, settings: Tokenizer) -> bool:
    """Train the tokenizer unless the folder already is the result; return True when it was trained."""
    of_kind = {"byte_bpe": set(), "wordpiece": {"kind", "lowercase"}, "words": {"kind", "lowercase", "pieces"}}
    made_from = {
        "text": folders.checksum_of_manifest(text, texts.manifest(text)["kind"]),
        **{
            name: value
            for name, value in dataclasses.asdict(settings).items()
            if name in {"vocab_size", "sample_mib"} | of_kind[settings.kind]
        },
    }
    if folders.is_current(folder, "tokenizer", made_from) and (folder / "tokenizer.json").is_file():
        return False
    from transformers import PreTrainedTokenizerFast

    with folders.staged(folder, "tokenizer", made_from) as partial:
        cutter = Cutter()
        tokenizer, special_tokens = _in_background(lambda: _trained(text, settings, cutter))
        if cutter.longest:
            logger.warning(cutter.warning())
        # DistilBERT takes no token types, and no model needs them
        inputs = ["input_ids", "attention_mask"]
        loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_input_names=inputs, **special_tokens)
        save_tokenizer(loaded, partial)
        folders.write_manifest(
            partial,
            "tokenizer",
            made_from,
            vocab_size=tokenizer.get_vocab_size(),
            history=[
                *texts.manifest(text)["history"],
                {
                    "stage": "tokenizer",
                    "settings": dataclasses.asdict(settings),
                    **({"counts": {f"word_over_{LONGEST}_characters": len(cutter.longest)}} if cutter.longest else {}),
                },
            ],
            tokenizer_xxh3=checksum(partial / "tokenizer.json"),
        )
    return True


def _trained(text: Path, settings: Tokenizer, cutter: Cutter) -> tuple[tokenizers.Tokenizer, dict[str, Any]]:
    """Return a tokenizer that puts special tokens around a text and between two, and these tokens by their roles."""

    def texts_of_sample() -> Iterator[str]:
        return sample(text, settings.sample_mib << 20, cutter)

    if settings.kind == "byte_bpe":
        trained, special_tokens = _byte_bpe(texts_of_sample(), settings.vocab_size), SPECIAL_TOKENS
        pair = "<s> $A </s> </s> $B </s>"  # as RoBERTa
    else:
        trained, special_tokens = wordpiece.train(texts_of_sample, settings), wordpiece.SPECIAL_TOKENS
        pair = "[CLS] $A [SEP] $B:1 [SEP]:1"
    begin, end = str(special_tokens["cls_token"]), str(special_tokens["sep_token"])
    trained.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A {end}",
        pair=pair,
        special_tokens=[(token, trained.token_to_id(token)) for token in (begin, end)],
    )
    return trained, special_tokens


def _byte_bpe(texts_of_sample: Iterator[str], vocab_size: int) -> tokenizers.Tokenizer:
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(
        texts_of_sample,
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=[*dict.fromkeys(SPECIAL_TOKENS.values())],
        show_progress=sys.stderr.isatty(),
    )
    return cast(tokenizers.Tokenizer, bpe._tokenizer)


def _in_background(work: Callable[[], Result]) -> Result:
    """Wait for `work` in a thread of its own, so that Ctrl-C is heard while it computes without Python."""
    results: list[Result] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
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
    return results[0]

"""Tokenise a text folder into shards in Megatron-LM's format."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.formats import manifests, texts
from data_prep.formats.token_shards import NO_TOKENS, Shard, write_shard
from data_prep.pipeline import accounts, folders
from data_prep.pipeline.workers import Task, WorkerPool
from scaler.core.errors import ScalerError
from scaler.core.files import check_file
from scaler.data.token_rows import dtype_for

DOCUMENTS_AT_ONCE = 1000


def tokenize_file(
    text: Path, entry: dict[str, Any], tokenizer_file: Path, tokenizer_xxh3: str, prefix: Path, vocab_size: int
) -> dict[str, Any]:
    """Tokenise one file of text into one shard, without special tokens; return the shard's manifest entry."""
    tokenizer = _tokenizer(tokenizer_file, tokenizer_xxh3)

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        documents = (document.text for document in texts.read(text, entry))
        while group := list(islice(documents, DOCUMENTS_AT_ONCE)):
            ids = [found.ids for found in tokenizer.encode_batch_fast(group, add_special_tokens=False)]
            lengths = np.fromiter(map(len, ids), dtype=np.int64, count=len(ids))
            yield np.fromiter(chain.from_iterable(ids), dtype=np.int64, count=int(lengths.sum())), lengths

    written = write_shard(prefix, batches(), dtype_for(vocab_size), vocab_size)
    return {**written, "characters": entry["characters"], "source": entry["source"]}


@lru_cache(maxsize=1)  # a process keeps it, for tokenizers 0.23 never gives back the memory of one that was used
def _tokenizer(file: Path, xxh3: str) -> Tokenizer:
    check_file(file, xxh3)
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.encode_special_tokens = True  # a document that spells "<mask>" holds these six characters
    return tokenizer


def make(text: Path, tokenizer: Path, folder: Path, pool: WorkerPool) -> bool:
    """Tokenise the text unless the folder already is the result; return True when it was written.

    Raises: ScalerError when text or tokenizer are damaged or absent, or a process dies.
    """
    content = texts.manifest(text)
    of_tokenizer = manifests.read(tokenizer, "tokenizer")
    tokenizer_file, tokenizer_xxh3 = tokenizer / "tokenizer.json", of_tokenizer["tokenizer_xxh3"]
    check_file(tokenizer_file, tokenizer_xxh3)
    made_from = {"text": folders.checksum_of_manifest(text, content["kind"]), "tokenizer": tokenizer_xxh3}
    if folders.is_current(folder, "shards", made_from) and _can_be_opened(folder):
        return False
    vocab_size = int(of_tokenizer["vocab_size"])
    with folders.staged(folder, "shards", made_from) as partial:
        files = [(split, entry) for split in texts.SPLITS for entry in texts.entries(content, split)]
        tasks = [
            Task(
                entry["name"],
                entry["bytes"],
                tokenize_file,
                (text, entry, tokenizer_file, tokenizer_xxh3, partial / entry["name"], vocab_size),
            )
            for _, entry in files
        ]
        splits: dict[str, list[dict[str, Any]]] = {split: [] for split in content["splits"]}
        empty = 0
        for (split, _), entry in zip(files, pool.run(tasks, partial, "tokenising"), strict=True):
            splits[split].append(entry)
            empty += entry[NO_TOKENS]
        account = {
            "documents_in": sum(entry["documents"] for _, entry in files),
            "counts": {accounts.DROPPED + NO_TOKENS: empty} if empty else {},
        }
        settings = {"vocab_size": vocab_size, "dtype": dtype_for(vocab_size).name}
        history = [
            *content["history"],
            *of_tokenizer.get("history", [])[-1:],
            {"stage": "shards", "settings": settings, "counts": account["counts"]},
        ]
        write_manifest(partial, splits, vocab_size, tokenizer_xxh3, content["sources"], made_from, history, **account)
    return True


def _can_be_opened(folder: Path) -> bool:
    """Return True when every shard is there and of full length."""
    try:
        for entries in manifests.read(folder, "shards")["splits"].values():
            for entry in entries:
                Shard(folder / entry["name"])
    except ScalerError:
        return False
    return True


def write_manifest(
    folder: Path,
    splits: dict[str, list[dict[str, Any]]],
    vocab_size: int,
    tokenizer_xxh3: str,
    sources_entry: list[dict[str, Any]],
    made_from: dict[str, Any],
    history: list[dict[str, Any]],
    strip_ids: Sequence[int] = (),
    **account: Any,
) -> None:
    """Write the manifest, which makes a folder of shards a dataset, with the account of what was left out."""
    folders.write_manifest(
        folder,
        "shards",
        made_from,
        vocab_size=vocab_size,
        tokenizer_xxh3=tokenizer_xxh3,
        strip_ids=list(strip_ids),
        sources=sources_entry,
        history=history,
        splits=splits,
        **account,
    )

"""Adopt shards that Megatron-LM's preprocess_data.py wrote."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.formats.token_shards import Shard, count_tokens
from data_prep.pipeline import folders
from data_prep.tokens.shards import write_manifest
from scaler.core.files import checksum
from scaler.data.tokenizer import load_tokenizer, save_tokenizer, vocabulary_of


def link_or_copy(source: Path, target: Path) -> None:
    """Link a file where the file system allows it, else copy it."""
    target.unlink(missing_ok=True)  # it might be a link to another source, which copying would overwrite
    try:
        os.link(source.resolve(), target)  # the file, not a symbolic link to it
    except OSError:  # another file system
        shutil.copyfile(source, target)


def adopt(
    tokenizer: Path, train: Sequence[Path], heldout: Sequence[Path], folder: Path, test: Sequence[Path] = ()
) -> None:
    """Make `folder`/tokenizer and `folder`/shards from shards of another program.

    Args:
        train, heldout, test: prefixes of the shards of each split; without the last there is no test split.

    Raises: ScalerError when they are damaged, or hold ids that the tokenizer does not have.
    """
    given = {"train": train, "heldout": heldout, **({"test": test} if test else {})}
    loaded = load_tokenizer(tokenizer, "save it there, as tokenizer.json, with Transformers' save_pretrained")
    vocab_size, tokenizer_xxh3 = vocabulary_of(loaded, tokenizer).size, checksum(tokenizer / "tokenizer.json")
    splits: dict[str, list[dict[str, Any]]] = {}
    around = {loaded.bos_token_id, loaded.cls_token_id, loaded.sep_token_id, loaded.eos_token_id, loaded.pad_token_id}
    around.discard(None)
    strip_ids: set[int] = set()
    with folders.staged(folder / "shards", "shards", folders.ADOPTED) as partial:
        for split, prefixes in given.items():
            splits[split] = []
            for number, prefix in enumerate(prefixes):
                shard, name = Shard(prefix), f"{split}-{number:05d}"
                count_tokens(shard.ids, vocab_size, prefix)  # refuses ids that are not the tokenizer's
                ends = shard.document_ends[shard.document_lengths > 0]
                edges = np.concatenate([ends - 1, ends - shard.document_lengths[shard.document_lengths > 0]])
                strip_ids |= around & set(np.unique(shard.ids[edges]).tolist())
                entry = {"name": name, "documents": len(shard.document_ends), "tokens": len(shard.ids)}
                for extension in (".bin", ".idx"):
                    link_or_copy(prefix.with_name(prefix.name + extension), partial / (name + extension))
                    entry[extension[1:] + "_xxh3"] = checksum(partial / (name + extension))
                splits[split].append(entry)
        origin = [{"source": str(prefix)} for prefixes in given.values() for prefix in prefixes]
        # Megatron's --append-eod, and what its tokenizer puts around each document, are no part of it
        write_manifest(partial, splits, vocab_size, tokenizer_xxh3, origin, folders.ADOPTED, [], sorted(strip_ids))
    made_from = {"adopted": str(tokenizer)}
    with folders.staged(folder / "tokenizer", "tokenizer", made_from) as partial:
        save_tokenizer(loaded, partial)
        shutil.copyfile(tokenizer / "tokenizer.json", partial / "tokenizer.json")  # byte for byte: its hash is checked
        folders.write_manifest(partial, "tokenizer", made_from, vocab_size=vocab_size, tokenizer_xxh3=tokenizer_xxh3)

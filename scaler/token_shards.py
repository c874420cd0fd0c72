"""Token shards on disk: Megatron-LM's indexed format (`.bin` + `.idx`) and the dataset's manifest.

`.idx`, little endian: 9 bytes `MMIDIDX\\0\\0` | uint64 version (1) | uint8 dtype code | uint64 sequences |
uint64 document indices | int32 length of each sequence | int64 byte offset of each sequence |
int64 first sequence of each document, and one past the last. `.bin` holds the token ids, end to end.
(Facts from Megatron-LM, `megatron/core/datasets/indexed_dataset.py`.)
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from scaler.errors import ScalerError

MAGIC = b"MMIDIDX\x00\x00"
HEADER = struct.Struct("<9sQBQQ")
DTYPE_OF_CODE: dict[int, type[np.integer[Any]]] = {
    1: np.uint8,
    2: np.int8,
    3: np.int16,
    4: np.int32,
    5: np.int64,
    8: np.uint16,
}
CODE_OF_DTYPE = {np.dtype(dtype): code for code, dtype in DTYPE_OF_CODE.items()}
MANIFEST = "manifest.json"
MANIFEST_FORMAT = 1
AGAIN = "delete its folder and prepare the data again"  # for a folder with its manifest counts as up to date
UINT16_VOCABULARY = 65_535  # entries; Megatron-LM uses int32 from 65,500 on, readers accept either


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """The dtype that shards of this vocabulary use: uint16 up to 65,535 entries, else int32."""
    return np.dtype(np.uint16 if vocab_size <= UINT16_VOCABULARY else np.int32)


def checksum(path: Path) -> str:
    """XXH3-128 of a file's bytes as 32 hexadecimal digits: finds damage, at memory speed; it is no signature."""
    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def write_json(path: Path, content: Any) -> None:
    """Write JSON so that `path` appears whole or not at all."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, ensure_ascii=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def _write_ids(
    path: Path, prefix: Path, documents: Iterable[np.ndarray], dtype: np.dtype[Any], vocab_size: int
) -> np.ndarray:
    """Write the ids of all documents end to end; return their lengths: (documents,) int32."""
    lengths: list[int] = []
    with path.open("wb") as file:
        for ids in documents:
            if len(ids) == 0:
                continue
            wide = np.asarray(ids)
            least, largest = int(wide.min()), int(wide.max())
            if least < 0 or largest >= vocab_size:
                raise ScalerError(
                    f"{prefix}: document {len(lengths)} holds the id {least if least < 0 else largest}, "
                    f"but the vocabulary has {vocab_size:,} entries; is this its tokenizer?"
                )
            file.write(wide.astype(dtype).tobytes())
            lengths.append(len(wide))
        file.flush()
        os.fsync(file.fileno())
    return np.asarray(lengths, dtype=np.int32)


def write_shard(prefix: Path, documents: Iterable[np.ndarray], dtype: np.dtype[Any], vocab_size: int) -> dict[str, Any]:
    """Write one shard, `prefix`.bin and `prefix`.idx, a sequence a document; return its manifest entry.

    A failure leaves nothing behind.

    Args:
        prefix: path without extension; both files appear by rename once whole, the index last.
        documents: integer arrays of token ids, one a document; empty ones are left out.
        dtype: of the ids on disk; must hold every id below `vocab_size`.
        vocab_size: entries of the tokenizer; an id at or above it is refused.

    Raises: ScalerError for a vocabulary that the dtype cannot hold, or an id out of range.
    """
    dtype = np.dtype(dtype)
    if vocab_size - 1 > np.iinfo(dtype).max:
        raise ScalerError(
            f"{prefix}: {vocab_size:,} vocabulary entries do not fit in {dtype} (largest {np.iinfo(dtype).max:,}); "
            f"use {dtype_for(vocab_size)}"
        )
    bin_beside, idx_beside = (prefix.with_name(f"{prefix.name}{ext}.partial") for ext in (".bin", ".idx"))
    try:
        sequence_lengths = _write_ids(bin_beside, prefix, documents, dtype, vocab_size)
        ends = np.cumsum(sequence_lengths, dtype=np.int64) * dtype.itemsize
        with idx_beside.open("wb") as file:
            file.write(HEADER.pack(MAGIC, 1, CODE_OF_DTYPE[dtype], len(ends), len(ends) + 1))
            file.write(sequence_lengths.tobytes())
            file.write((ends - sequence_lengths.astype(np.int64) * dtype.itemsize).tobytes())
            file.write(np.arange(len(ends) + 1, dtype=np.int64).tobytes())
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        bin_beside.unlink(missing_ok=True)
        idx_beside.unlink(missing_ok=True)
        raise
    entry = {
        "name": prefix.name,
        "documents": len(sequence_lengths),
        "tokens": int(sequence_lengths.sum(dtype=np.int64)),
        "bin_xxh3": checksum(bin_beside),
        "idx_xxh3": checksum(idx_beside),
    }
    bin_beside.replace(prefix.with_name(prefix.name + ".bin"))
    idx_beside.replace(prefix.with_name(prefix.name + ".idx"))
    return entry


class Shard:
    """One memory-mapped shard.

    Attributes:
        ids: (tokens,) token ids, mapped read-only.
        document_ends: (documents,) int64, where each document ends in `ids`; it begins where the last one ended.
    """

    def __init__(self, prefix: Path) -> None:
        self.prefix = prefix
        idx_path, bin_path = prefix.with_name(prefix.name + ".idx"), prefix.with_name(prefix.name + ".bin")
        for path in (idx_path, bin_path):
            if not path.exists():
                raise ScalerError(f"{path}: missing; prepare the shards again")
        idx_bytes = idx_path.stat().st_size
        if idx_bytes < HEADER.size:
            raise ScalerError(f"{idx_path}: cut short ({idx_bytes} bytes); prepare the shards again")
        with idx_path.open("rb") as file:
            magic, version, code, sequences, document_indices = HEADER.unpack(file.read(HEADER.size))
        if magic != MAGIC or version != 1 or code not in DTYPE_OF_CODE:
            raise ScalerError(f"{idx_path}: not a Megatron index (magic, version or dtype); prepare the shards again")
        # a trailing byte a sequence holds Megatron's "modes" of multimodal data, which text has no use for
        whole = HEADER.size + sequences * 12 + document_indices * 8
        if idx_bytes not in (whole, whole + sequences):
            raise ScalerError(f"{idx_path}: {idx_bytes} bytes where {whole} belong; prepare the shards again")
        index = np.memmap(idx_path, mode="r", dtype=np.uint8)
        dtype = np.dtype(DTYPE_OF_CODE[code])
        lengths = np.frombuffer(index, np.int32, sequences, HEADER.size)
        first_sequences = np.frombuffer(index, np.int64, document_indices, HEADER.size + sequences * 12)
        sequence_ends = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        starts = np.frombuffer(index, np.int64, sequences, HEADER.size + sequences * 4)
        if (
            document_indices == 0
            or first_sequences[0] != 0
            or first_sequences[-1] != sequences
            or (np.diff(first_sequences) < 0).any()
            or (lengths < 0).any()
            or (starts != sequence_ends[:-1] * dtype.itemsize).any()
        ):
            raise ScalerError(f"{idx_path}: its sequences do not lie end to end; prepare the shards again")
        # data of sentences has several sequences a document; they lie end to end, so a document is one span
        self.document_ends = sequence_ends[first_sequences[1:]]
        tokens = int(sequence_ends[-1])
        bin_bytes = bin_path.stat().st_size
        if bin_bytes != tokens * dtype.itemsize:
            raise ScalerError(
                f"{bin_path}: {bin_bytes} bytes where {tokens * dtype.itemsize} belong; prepare the shards again"
            )
        # as a plain array, whose slices cost half of a memmap's
        self.ids = np.asarray(np.memmap(bin_path, dtype=dtype, mode="r")) if tokens else np.empty(0, dtype)

    @property
    def document_lengths(self) -> np.ndarray:
        """(documents,) int64, tokens of each document."""
        return np.diff(self.document_ends, prepend=0)


@dataclass(frozen=True)
class Manifest:
    """What a dataset folder holds, read from its `manifest.json`.

    `splits` maps "train" and "heldout" to shard entries (name, documents, tokens, bin_xxh3, idx_xxh3).
    """

    folder: Path
    vocab_size: int
    tokenizer_xxh3: str
    splits: dict[str, list[dict[str, Any]]]
    sources: list[dict[str, Any]]
    # special ids that others' tools put around each document (Megatron's --append-eod), which packing leaves out
    strip_ids: tuple[int, ...] = ()
    unigram_xxh3: str | None = None

    def count(self, split: str, what: str) -> int:
        """Sum "documents" or "tokens" over the shards of a split."""
        return sum(int(entry[what]) for entry in self.splits.get(split, []))

    def unigram_counts(self) -> np.ndarray:
        """(vocab_size,) int64, how often each token occurs in the training split."""
        path = self.folder / "unigram.npy"
        if not path.exists() or checksum(path) != self.unigram_xxh3:
            raise ScalerError(f"{path}: missing or damaged; {AGAIN}")
        return np.asarray(np.load(path, allow_pickle=False))


def read_manifest(folder: Path) -> Manifest:
    """Read a dataset folder's manifest. Raises ScalerError when there is none or it is of another format."""
    path = folder / MANIFEST
    if not path.exists():
        raise ScalerError(f"{folder}: no token shards here (no {MANIFEST}); run `make data` or `python -m data_prep`")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format"] != MANIFEST_FORMAT or content["kind"] != "shards":
            raise ScalerError(f"{path}: kind {content['kind']!r}, format {content['format']}; token shards are needed")
        return Manifest(
            folder=folder,
            vocab_size=content["vocab_size"],
            tokenizer_xxh3=content["tokenizer_xxh3"],
            splits={
                split: [{**entry, "tokens": int(entry["tokens"]), "name": str(entry["name"])} for entry in entries]
                for split, entries in content["splits"].items()
            },
            sources=content["sources"],
            strip_ids=tuple(content.get("strip_ids", ())),
            unigram_xxh3=content.get("unigram_xxh3"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScalerError(f"{path}: not a shards manifest ({error!r}); {AGAIN}") from error


def verify(manifest: Manifest, part: int = 0, parts: int = 1) -> None:
    """Compare the checksums of every `parts`-th shard, from the `part`-th on, with the manifest.

    Ranks share the work so. Raises ScalerError that names the damaged file.
    """
    entries = [entry for split in manifest.splits.values() for entry in split]
    for entry in entries[part::parts]:
        for extension in (".bin", ".idx"):
            path = manifest.folder / (entry["name"] + extension)
            if not path.exists():
                raise ScalerError(f"{path}: missing; {AGAIN}")
            if checksum(path) != entry[extension[1:] + "_xxh3"]:
                raise ScalerError(f"{path}: its checksum is not the manifest's, the file is damaged; {AGAIN}")


class TokenDataset:
    """All shards of one split as one sequence of documents in one space of token offsets.

    Attributes:
        shards: the mapped shards, in manifest order.
        bases: (shards + 1,) int64, the offset at which each shard begins; the last is the number of tokens.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        entries = manifest.splits.get(split, [])
        if not entries:
            raise ScalerError(f"{manifest.folder}: the split {split!r} has no shards; prepare the data again")
        self.shards = [Shard(manifest.folder / entry["name"]) for entry in entries]
        self.bases = np.concatenate([[0], np.cumsum([len(shard.ids) for shard in self.shards])]).astype(np.int64)
        self.strip_ids = manifest.strip_ids

    def documents(self) -> tuple[np.ndarray, np.ndarray]:
        """Offsets and lengths of all documents, without `strip_ids` at their ends: two int64 arrays (documents,)."""
        offsets, all_lengths = [], []
        for shard, base in zip(self.shards, self.bases, strict=False):
            lengths = shard.document_lengths
            starts = shard.document_ends - lengths
            while self.strip_ids and lengths.any():
                first = np.isin(shard.ids[np.minimum(starts, len(shard.ids) - 1)], self.strip_ids) & (lengths > 0)
                starts, lengths = starts + first, lengths - first
                last = np.isin(shard.ids[np.maximum(starts + lengths - 1, 0)], self.strip_ids) & (lengths > 0)
                lengths = lengths - last
                if not first.any() and not last.any():
                    break
            offsets.append(base + starts)
            all_lengths.append(lengths)
        return np.concatenate(offsets), np.concatenate(all_lengths)

    def copy_into(self, out: np.ndarray, places: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> None:
        """Copy spans of tokens to `out`, span i of `lengths[i]` tokens from `offsets[i]` to `places[i]`.

        A span lies within one shard, as each document does. Spans are long enough (a hundred tokens or so) that a copy
        of each costs less than index arithmetic on every token.
        """
        numbers = np.searchsorted(self.bases, offsets, side="right") - 1
        begins = offsets - self.bases[numbers]
        ids = [shard.ids for shard in self.shards]
        spans = zip(numbers.tolist(), begins.tolist(), lengths.tolist(), places.tolist(), strict=True)
        for number, begin, length, place in spans:
            out[place : place + length] = ids[number][begin : begin + length]

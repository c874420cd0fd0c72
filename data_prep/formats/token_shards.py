"""Write and map token shards in Megatron-LM's indexed format (`.bin` + `.idx`), which other programs read and write.

`.idx`, little endian: 9 bytes `MMIDIDX\\0\\0` | uint64 version (1) | uint8 dtype code | uint64 sequences |
uint64 document indices | int32 length of each sequence | int64 byte offset of each sequence |
int64 first sequence of each document, and one past the last. `.bin` holds the token ids, end to end.
(Facts from Megatron-LM, `megatron/core/datasets/indexed_dataset.py`.)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaler.core.errors import ScalerError
from scaler.core.files import whole_file
from scaler.data.token_rows import dtype_for

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
TOKENS_AT_ONCE = 1 << 24
NO_TOKENS = "no_tokens"  # why a document is left out
CODE_OF_DTYPE = {np.dtype(dtype): code for code, dtype in DTYPE_OF_CODE.items()}


def write_shard(
    prefix: Path, batches: Iterable[tuple[np.ndarray, np.ndarray]], dtype: np.dtype[Any], vocab_size: int
) -> dict[str, Any]:
    """Write one shard, `prefix`.bin and `prefix`.idx, a sequence a document; return its manifest entry.

    Documents without tokens are left out, and counted in the entry. A failure leaves nothing behind.

    Args:
        prefix: path without extension; both files appear by rename once whole, the index last.
        batches: token ids of some documents, end to end, integers (tokens,), and the tokens of each, integers
            (documents,).
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
    data_path, index_path = (prefix.with_name(prefix.name + extension) for extension in (".bin", ".idx"))
    lengths, empty = [np.empty(0, np.int32)], 0
    with whole_file(index_path) as index, whole_file(data_path) as data:  # the index appears last
        for ids, sizes in batches:
            _check_ids(ids, vocab_size, prefix)
            data.write(np.ascontiguousarray(ids, dtype=dtype).data)
            lengths.append(sizes[sizes > 0].astype(np.int32))
            empty += int((sizes == 0).sum())
        sequence_lengths = np.concatenate(lengths)
        ends = np.cumsum(sequence_lengths, dtype=np.int64) * dtype.itemsize
        index.write(HEADER.pack(MAGIC, 1, CODE_OF_DTYPE[dtype], len(ends), len(ends) + 1))
        index.write(sequence_lengths.data)
        index.write((ends - sequence_lengths.astype(np.int64) * dtype.itemsize).data)
        index.write(np.arange(len(ends) + 1, dtype=np.int64).data)
        index.flush()  # a disk that is full refuses it here, before the data have their name
    return {
        "name": prefix.name,
        "documents": len(sequence_lengths),
        "tokens": int(sequence_lengths.sum(dtype=np.int64)),
        "lengths": length_counts(sequence_lengths).tolist(),
        NO_TOKENS: empty,
        "bin_xxh3": data.checksum(),
        "idx_xxh3": index.checksum(),
    }


def length_counts(lengths: np.ndarray) -> np.ndarray:
    """Count documents by tokens in bins that double, the first of one token: int64 (bins,)."""
    return np.bincount(np.floor(np.log2(np.maximum(lengths, 1))).astype(np.int64), minlength=1)


def _check_ids(ids: np.ndarray, vocab_size: int, prefix: Path) -> None:
    least, largest = int(ids.min(initial=0)), int(ids.max(initial=0))
    if least < 0 or largest >= vocab_size:
        raise ScalerError(
            f"{prefix}: holds the id {least if least < 0 else largest}, but the tokenizer has {vocab_size:,} entries; "
            f"name the tokenizer that these tokens were made with"
        )


def count_tokens(ids: np.ndarray, vocab_size: int, prefix: Path) -> np.ndarray:
    """Return how often each token occurs: int64 (vocab_size,). Raises ScalerError for an id outside the vocabulary."""
    counts = np.zeros(vocab_size, dtype=np.int64)
    for start in range(0, len(ids), TOKENS_AT_ONCE):
        some = np.asarray(ids[start : start + TOKENS_AT_ONCE])
        _check_ids(some, vocab_size, prefix)
        counts += np.bincount(some, minlength=vocab_size)
    return counts


class Shard:
    """A memory-mapped shard.

    Attributes:
        ids: (tokens,) token ids, mapped read-only.
        document_ends: (documents,) int64, where each document ends in `ids`; it begins where the last one ended.
    """

    def __init__(self, prefix: Path) -> None:
        if prefix.name in ("", ".."):
            raise ScalerError(f"{prefix}: no file has this name; give the path of a shard without .bin and .idx")
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
        """Return the tokens of each document, int64 (documents,)."""
        return np.diff(self.document_ends, prepend=0)

    def documents(self, strip_ids: Sequence[int] = ()) -> tuple[np.ndarray, np.ndarray]:
        """Return each document's start in `ids`, and its tokens, less `strip_ids` at both ends: int64 (documents,)."""
        lengths = self.document_lengths
        starts = self.document_ends - lengths
        while strip_ids and lengths.any():
            first = np.isin(self.ids[np.minimum(starts, len(self.ids) - 1)], strip_ids) & (lengths > 0)
            starts, lengths = starts + first, lengths - first
            last = np.isin(self.ids[np.maximum(starts + lengths - 1, 0)], strip_ids) & (lengths > 0)
            lengths = lengths - last
            if not first.any() and not last.any():
                break
        return starts, lengths

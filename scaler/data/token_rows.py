"""Write and map token rows on disk: packed, special tokens and padding included, ready to be masked.

A file is a matrix of token ids, (rows, seq_len), little endian, without a header. A row is one or more documents, or
chunks of long ones, end to end, each from a begin to an end token; padding follows. So the ids alone tell which
document a position belongs to, a row is one contiguous read, and opening costs the same for any size. The folder's
`manifest.json` holds everything else.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from scaler.core.errors import ScalerError
from scaler.core.files import PREPARE_AGAIN, check_file, read_manifest, whole_file
from scaler.core.limits import allow_open_files

EXTENSION = ".rows"
UNIGRAM = "unigram.npy"
UINT16_VOCABULARY = 65_535  # entries; Megatron-LM uses int32 from 65,500 on, readers accept either
FOR_TRAINING = ("train", "heldout")  # the splits that a run reads
PREPARE = "run `make data` or `scaler prepare`"


def dtype_for(vocab_size: int) -> np.dtype[Any]:
    """Return the dtype of ids on disk: uint16 for up to 65,535 entries, else int32; little endian."""
    return np.dtype("<u2" if vocab_size <= UINT16_VOCABULARY else "<i4")


def write_rows(path: Path, blocks: Iterable[np.ndarray], dtype: np.dtype[Any]) -> str:
    """Write blocks of rows, each (rows, seq_len), to a file that appears whole or not at all; return its checksum."""
    with whole_file(path) as file:
        for block in blocks:
            file.write(np.ascontiguousarray(block, dtype=dtype).data)
    return file.checksum()


def open_file(path: Path, rows: int, seq_len: int, vocab_size: int) -> np.ndarray:
    """Map a file of rows as an array (rows, seq_len). Raises ScalerError when it is missing or of another size."""
    if not path.is_file():
        raise ScalerError(f"{path}: missing; {PREPARE_AGAIN}")
    dtype = dtype_for(vocab_size)
    size, whole = path.stat().st_size, rows * seq_len * dtype.itemsize
    if size != whole:
        raise ScalerError(f"{path}: {size} bytes where {whole} belong; {PREPARE_AGAIN}")
    # as a plain array, whose rows cost half of a memmap's
    return np.asarray(np.memmap(path, dtype, "r", shape=(rows, seq_len))) if size else np.empty((0, seq_len), dtype)


@dataclass(frozen=True)
class Manifest:
    """The manifest of a folder of rows.

    Attributes:
        splits: split -> its file entries: name, source, rows, tokens, documents, dropped_rows, least_maskable
            (ordinary tokens in the row that has fewest), xxh3; and of the text that the file was made from, each
            document counted once, text_tokens (without special tokens) and characters, None where that is unknown.
    """

    folder: Path
    seq_len: int
    vocab_size: int
    tokenizer_xxh3: str
    unigram_xxh3: str
    sources: list[dict[str, Any]]
    splits: dict[str, list[dict[str, Any]]]

    def count(self, split: str, what: str) -> int:
        """Return the sum of "rows", "tokens", "documents" or "dropped_rows" over the files of a split."""
        return sum(entry[what] for entry in self.splits.get(split, []))

    def least_maskable(self, split: str) -> int:
        """Return the ordinary tokens in the row of a split that has fewest: as many can be masked in each row."""
        return min((entry["least_maskable"] for entry in self.splits.get(split, [])), default=self.seq_len)

    def total_of_text(self, split: str, what: str) -> int | None:
        """Return the sum of "text_tokens" or "characters" over a split's files; None where one file's are unknown."""
        entries = self.splits.get(split, [])
        return None if any(entry.get(what) is None for entry in entries) else sum(entry[what] for entry in entries)

    def real_fraction(self, split: str) -> float:
        """Return the fraction of all positions that are not padding; special tokens count as real."""
        return self.count(split, "tokens") / max(1, self.count(split, "rows") * self.seq_len)

    def xxh3(self, split: str) -> str:
        """Return the XXH3-128 of the checksums of a split's files, which is equal for equal rows in equal order."""
        return xxhash.xxh3_128_hexdigest(" ".join(entry["xxh3"] for entry in self.splits.get(split, [])).encode())

    def unigram_counts(self) -> np.ndarray:
        """Return how often each ordinary token occurs in the training rows: int64 (vocab_size,)."""
        path = self.folder / UNIGRAM
        check_file(path, self.unigram_xxh3)
        return np.asarray(np.load(path, allow_pickle=False))


def read(folder: Path, remedy: str = PREPARE) -> Manifest:
    """Read the manifest of a folder of rows.

    Raises: ScalerError, with the remedy, when there is none or it is of another format.
    """
    content = read_manifest(folder, "rows", remedy)
    try:
        return Manifest(
            folder=folder,
            seq_len=int(content["seq_len"]),
            vocab_size=int(content["vocab_size"]),
            tokenizer_xxh3=str(content["tokenizer_xxh3"]),
            unigram_xxh3=str(content["unigram_xxh3"]),
            sources=list(content["sources"]),
            splits={split: [_entry(entry) for entry in entries] for split, entries in content["splits"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise ScalerError(f"{folder}: not a manifest of rows ({error!r}); {PREPARE_AGAIN}") from error


def _entry(content: dict[str, Any]) -> dict[str, Any]:
    counts = {what: int(content[what]) for what in ("rows", "tokens", "documents", "dropped_rows", "least_maskable")}
    of_text = {what: content.get(what) for what in ("text_tokens", "characters")}
    known = {what: None if count is None else int(count) for what, count in of_text.items()}
    return {**content, **counts, **known, "name": str(content["name"]), "xxh3": str(content["xxh3"])}


def verify(manifest: Manifest, part: int = 0, parts: int = 1, splits: Sequence[str] = FOR_TRAINING) -> None:
    """Compare the checksums of every `parts`-th file of some splits, from the `part`-th on, with the manifest.

    Ranks divide the work in this way. Raises ScalerError with the name of a damaged file.
    """
    entries = [entry for split in splits for entry in manifest.splits.get(split, [])]
    for entry in entries[part::parts]:
        check_file(manifest.folder / (entry["name"] + EXTENSION), entry["xxh3"])


class TokenRows:
    """The rows of one split, mapped.

    Attributes:
        files: one (rows, seq_len) array a file, in manifest order.
        bases: (files + 1,) int64, the number of each file's first row; the last is the number of rows.
        dtype: of the ids on disk.
        sources: names of the sources that have rows here, in manifest order.
        text_tokens, characters: of the text that the rows were made from; None where that is unknown.
    """

    def __init__(self, manifest: Manifest, split: str) -> None:
        entries = manifest.splits.get(split, [])
        self.seq_len = manifest.seq_len
        self.real_fraction = manifest.real_fraction(split)
        self.dropped_rows = manifest.count(split, "dropped_rows")
        self.text_tokens, self.characters = (manifest.total_of_text(split, w) for w in ("text_tokens", "characters"))
        self.dtype = dtype_for(manifest.vocab_size)
        names = [str(entry.get("source") or "adopted") for entry in entries]
        self.sources = list(dict.fromkeys(n for n, entry in zip(names, entries, strict=True) if entry["rows"]))
        self._source_of_file = np.array([self.sources.index(n) if n in self.sources else -1 for n in names], np.int64)
        self.files = []
        allow_open_files(len(entries), str(manifest.folder))
        for entry in entries:
            path = manifest.folder / (entry["name"] + EXTENSION)
            self.files.append(open_file(path, entry["rows"], manifest.seq_len, manifest.vocab_size))
        self.bases = np.concatenate([[0], np.cumsum([len(file) for file in self.files])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.bases[-1])

    def source_of(self, rows: np.ndarray) -> np.ndarray:
        """Return the index in `sources` of each row's source: int64 (count,)."""
        return np.asarray(self._source_of_file[self._file_of(rows)])

    def _file_of(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.bases, rows, side="right") - 1

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Return rows, int64 (count,), as an array (count, seq_len) of the dtype on disk."""
        numbers = self._file_of(rows)
        if len(numbers) and (numbers == numbers[0]).all():
            return np.asarray(self.files[int(numbers[0])][rows - self.bases[numbers[0]]])
        taken = np.empty((len(rows), self.seq_len), self.dtype)
        within = rows - self.bases[numbers]
        for place, (number, row) in enumerate(zip(numbers.tolist(), within.tolist(), strict=True)):
            taken[place] = self.files[number][row]
        return taken

"""Write and read folders of text, as corpus, clean and dedup make them: NAME.jsonl.zst, a document a line; a manifest.

A file holds documents of one source and one split, so that each later stage can take the files one by one.
"""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import zstandard

from data_prep.formats import manifests
from scaler.core.errors import ScalerError, naming
from scaler.core.files import HashingWriter, check_file, whole_file

SPLITS = ("train", "heldout", "test")  # a folder may have no test split
KINDS = ("corpus", "clean", "dedup")  # in the order in which they are made
EXTENSION = ".jsonl.zst"
ZSTD_LEVEL = 3


class Document(NamedTuple):
    """A text, and the id that its source gave it, if any."""

    text: str
    id: str | None = None


class Writer:
    """A writer of documents to a file NAME, or to NAME-0000 and so on of about `part_bytes` of text each.

    A file appears once it is whole.

    Attributes:
        entries: a manifest entry for each complete file: name, source, documents, characters, bytes, xxh3.
    """

    def __init__(self, folder: Path, name: str, source: str, part_bytes: int | None = None) -> None:
        self.folder, self.name, self.source, self.part_bytes = folder, name, source, part_bytes
        self.entries: list[dict[str, Any]] = []
        self._file: HashingWriter | None = None

    def write(self, document: Document) -> None:
        """Add a document."""
        if self._file is None:
            self._begin()
        line = {"text": document.text} if document.id is None else {"id": document.id, "text": document.text}
        self._lines.write((json.dumps(line, ensure_ascii=False) + "\n").encode())
        entry = self._entry
        entry["documents"] += 1
        entry["characters"] += len(document.text)
        entry["bytes"] += len(document.text.encode())
        if self.part_bytes is not None and entry["bytes"] >= self.part_bytes:
            self.close()

    def _begin(self) -> None:
        name = self.name if self.part_bytes is None else f"{self.name}-{len(self.entries):04d}"
        self._entry: dict[str, Any] = {"name": name, "source": self.source, "documents": 0, "characters": 0, "bytes": 0}
        self._open = contextlib.ExitStack()
        self._file = self._open.enter_context(whole_file(self.folder / (name + EXTENSION)))
        compressor = zstandard.ZstdCompressor(ZSTD_LEVEL)
        self._lines = self._open.enter_context(compressor.stream_writer(cast(IO[bytes], self._file), closefd=False))

    def close(self) -> None:
        """Finish the file that is open."""
        if self._file is not None:
            self._open.close()
            self.entries.append({**self._entry, "xxh3": self._file.checksum()})
            self._file = None


def read(folder: Path, entry: dict[str, Any]) -> Iterator[Document]:
    """Yield the documents of one file, after a check of its checksum. Raises ScalerError when it is damaged."""
    path = folder / (entry["name"] + EXTENSION)
    check_file(path, entry["xxh3"])
    with path.open("rb") as file, naming(path), zstandard.ZstdDecompressor().stream_reader(file) as lines:
        for line in io.BufferedReader(lines):
            content = json.loads(line)
            yield Document(content["text"], content.get("id"))


def manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a folder of text, whichever stage made it. Raises ScalerError when there is none."""
    kind = manifests.kind_of(folder)
    return manifests.read(folder, kind if kind in KINDS else KINDS[0])


def entries(content: dict[str, Any], split: str | None = None) -> list[dict[str, Any]]:
    """Return the file entries of one split or of all, split by split."""
    return [entry for name in SPLITS if split in (None, name) for entry in content["splits"].get(name, [])]


def split_manifest(
    files: Iterable[tuple[str, dict[str, Any]]], wanted: Collection[str], remedy: str
) -> dict[str, list[dict[str, Any]]]:
    """Sort (split, file entry) pairs into the wanted splits. Raises ScalerError, with the remedy, for an empty one."""
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS if split in wanted}
    for split, entry in files:
        splits[split].append(entry)
    for split, found in splits.items():
        if not found:
            raise ScalerError(f"the {split} split would be empty; {remedy}{or_without(split)}")
    return splits


def or_without(split: str) -> str:
    """Return an addition to the remedy for an empty split: the test split can be left out."""
    return ", or set corpus.test_percent=0 to have no test split" if split == "test" else ""


def describe(folder: Path) -> str:
    """Return a line for each split: documents, megabytes, files."""
    content = manifest(folder)
    lines = []
    for split in SPLITS:
        if split not in content["splits"]:
            continue
        found = entries(content, split)
        documents, size = (sum(entry[what] for entry in found) for what in ("documents", "bytes"))
        lines.append(f"{split:<8} {documents:>12,} documents  {size / 1e6:>10,.1f} MB  {len(found)} files")
    return "\n".join(lines)

"""Write files that appear complete, check them by checksum, and read and write JSON.

The JSON files are the manifest of a prepared folder, and the records that a run leaves.
"""

from __future__ import annotations

import contextlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import xxhash

from scaler.core.errors import ScalerError, naming

MANIFEST = "manifest.json"
FORMAT = 2  # of prepared folders; a stage makes a folder of another format anew
PREPARE_AGAIN = "delete its folder and prepare the data again"  # a folder with a manifest counts as up to date
METRICS, FAULTS = "metrics.jsonl", "faults.jsonl"


class HashingWriter:
    """A binary file that is open for writing, and the XXH3-128 of what has been written to it."""

    def __init__(self, file: IO[bytes], path: Path) -> None:
        self._file, self._path, self._state = file, path, xxhash.xxh3_128()

    def write(self, data: bytes | memoryview) -> int:
        """Write bytes; return their number."""
        self._state.update(data)
        with naming(self._path):
            return self._file.write(data)

    def flush(self) -> None:
        """Hand buffered bytes to the operating system, which may refuse them on a full disk."""
        with naming(self._path):
            self._file.flush()

    def checksum(self) -> str:
        """Return the XXH3-128 so far as 32 hexadecimal digits, as `checksum` gives it of the file."""
        return self._state.hexdigest()


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[HashingWriter]:
    """Open a file for writing that appears at `path` complete and on the disk, even through a power cut.

    Until the block ends it is NAME.partial beside `path`. A block that fails leaves neither.
    """
    beside = path.with_name(path.name + ".partial")
    # a link of that name might have been planted, so that another file is written
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o666)
    try:
        with open(descriptor, "wb") as file:
            writer = HashingWriter(file, beside)
            yield writer
            writer.flush()
            with naming(beside):
                os.fsync(descriptor)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_whole(path: Path, text: str) -> None:
    """Write a text file that appears complete or not at all, even through a power cut.

    What UTF-8 cannot encode, such as half a surrogate in a file's name, is written as an escape that JSON reads back.
    """
    with whole_file(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file that appears complete or not at all, even through a power cut."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def take_umask(path: Path) -> None:
    """Give a file that a library wrote the mode that a file opened beside it gets: by the umask, or the folder's list.

    safetensors writes files that their owner alone can read.
    """
    beside = path.with_name(path.name + ".mode")
    try:
        beside.touch()
        mode = stat.S_IMODE(beside.stat().st_mode)
    finally:
        with contextlib.suppress(OSError):  # an empty file that stays does no harm
            beside.unlink(missing_ok=True)
    if stat.S_IMODE(path.stat().st_mode) != mode:  # disks without modes refuse to set one
        path.chmod(mode)


def flush_folder(folder: Path) -> None:
    """Wait until all files and folders below a folder, and their names, are on the disk."""
    for path in folder.rglob("*"):
        flush(path)
    flush(folder)


def checksum(path: Path) -> str:
    """Return the XXH3-128 of a file's bytes as 32 hexadecimal digits: it finds damage, and is no signature."""
    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file, naming(path):
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def check_file(path: Path, xxh3: str) -> None:
    """Raise ScalerError when a file of prepared data is missing, or its checksum is another than `xxh3`."""
    if not path.is_file():
        raise ScalerError(f"{path}: missing; {PREPARE_AGAIN}")
    if checksum(path) != xxh3:
        raise ScalerError(f"{path}: its checksum is not the manifest's, the file is damaged; {PREPARE_AGAIN}")


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file. Raises ScalerError when there is none.

    The operating system's errors stay what they are: a file that cannot be read is not damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError) as error:
        raise ScalerError(f"{path}: not readable as JSON ({error}); put it back, or delete it") from error
    if not isinstance(content, dict):
        raise ScalerError(f"{path}: a JSON object is needed; put it back, or delete it")
    return content


def read_manifest(folder: Path, kind: str, remedy: str = "prepare it first") -> dict[str, Any]:
    """Return the manifest of a prepared folder of one kind ("corpus", "tokenizer", "shards", "rows" ...).

    Raises: ScalerError, with the remedy, when there is none or it is of another kind or format.
    """
    try:
        content = read_json(folder / MANIFEST)
    except ScalerError as error:
        raise ScalerError(f"{folder}: no {kind} here (no readable {MANIFEST}); {remedy}") from error
    if content.get("kind") != kind or content.get("format") != FORMAT:
        found = f"{content.get('kind')}, format {content.get('format')}"
        raise ScalerError(f"{folder}: its manifest is {found}; {kind}, format {FORMAT}, is needed; {remedy}")
    return content


def records(path: Path) -> list[dict[str, Any]]:
    """Return the records of metrics.jsonl or faults.jsonl; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for record in map(_complete, lines) if record is not None]


def _complete(line: str) -> dict[str, Any] | None:
    """Return a record, or None for a line that a power cut left half-written."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None

"""The manifest.json of a prepared folder, and the checksums that it names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import xxhash

from scaler.core.errors import ScalerError

MANIFEST = "manifest.json"
FORMAT = 2  # of prepared folders; a stage makes folders of another format anew
AGAIN = "delete its folder and prepare the data again"  # for a folder with its manifest counts as up to date


def checksum(path: Path) -> str:
    """XXH3-128 of a file's bytes as 32 hexadecimal digits: finds damage, at memory speed; it is no signature."""
    state = xxhash.xxh3_128()
    with path.open("rb", buffering=0) as file:
        while block := file.read(1 << 22):
            state.update(block)
    return state.hexdigest()


def write_whole(path: Path, text: str) -> None:
    """Write a file so that `path` appears whole or not at all, even through a power cut."""
    beside = path.with_name(path.name + ".partial")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def write_json(path: Path, content: Any) -> None:
    """The same with JSON."""
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a file. Raises ScalerError when there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScalerError(f"{path}: not readable as JSON ({error}); put it back, or delete it") from error
    if not isinstance(content, dict):
        raise ScalerError(f"{path}: a JSON object is needed; put it back, or delete it")
    return content


def read_manifest(folder: Path, kind: str, remedy: str = "prepare it first") -> dict[str, Any]:
    """The manifest of a folder of some kind ("corpus", "tokenizer", "shards", "rows" ...).

    Raises: ScalerError, with the remedy, when there is none or it is of another kind or format.
    """
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScalerError(f"{folder}: no {kind} here (no readable {MANIFEST}); {remedy}") from error
    if not isinstance(content, dict) or content.get("kind") != kind or content.get("format") != FORMAT:
        found = f"{content.get('kind')}, format {content.get('format')}" if isinstance(content, dict) else "no mapping"
        raise ScalerError(f"{folder}: its manifest is {found}; {kind}, format {FORMAT}, is needed; {remedy}")
    return content


def check_file(path: Path, xxh3: str) -> None:
    """Raises ScalerError when a file is missing, or its checksum is another than `xxh3`."""
    if not path.is_file():
        raise ScalerError(f"{path}: missing; {AGAIN}")
    if checksum(path) != xxh3:
        raise ScalerError(f"{path}: its checksum is not the manifest's, the file is damaged; {AGAIN}")


def flush(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk before going on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


METRICS, FAULTS = "metrics.jsonl", "faults.jsonl"


def _whole(line: str) -> dict[str, Any] | None:
    """A record, or None for a line that a power cut left half-written."""
    try:
        record = json.loads(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and isinstance(record.get("step"), int) else None


def records(path: Path) -> list[dict[str, Any]]:
    """The records of metrics.jsonl or faults.jsonl; none where there is no file."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return [record for record in map(_whole, lines) if record is not None]

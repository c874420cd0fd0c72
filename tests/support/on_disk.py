"""What tests read from disk, and how they damage it."""

import json
from pathlib import Path
from typing import Any


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder, by its path from there."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> list[str]:
    """The sorted names in a folder."""
    return sorted(path.name for path in folder.iterdir())


def flip(path: Path, place: float = 0.5) -> None:
    """Change one bit of a file, at this fraction of its length."""
    data = bytearray(path.read_bytes())
    data[int(place * len(data))] ^= 1
    path.write_bytes(data)


def records(path: Path) -> list[dict[str, Any]]:
    """The records of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def attempts(run: Path) -> list[dict[str, Any]]:
    """What a run has written down of each of its starts."""
    return json.loads((run / "environment.json").read_text())["attempts"]


def metric(run: Path, name: str) -> list[float]:
    """Every value of a metric that a run has logged."""
    return [record[name] for record in records(run / "metrics.jsonl") if name in record]

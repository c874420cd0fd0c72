"""Deal out a limit to the pieces of a source, by what is there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def next_share(most_bytes: float, records: Sequence[dict[str, Any]]) -> float | None:
    """Return the bytes of text to read of each piece that was not read to its end, or None where all are read enough.

    What the pieces that were read to their end left of their shares goes to the others, equally. Each round of this
    reads at least one more piece to its end, or reaches the limit.

    Args:
        most_bytes: of the whole source.
        records: of all pieces, each with the bytes of text that were read, and whether that was all.

    >>> next_share(6.0, [{"bytes": 3, "to_its_end": False}, {"bytes": 1, "to_its_end": True}])
    5.0
    """
    taken: int = sum(record["bytes"] for record in records)
    ended: list[int] = [record["bytes"] for record in records if record["to_its_end"]]
    if taken >= most_bytes or len(ended) == len(records):
        return None
    return (most_bytes - sum(ended)) / (len(records) - len(ended))

"""Count what cleaning and deduplication did to documents, with a few examples of each reason."""

from __future__ import annotations

from collections import Counter
from typing import Any

from data_prep.formats.texts import Document

EXAMPLES = "examples.json"  # in the folder of a stage: the examples of all files
EXAMPLES_KEPT = 5  # of each reason
EXAMPLE_CHARACTERS = 500


class Tally:
    """Counts of one file's documents by reason, and the first examples of each.

    Attributes:
        counts: documents by reason.
        examples: for each a mapping with reason, file, id and text.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.counts: Counter[str] = Counter()
        self.examples: list[dict[str, Any]] = []

    def add(self, reason: str, document: Document, **more: Any) -> None:
        """Count a document; `more` goes into its example."""
        self.counts[reason] += 1
        if self.counts[reason] <= EXAMPLES_KEPT:
            example = {
                "reason": reason,
                "file": self.file,
                "id": document.id,
                "text": document.text[:EXAMPLE_CHARACTERS],
            }
            self.examples.append({**example, **more})


def merge(records: list[dict[str, Any]]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the summed counts of all files, by reason, and the first examples of each reason.

    Args:
        records: of the files, each with the counts and examples of a Tally.
    """
    counts: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    examples = []
    for record in records:
        counts.update(record["counts"])
        for example in record["examples"]:
            kept[example["reason"]] += 1
            if kept[example["reason"]] <= EXAMPLES_KEPT:
                examples.append(example)
    return dict(sorted(counts.items())), examples


def summary(counts: dict[str, int]) -> str:
    """Return counts by reason as one line."""
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "nothing dropped or changed"

"""Say what a stage read and left out, and check that every document is accounted for, from the stage's manifest.

Documents that come in go out, or are counted as left out by a reason: `documents_in` is their sum.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from scaler.core.text import quantity

DROPPED = "dropped."  # begins the reasons of `counts` that leave a document out
MOST_NAMED = 6  # endings or reasons in a line
UNITS = {"file": "a file is a document", "paragraph": "a paragraph is a document", "line": "a line is a document"}


def of_sources(content: Mapping[str, Any]) -> list[str]:
    """Return lines that say of each source what was read, what was not, and why; none for manifests of before."""
    lines = []
    for source in content.get("sources", []):
        if "documents_in" in source:
            lines += [f"{source['name']}: {line}" for line in (_read(source), _files(source), _records(source)) if line]
    return lines


def _read(source: Mapping[str, Any]) -> str:
    parts = [
        f"{quantity(source['documents'], 'document')} of {source['characters'] / source['documents']:,.0f} characters "
        "on average"
    ]
    if "text_unit" in source:
        parts.append(UNITS[source["text_unit"]])
    if "files" in source:
        read = source["files"]["read"]
        size = sum(count[1] for count in read.values())
        number = quantity(sum(count[0] for count in read.values()), "file")
        parts.append(f"{number} of {_size(size)} ({_named((e, c[0]) for e, c in read.items())})")
    if source.get("capped"):
        parts.append("no more is read, by max_mib")
    return "; ".join(parts)


def _files(source: Mapping[str, Any]) -> str:
    """Describe the files that are not read: their number and size, by reason and ending."""
    left_out = source.get("files", {}).get("left_out", {})
    parts = []
    for reason, endings in left_out.items():
        size = sum(count[1] for count in endings.values())
        parts.append(f"{reason}: {_named((e, c[0]) for e, c in endings.items())} ({_size(size)})")
    return f"files left out: {'; '.join(parts)}" if parts else ""


def _records(source: Mapping[str, Any]) -> str:
    """Describe the records that gave no document, with the first of each reason that is not blank or null."""
    if not source["left_out"]:
        return ""
    parts = [
        f"{reason} {count:,}" + (f" (the first: {source['first'][reason]})" if ": " in source["first"][reason] else "")
        for reason, count in source["left_out"].items()
    ]
    return f"{sum(source['left_out'].values()):,} of {source['documents_in']:,} records left out: {'; '.join(parts)}"


def _size(size: int) -> str:
    return f"{size / 1e6:,.1f} MB" if size >= 1e5 else quantity(size, "byte")


def _named(counts: Iterable[tuple[str, int]]) -> str:
    """Return the most frequent names with their counts, and how many more names there are."""
    ordered = Counter(dict(counts)).most_common()
    listed = ", ".join(f"{count:,} {name}" for name, count in ordered[:MOST_NAMED])
    more = ordered[MOST_NAMED:]
    return f"{listed}, {sum(count for _, count in more):,} of {len(more):,} others" if more else listed


def dropped(content: Mapping[str, Any]) -> int:
    """Return the number of documents that a stage left out."""
    return sum(count for reason, count in content.get("counts", {}).items() if reason.startswith(DROPPED))


def documents_out(content: Mapping[str, Any]) -> int:
    """Return the number of documents in the folder of a stage."""
    return sum(entry["documents"] for entries in content["splits"].values() for entry in entries)


def problems(kind: str, content: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the counts of a stage's manifest; nothing for one of before, which has none."""
    found = []
    sources = [source for source in content.get("sources", []) if "documents_in" in source]
    for source in sources:
        left_out = sum(source.get("left_out", {}).values())
        out = source.get("documents", 0)
        found += _unequal(f"the source {source.get('name', '')}", source["documents_in"], out, left_out)
    if kind == "corpus" and sources:
        found += _unequal(
            "the folder", sum(source.get("documents", 0) for source in sources), documents_out(content), 0
        )
    if "documents_in" in content:
        found += _unequal("the folder", content["documents_in"], documents_out(content), dropped(content))
    return found


def _unequal(what: str, documents_in: int, out: int, left_out: int) -> list[str]:
    if documents_in == out + left_out:
        return []
    return [f"{what}: {documents_in:,} documents in, but {out:,} out and {left_out:,} counted as left out"]

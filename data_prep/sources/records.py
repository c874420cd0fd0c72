"""Find the texts of a record, and say why one has none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from data_prep.formats.texts import Document
from data_prep.sources.lines import refuse_length
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError

# why a record gives no document
BLANK, NULL, NO_MAIN_TEXT = "blank", "null", "no main text"
NO_FIELD, WRONG_TYPE, UNDECODABLE = "no such field", "wrong type", "undecodable"
UNUSABLE = (NO_FIELD, WRONG_TYPE, UNDECODABLE)  # those that a wrong setting or a wrong file gives
ENOUGH = 1000  # unusable records from which on a piece is judged alone, before the rest of the source is read
MISSING = object()
TEXT_REMEDY = "set the text_field"
BYTES_REMEDY = "convert it, for example with `iconv -f latin1 -t utf-8`"


class LeftOut(NamedTuple):
    """A record that gives no document: the reason, and the place and what is there, for a message."""

    reason: str
    where: object
    said: str = ""


class Account:
    """Counts of what the records of a piece, or of a whole source, gave.

    Attributes:
        records: all of them: documents, and those that are left out.
        left_out: records by reason.
        first: place of the first of each reason, and what is there.
    """

    def __init__(self) -> None:
        self.records = 0
        self.left_out: Counter[str] = Counter()
        self.first: dict[str, str] = {}

    @classmethod
    def of(cls, pieces: Iterable[dict[str, Any]]) -> Account:
        """Add up the counts of pieces, as `as_json` returns them."""
        made = cls()
        for piece in pieces:
            made.records += piece["documents_in"]
            made.left_out.update(piece["left_out"])
            made.first = {**piece["first"], **made.first}
        return made

    def as_json(self) -> dict[str, Any]:
        """Return the counts for a manifest."""
        return {"documents_in": self.records, "left_out": dict(sorted(self.left_out.items())), "first": self.first}

    def add(self, found: Document | LeftOut) -> None:
        """Count a record."""
        self.records += 1
        if isinstance(found, LeftOut):
            self.left_out[found.reason] += 1
            if found.reason not in self.first:
                self.first[found.reason] = ": ".join(filter(None, (str(found.where), found.said)))

    def reasons(self) -> str:
        """Return the counts by reason as words."""
        return ", ".join(f"{reason} {count:,}" for reason, count in self.left_out.most_common())

    def refuse_many(self, source: str, percent: float, at_the_end: bool = False) -> None:
        """Raise ScalerError when more than `percent` of the records are unusable; before the end, of many records."""
        unusable = sum(self.left_out[reason] for reason in UNUSABLE)
        if unusable > percent / 100 * self.records and (at_the_end or unusable >= ENOUGH):
            first = next(self.first[reason] for reason in self.first if reason in UNUSABLE)
            raise ScalerError(
                f"{source}: {unusable:,} of {self.records:,} records have no text ({self.reasons()}), more than "
                f"corpus.unusable_percent={percent:g}; the first: {first}"
            )


def documents(record: Any, source: Source, where: object, max_bytes: int) -> Iterator[Document | LeftOut]:
    """Yield the documents of a record, or why it has none: one, or one for each text where the field holds a list.

    Raises: ScalerError for a text without an id where the source has an `id_field`, and for a text that is too long.
    """
    found = field_of(record, source.text_field)
    if found is MISSING:
        yield LeftOut(NO_FIELD, where, f"no field {source.text_field!r} ({_there(record)}); {TEXT_REMEDY}")
        return
    texts = found if isinstance(found, list) else [found]
    if not texts:
        yield LeftOut(BLANK, where)
    for number, text in enumerate(texts):
        if text is None or (isinstance(text, float) and math.isnan(text)):  # NaN: pandas' word for null
            yield LeftOut(NULL, where)
        elif not isinstance(text, str):
            said = f"no text in the field {source.text_field!r} but {type(text).__name__} ({_there(record)})"
            yield LeftOut(WRONG_TYPE, where, f"{said}; {TEXT_REMEDY}")
        else:
            if len(text) > max_bytes:
                refuse_length(where, max_bytes)
            name = _id(record, source.id_field, where) if source.id_field else None
            yield document(text, name if len(texts) == 1 or name is None else f"{name}.{number}", where)


def document(text: str, name: str | None, where: object) -> Document | LeftOut:
    """Return a document, or why it is none: it is blank, or holds bytes that are not UTF-8 or half a character."""
    if not text.strip():
        return LeftOut(BLANK, where)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        return LeftOut(UNDECODABLE, where, _not_utf8(text[error.start]))
    return Document(text, name)


def field_of(record: Any, name: str) -> Any:
    """Return the field of that very name, else follow the path: "a.b" is the field b of a. MISSING where it is absent.

    >>> field_of({"a.b": 1, "a": {"b": 2}}, "a.b"), field_of({"a": {"b": 2}}, "a.b"), field_of({"a": None}, "a.b")
    (1, 2, None)
    """
    if not isinstance(record, dict):
        return MISSING
    names = name.split(".")
    for length in range(len(names), 0, -1):
        first, rest = ".".join(names[:length]), ".".join(names[length:])
        if first in record:
            found = record[first]
            return found if not rest or found is None else field_of(found, rest)
    return MISSING


def _id(record: Any, name: str, where: object) -> str:
    found = field_of(record, name)
    if found is MISSING or found is None:
        raise ScalerError(f"{where}: no field {name!r} ({_there(record)}); set the id_field")
    try:
        str(found).encode()
    except UnicodeEncodeError as error:
        raise ScalerError(f"{where}: the id in {name!r} is no Unicode text ({error.reason}); repair it") from error
    return str(found)


def _there(record: Any) -> str:
    return f"there: {', '.join(map(str, record)) if isinstance(record, dict) else type(record).__name__}"


def _not_utf8(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # as Python's surrogateescape spells a byte
        return f"not UTF-8 (byte 0x{code - 0xDC00:02x}); {BYTES_REMEDY}"
    return f"not Unicode text (half a character, surrogate \\u{code:04x}); repair it or leave it out"

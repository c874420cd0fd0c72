"""Read documents from files: text, JSON, tables, pages; plain or compressed; whole files or ranges of large ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

from data_prep.formats.texts import Document
from data_prep.sources import json_values, listing, pages, tables
from data_prep.sources.lines import BAD_BYTES, Place, Span, lines, refuse_change, refuse_length
from data_prep.sources.listing import File
from data_prep.sources.opening import BYTE_ORDER_MARK, named_errors, opened
from data_prep.sources.records import NO_MAIN_TEXT, LeftOut, document, documents
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError

MOST_FOR_A_FILE = 1 << 20  # bytes of the file in the middle above which files of text are not a document each


def unit_of(files: list[File], source: Source, many: int) -> str:
    """Return what a document is in files of text: as the recipe says, else a file where there are many small ones."""
    if source.text_unit is not None:
        return source.text_unit
    sizes = sorted(file.size for file in files if listing.kind_of(file.path.name) == listing.TEXT)
    return "file" if len(sizes) >= many and sizes[len(sizes) // 2] <= MOST_FOR_A_FILE else "paragraph"


def spans(file: File, unit: str, span_bytes: int) -> Iterator[Span]:
    """Yield ranges of a file whose documents are lines; one range of others, which are read from start to end."""
    kind = listing.kind_of(file.path.name)
    plain = not file.path.name.lower().endswith(listing.COMPRESSIONS)
    in_lines = plain and (kind == listing.LINES or (kind == listing.TEXT and unit == "line"))
    step = span_bytes if in_lines and file.size > span_bytes else max(1, file.size)
    for begin in range(0, max(1, file.size), step):
        end = None if begin + step >= file.size else begin + step
        yield Span(file.path, file.size, file.changed, unit, begin, end)


def read(span: Span, source: Source, max_bytes: int) -> Iterator[Document | LeftOut]:
    """Yield the documents of a span, in order, and in their place what is left out.

    Raises: ScalerError with file and place for input that cannot be read, has changed since it was listed, or has a
    document of more than `max_bytes`.
    """
    with named_errors(span.path):
        refuse_change(span)
        kind = listing.kind_of(span.path.name)
        if kind == listing.TEXT:
            yield from _text(span, max_bytes)
        elif kind == listing.PAGE:
            yield _page(span, max_bytes)
        else:
            for where, record in _records(span, kind, source, max_bytes):
                yield from documents(record, source, where, max_bytes)
        refuse_change(span)


def _records(span: Span, kind: str | None, source: Source, max_bytes: int) -> Iterator[tuple[object, Any]]:
    if kind == listing.PARQUET:
        return tables.records(span.path, source)
    if kind == listing.TABLE:
        return tables.rows(span, max_bytes)
    if kind == listing.JSON:
        return iter(json_values.Values(span.path, max_bytes))
    return ((where, _parse(line, where)) for where, line in lines(span, max_bytes) if line.strip())


def _parse(line: str, where: Place) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ScalerError(f"{where}: not JSON ({error}); repair or remove that line") from error


def _whole(span: Span, max_bytes: int) -> str:
    with opened(span.path) as file:
        content = file.read(max_bytes + 1)
    if len(content) > max_bytes:
        refuse_length(span.path, max_bytes)
    return content.removeprefix(BYTE_ORDER_MARK).decode(errors=BAD_BYTES)


def _page(span: Span, max_bytes: int) -> Document | LeftOut:
    page = document(_whole(span, max_bytes), None, span.path)
    if isinstance(page, LeftOut):
        return page
    text = pages.main_text(page.text)
    return document(text, None, span.path) if text else LeftOut(NO_MAIN_TEXT, span.path)


def _text(span: Span, max_bytes: int) -> Iterator[Document | LeftOut]:
    if span.unit == "file":
        yield document(_whole(span, max_bytes), None, span.path)
    elif span.unit == "line":
        yield from (document(line, None, where) for where, line in lines(span, max_bytes))
    else:
        for blank, group in itertools.groupby(lines(span, max_bytes), key=lambda line: not line[1].strip()):
            if not blank:
                yield _paragraph(group, max_bytes)


def _paragraph(group: Iterator[tuple[Place, str]], max_bytes: int) -> Document | LeftOut:
    found: list[str] = []
    size, first = 0, None
    for where, line in group:
        first = first or where
        found.append(line)
        size += len(line)
        if size > max_bytes:
            refuse_length(where, max_bytes)
    return document("\n".join(found), None, first)

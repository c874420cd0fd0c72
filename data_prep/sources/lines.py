"""Read lines of a file, or of a range of it: each line belongs to the range in which it begins."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple, NoReturn

from data_prep.sources.opening import BYTE_ORDER_MARK, opened
from scaler.core.errors import ScalerError

MIB = 1 << 20
BAD_BYTES = "surrogateescape"  # what is not UTF-8 becomes half surrogates, which no UTF-8 holds


@dataclass(frozen=True)
class Span:
    """A range of bytes of a file, to its end if `end` is None, with the size and the time of change of the file.

    Attributes:
        unit: of its text that is a document: paragraph, line or file.
    """

    path: Path
    size: int
    changed: int
    unit: str
    begin: int = 0
    end: int | None = None

    def __len__(self) -> int:
        return (self.size if self.end is None else self.end) - self.begin


class Place(NamedTuple):
    """The place of a line, numbered from 1 after byte `begin` of a file; lines before are counted only for messages."""

    path: Path
    begin: int
    number: int

    def __str__(self) -> str:
        number = self.number
        if self.begin:
            with self.path.open("rb") as file:
                number += _count_lines(file, self.begin)
        return f"{self.path}, line {number}"


def refuse_change(span: Span) -> None:
    """Raise ScalerError when the file is no longer what it was when it was listed."""
    found = os.stat(span.path)
    if (found.st_size, found.st_mtime_ns) != (span.size, span.changed):
        raise ScalerError(f"{span.path}: has changed while it was read; let it be written to the end, and run again")


def refuse_length(where: object, max_bytes: int) -> NoReturn:
    """Raise ScalerError: a document is too long."""
    raise ScalerError(
        f"{where}: a document of more than {max_bytes // MIB} MiB; cut it, or raise corpus.max_document_mib"
    )


def lines(span: Span, max_bytes: int) -> Iterator[tuple[Place, str]]:
    """Yield the lines that begin in a span, without their line ends, and the place of each.

    Bytes that are not UTF-8 become half surrogates. Raises ScalerError for a line of more than `max_bytes`.
    """
    for where, line in raw_lines(span, max_bytes):
        yield where, line.decode(errors=BAD_BYTES).rstrip("\r\n")


def raw_lines(span: Span, max_bytes: int) -> Iterator[tuple[Place, bytes]]:
    """Yield the lines that begin in a span as they are, but for a byte order mark at the start of the file."""
    with opened(span.path) as file:
        begin = 0
        if span.begin:
            begin = file.seek(span.begin - 1)
            begin += len(_line(file, max_bytes, Place(span.path, begin, 1)))  # the one before ends here
        at = begin
        for number in itertools.count(1):
            where = Place(span.path, begin, number)
            if (span.end is not None and at >= span.end) or not (line := _line(file, max_bytes, where)):
                return
            yield where, line.removeprefix(BYTE_ORDER_MARK) if at == 0 else line
            at += len(line)


def _line(file: IO[bytes], max_bytes: int, where: Place) -> bytes:
    line = file.readline(max_bytes + 1)
    if len(line) > max_bytes:
        refuse_length(where, max_bytes)
    return line


def _count_lines(file: IO[bytes], end: int) -> int:
    """Return the number of line ends before the byte `end`."""
    count, left = 0, end
    while left and (block := file.read(min(left, MIB))):
        count += block.count(b"\n")
        left -= len(block)
    return count

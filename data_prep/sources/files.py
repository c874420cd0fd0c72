"""Read documents from files: text, JSON lines, Parquet; plain or compressed; whole files or ranges of large ones."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from data_prep.formats.texts import Document
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError

EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
MIB = 1 << 20
FEW_ROWS = 1000  # of a Parquet file, read at once


@dataclass(frozen=True)
class Span:
    """A range of bytes of a file, to its end if `end` is None, with the size and the time of change of the file."""

    path: Path
    size: int
    changed: int
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


def find(path: Path) -> list[Path]:
    """Return the text files at or below `path`, sorted by name. Raises ScalerError when there is none."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = [file for file in files if file.name.endswith(EXTENSIONS)]
    if not found:
        raise ScalerError(f"{path}: no text found; {', '.join(EXTENSIONS)} can be read")
    return found


def spans(file: Path, source: Source, span_bytes: int) -> Iterator[Span]:
    """Yield ranges of a file whose documents are lines; one range of others, which are read from start to end."""
    found = file.stat()
    lines = file.name.endswith(".jsonl") or (file.name.endswith(".txt") and source.text_unit == "line")
    step = span_bytes if lines and found.st_size > span_bytes else max(1, found.st_size)
    for begin in range(0, max(1, found.st_size), step):
        end = None if begin + step >= found.st_size else begin + step
        yield Span(file, found.st_size, found.st_mtime_ns, begin, end)


def read(span: Span, source: Source, max_bytes: int) -> Iterator[Document]:
    """Yield the documents of a span, in order.

    Raises: ScalerError with file and place for input that cannot be read, has changed since it was cut, or has a
    document of more than `max_bytes`.
    """
    path = span.path
    try:
        _refuse_change(span)
        if path.name.endswith(".parquet"):
            yield from _parquet(path, source, max_bytes)
        elif path.name.endswith(".txt"):
            yield from map(Document, _text(span, source.text_unit, max_bytes))
        else:
            for where, line in _lines(span, max_bytes):
                if line.strip():
                    yield from documents(_parse(line, where), source, where, max_bytes)
        _refuse_change(span)
    except UnicodeDecodeError as error:
        raise ScalerError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}); convert it, for example "
            f"with `iconv -f latin1 -t utf-8`"
        ) from error
    except FileNotFoundError as error:
        raise ScalerError(f"{path}: has vanished while the corpus was read; bring it back and run again") from error
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ScalerError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
        raise ScalerError(f"{path}: the file is damaged or cut short ({error}); fetch it again") from error


def _refuse_change(span: Span) -> None:
    found = span.path.stat()
    if (found.st_size, found.st_mtime_ns) != (span.size, span.changed):
        raise ScalerError(f"{span.path}: has changed while it was read; let it be written to the end, and run again")


def _open(path: Path) -> IO[bytes]:
    if path.name.endswith(".gz"):
        return gzip.open(path)  # type: ignore[return-value]
    if path.name.endswith(".zst"):
        import pyarrow

        # pyarrow notices a stream that is cut short; the reader of the package zstandard just ends there
        return io.BufferedReader(pyarrow.input_stream(path, compression="zstd"))
    return path.open("rb")


def _lines(span: Span, max_bytes: int) -> Iterator[tuple[Place, str]]:
    """Yield the lines that begin in a span, without their line ends, and the place of each."""
    with _open(span.path) as file:
        begin = 0
        if span.begin:
            begin = file.seek(span.begin - 1)
            begin += len(_line(file, max_bytes, Place(span.path, begin, 1)))  # the one before ends here
        at = begin
        for number in itertools.count(1):
            where = Place(span.path, begin, number)
            if (span.end is not None and at >= span.end) or not (line := _line(file, max_bytes, where)):
                return
            start = len(BYTE_ORDER_MARK) if at == 0 and line.startswith(BYTE_ORDER_MARK) else 0
            yield where, line[start:].decode().rstrip("\r\n")
            at += len(line)


def _count_lines(file: IO[bytes], end: int) -> int:
    """Return the number of line ends before the byte `end`."""
    count, left = 0, end
    while left and (block := file.read(min(left, MIB))):
        count += block.count(b"\n")
        left -= len(block)
    return count


def _line(file: IO[bytes], max_bytes: int, where: Place) -> bytes:
    line = file.readline(max_bytes + 1)
    if len(line) > max_bytes:
        _refuse_length(where, max_bytes)
    return line


def _refuse_length(where: str | Path | Place, max_bytes: int) -> None:
    raise ScalerError(
        f"{where}: a document of more than {max_bytes // MIB} MiB; cut it, or raise corpus.max_document_mib"
    )


def _parse(line: str, where: Place) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ScalerError(f"{where}: not JSON ({error}); repair or remove that line") from error


def documents(record: Any, source: Source, where: str | Place, max_bytes: int) -> Iterator[Document]:
    """The documents of a record: one, several where the field holds a list of texts, none where it holds null."""
    name = None
    if source.id_field:
        name = record.get(source.id_field) if isinstance(record, dict) else None
        if name is None:
            raise ScalerError(f"{where}: no field {source.id_field!r} ({_there(record)}); set the id_field")
        name = _unicode(str(name), where)
    found = record
    for key in source.text_field.split("."):
        if isinstance(found, dict) and key in found and found[key] is None:
            return
        found = found.get(key) if isinstance(found, dict) else None
    texts = found if isinstance(found, list) else [found]
    for number, text in enumerate(texts):
        if not isinstance(text, str):
            raise ScalerError(
                f"{where}: no text in the field {source.text_field!r} ({_there(record)}); set the text_field"
            )
        if len(text) > max_bytes:
            _refuse_length(where, max_bytes)
        yield Document(_unicode(text, where), name if len(texts) == 1 or name is None else f"{name}.{number}")


def _there(record: Any) -> str:
    return f"there: {', '.join(map(str, record)) if isinstance(record, dict) else type(record).__name__}"


def _unicode(text: str, where: str | Place) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character, "\\ud800"
        raise ScalerError(f"{where}: not Unicode text ({error.reason}); repair it or leave it out") from error
    return text


def _text(span: Span, unit: str, max_bytes: int) -> Iterator[str]:
    if unit == "file":
        if span.size > max_bytes:
            _refuse_length(span.path, max_bytes)
        yield span.path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode()
    elif unit == "line":
        yield from (line for _, line in _lines(span, max_bytes))
    else:
        for blank, group in itertools.groupby(_lines(span, max_bytes), key=lambda line: not line[1].strip()):
            if not blank:
                lines, size = [], 0
                for where, line in group:
                    lines.append(line)
                    size += len(line)
                    if size > max_bytes:
                        _refuse_length(where, max_bytes)
                yield "\n".join(lines)


def _parquet(path: Path, source: Source, max_bytes: int) -> Iterator[Document]:
    import pyarrow
    import pyarrow.parquet

    name = source.text_field.split(".")[0]
    columns = {"text_field": name, **({"id_field": source.id_field} if source.id_field else {})}
    try:
        file = pyarrow.parquet.ParquetFile(path)
        for key, column in columns.items():
            if column not in file.schema_arrow.names:
                raise ScalerError(
                    f"{path}: no column {column!r} (there: {', '.join(file.schema_arrow.names)}); set the {key}"
                )
        kind = file.schema_arrow.field(name).type
        while not pyarrow.types.is_string(kind) and hasattr(kind, "value_type"):
            kind = kind.value_type
        texts = (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view())
        if kind not in texts and not pyarrow.types.is_struct(kind):
            raise ScalerError(f"{path}: the column {name!r} is {kind}, not text; set the text_field")
        number = 0
        for batch in file.iter_batches(batch_size=FEW_ROWS, columns=list(columns.values())):
            for record in batch.to_pylist():
                number += 1
                yield from documents(record, source, f"{path}, row {number}", max_bytes)
    except pyarrow.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise ScalerError(f"{path}: not a whole Parquet file ({reason}); fetch it again") from error

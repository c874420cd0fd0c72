"""Read the rows of tables, each a mapping by the names in the first line: CSV, fields between tabs, Parquet."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources.lines import BAD_BYTES, MIB, Span, raw_lines, refuse_length
from data_prep.sources.listing import ending_of
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError

MOST_ROWS = 1000  # of a Parquet file, read at once
BATCH_BYTES = 64 * MIB  # of Parquet's rows at once, but for a single row that has more
BUFFER_BYTES = MIB  # of Parquet's pages, read at once


def rows(span: Span, max_bytes: int) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield place and fields of the rows of a CSV file, or of one with fields between tabs.

    Quotes have a meaning in CSV alone. Between tabs they are ordinary characters, as in GLUE's files.

    Raises: ScalerError for a row that has not as many fields as the first line, and for two columns of one name.
    """
    csv.field_size_limit(max_bytes)
    tabs: Any = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if ending_of(span.path.name).startswith(".tsv") else {}
    text = (line.decode(errors=BAD_BYTES) for _, line in raw_lines(span, max_bytes))
    reader: Any = csv.reader(text, strict=True, **tabs)
    header: list[str] = []
    while True:
        where = f"{span.path}, line {reader.line_num + 1}"  # the first one of a quoted text, which may have several
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "limit" in str(error):
                refuse_length(where, max_bytes)
            raise ScalerError(f"{where}: not CSV ({error}); write quotes within a text twice") from error
        if row and not header:
            header = row
            if twice := [name for name, count in Counter(header).items() if name and count > 1]:
                raise ScalerError(f"{where}: {twice[0]!r} names two columns; rename or remove one")
        elif row and len(row) != len(header):
            raise ScalerError(
                f"{where}: {len(row)} fields, but the first line names {len(header)}; quote a text that has more"
            )
        elif row:
            yield where, dict(zip(header, row, strict=True))


def records(path: Path, source: Source) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield place and fields of the rows of a Parquet file, as many at once as memory allows.

    Raises: ScalerError for a file that is damaged, or whose column of text holds another type in every row.
    """
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path, buffer_size=BUFFER_BYTES)
        names = file.schema_arrow.names
        text, name = _column(names, source.text_field), _column(names, source.id_field or "")
        if source.id_field and name is None:
            raise ScalerError(f"{path}: no column {source.id_field!r} (there: {', '.join(names)}); set the id_field")
        if text is None:
            yield from ((f"{path}, row {row + 1}", dict.fromkeys(names)) for row in range(file.metadata.num_rows))
            return
        _refuse_type(path, file.schema_arrow.field(text).type, text)
        columns = [column for column in dict.fromkeys((text, name)) if column is not None]
        number = 0
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(_rows_at_once(file, path, group, columns), [group], columns):
                for record in _as_python(batch):
                    number += 1
                    yield f"{path}, row {number}", record
    except pyarrow.ArrowMemoryError as error:
        raise MemoryError from error
    except pyarrow.ArrowNotImplementedError as error:
        raise ScalerError(f"{path}: Parquet that pyarrow cannot read ({_line(error)}); write it anew") from error
    except pyarrow.ArrowInvalid as error:
        raise ScalerError(f"{path}: not a whole Parquet file ({_line(error)}); fetch it again") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _column(names: list[str], name: str) -> str | None:
    """Return the column that holds a field: the one of that very name, or the longest path above it."""
    parts = name.split(".")
    return next((c for c in (".".join(parts[:n]) for n in range(len(parts), 0, -1)) if c in names), None)


def _refuse_type(path: Path, kind: Any, column: str) -> None:
    from pyarrow import types

    while not types.is_string(kind) and hasattr(kind, "value_type"):
        kind = kind.value_type
    # a column of nulls alone has the type null, or double where pandas wrote it
    could_be = (types.is_string, types.is_large_string, types.is_string_view, types.is_struct, types.is_null)
    if not any(holds(kind) for holds in (*could_be, types.is_floating)):
        raise ScalerError(f"{path}: the column {column!r} is {kind}, not text; set the text_field")


def _rows_at_once(file: Any, path: Path, group: int, columns: list[str]) -> int:
    """Return how many rows of a row group are read at once.

    A page of some bytes may stand for terabytes: each row can name the same long text of the group's dictionary. So
    the largest row is taken to be the whole dictionary, which is read with the group's first row.
    """
    import pyarrow.parquet

    of_group = file.metadata.row_group(group)
    leaves = [of_group.column(number) for number in range(of_group.num_columns)]
    leaves = [leaf for leaf in leaves if any(f"{leaf.path_in_schema}.".startswith(f"{name}.") for name in columns)]
    row_bytes: int = sum(leaf.total_uncompressed_size for leaf in leaves) // max(1, of_group.num_rows)
    named = [leaf.path_in_schema for leaf in leaves if leaf.has_dictionary_page]
    if named and of_group.num_rows:
        coded = pyarrow.parquet.ParquetFile(
            path, metadata=file.metadata, read_dictionary=named, buffer_size=BUFFER_BYTES
        )
        row_bytes += next(coded.iter_batches(1, [group], columns)).get_total_buffer_size()
    return max(1, min(MOST_ROWS, BATCH_BYTES // max(1, row_bytes)))


def _as_python(batch: Any) -> list[dict[str, Any]]:
    """Return the rows of a batch. Bytes that are not UTF-8 become half surrogates."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        columns = {name: batch.column(name) for name in batch.schema.names}
        return [{name: _plain(column[row]) for name, column in columns.items()} for row in range(batch.num_rows)]


def _plain(value: Any) -> Any:
    """Return an Arrow scalar as Python's value."""
    import pyarrow

    if not value.is_valid:
        return None
    if isinstance(value, pyarrow.DictionaryScalar):
        return _plain(value.value)
    if isinstance(value, pyarrow.StructScalar):
        return {name: _plain(value[name]) for name in value}
    if isinstance(value, pyarrow.ListScalar):  # a large list, too
        return [_plain(item) for item in value.values]
    if isinstance(value, pyarrow.StringScalar):  # a large string, too
        return value.as_buffer().to_pybytes().decode(errors=BAD_BYTES)
    return value.as_py()

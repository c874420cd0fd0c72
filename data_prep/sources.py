"""Where documents come from: the AWS documentation in botocore, local files and folders, Hugging Face data sets."""

from __future__ import annotations

import gzip
import html
import io
import itertools
import json
import os
import re
import zlib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from scaler.errors import ScalerError
from scaler.recipe import Corpus

AWS_DOCS = "aws-docs"
EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
TAG = re.compile(r"<[^>]+>")
MAX_ERROR_CHARACTERS = 200


def identity(settings: Corpus) -> dict[str, Any]:
    """What the source is made of, so that a change of it is seen: a version, or files with sizes and times."""
    if settings.source == AWS_DOCS:
        return {"botocore": _botocore_version()}
    path = Path(settings.source)
    if path.exists():
        return {str(file): [file.stat().st_size, file.stat().st_mtime_ns] for file in find_files(path)}
    return {"hub": settings.source}


def documents(settings: Corpus) -> Iterator[str]:
    """The texts of a corpus, in a fixed order. Raises ScalerError for input that cannot be read."""
    if settings.source == AWS_DOCS:
        yield from aws_docs()
    elif Path(settings.source).exists():
        for file in find_files(Path(settings.source)):
            yield from read_file(file, settings)
    else:
        yield from hub(settings)


def find_files(path: Path) -> list[Path]:
    """The text files at or below `path`, sorted by name. Raises ScalerError when there is none."""
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    found = [file for file in files if file.name.endswith(EXTENSIONS)]
    if not found:
        raise ScalerError(f"{path}: no text found; {', '.join(EXTENSIONS)} can be read")
    return found


def read_file(path: Path, settings: Corpus) -> Iterator[str]:
    """The documents of one file. Raises ScalerError that names file and place when it cannot be read."""
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet(path, settings.text_field)
        elif path.name.endswith(".txt"):
            yield from _text(path, settings.text_unit)
        else:
            yield from _json_lines(path, settings.text_field)
    except UnicodeDecodeError as error:
        raise ScalerError(
            f"{path}: not UTF-8 (byte 0x{error.object[error.start]:02x}: {error.reason}); convert it, for example "
            f"with `iconv -f latin1 -t utf-8`"
        ) from error
    except (EOFError, OSError, zlib.error) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise ScalerError(f"{path}: cannot be read ({os.strerror(error.errno)})") from error
        raise ScalerError(f"{path}: the file is damaged or cut short ({error}); fetch it again") from error


def _open(path: Path) -> IO[str]:
    if path.name.endswith(".gz"):
        return gzip.open(path, "rt", encoding="utf-8")
    if path.name.endswith(".zst"):
        import pyarrow

        # pyarrow notices a stream that is cut short; the reader of the package zstandard just ends there
        return io.TextIOWrapper(pyarrow.input_stream(path, compression="zstd"), encoding="utf-8")
    return path.open(encoding="utf-8")


def _json_lines(path: Path, text_field: str) -> Iterator[str]:
    with _open(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                raise ScalerError(f"{path}, line {number}: not JSON ({error}); repair or remove that line") from error
            yield _field(record, text_field, f"{path}, line {number}")


def _field(record: Any, text_field: str, where: str) -> str:
    if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
        known = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
        raise ScalerError(f"{where}: no text in the field {text_field!r} (there: {known}); set corpus.text_field")
    text = str(record[text_field])
    try:
        text.encode()
    except UnicodeEncodeError as error:  # JSON can spell half a character, "\\ud800"
        raise ScalerError(f"{where}: not Unicode text ({error.reason}); repair it or leave it out") from error
    return text


def _text(path: Path, unit: str) -> Iterator[str]:
    with path.open(encoding="utf-8") as file:
        if unit == "file":
            yield file.read()
        elif unit == "line":
            yield from (line.rstrip("\n") for line in file)
        else:
            for blank, lines in itertools.groupby(file, key=lambda line: not line.strip()):
                if not blank:
                    yield "".join(lines).rstrip("\n")


def _parquet(path: Path, text_field: str) -> Iterator[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        if text_field not in file.schema_arrow.names:
            raise ScalerError(
                f"{path}: no column {text_field!r} (there: {', '.join(file.schema_arrow.names)}); set corpus.text_field"
            )
        kind = file.schema_arrow.field(text_field).type
        characters = kind.value_type if pyarrow.types.is_dictionary(kind) else kind
        if characters not in (pyarrow.string(), pyarrow.large_string(), pyarrow.string_view()):
            raise ScalerError(f"{path}: the column {text_field!r} is {kind}, not text; set corpus.text_field")
        for batch in file.iter_batches(columns=[text_field]):
            yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowInvalid as error:
        reason = " ".join(str(error).split())
        raise ScalerError(f"{path}: not a whole Parquet file ({reason}); fetch it again") from error


def hub(settings: Corpus) -> Iterator[str]:
    """Stream a Hugging Face data set. Raises ScalerError when it cannot be loaded."""
    import datasets

    try:
        rows = datasets.load_dataset(settings.source, settings.hub_config, split=settings.hub_split, streaming=True)
        for number, record in enumerate(rows):
            yield _field(record, settings.text_field, f"{settings.source}, row {number}")
    except ScalerError:
        raise
    except Exception as error:  # the hub client's errors have no common base
        reason = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
        raise ScalerError(
            f"{settings.source!r}: no such file or folder, and no Hugging Face data set that can be loaded ({reason})"
        ) from error


def _botocore_version() -> str:
    try:
        return metadata.version("botocore")
    except metadata.PackageNotFoundError as error:
        raise ScalerError("aws-docs needs the package botocore; install it with `pip install '.[aws-docs]'`") from error


def aws_docs() -> Iterator[str]:
    """The AWS API reference that botocore carries, as plain text, each distinct page once.

    A page is a service, an operation with the parameters that go in and come out, or a data type with its members.
    Only the newest version of each API is read, for older ones repeat most of it.
    """
    _botocore_version()
    from botocore.loaders import Loader

    loader = Loader()
    seen: set[str] = set()
    for service in loader.list_available_services("service-2"):
        for page in _pages(loader.load_service_model(service, "service-2")):
            if page and page not in seen:
                seen.add(page)
                yield page


def _plain(markup: str) -> str:
    return " ".join(html.unescape(TAG.sub(" ", markup)).split())


def _pages(api: dict[str, Any]) -> Iterator[str]:
    shapes = api["shapes"]
    in_operations = set()

    def members(shape: dict[str, Any]) -> list[str]:
        described = shape.get("members", {}).items()
        return [f"{name}: {_plain(m['documentation'])}" for name, m in described if m.get("documentation")]

    yield _plain(api.get("documentation", ""))
    for operation in api["operations"].values():
        lines = [_plain(operation.get("documentation", ""))]
        for direction in ("input", "output"):
            if direction in operation:
                in_operations.add(operation[direction]["shape"])
                lines += members(shapes[operation[direction]["shape"]])
        yield "\n".join(filter(None, lines))
    for name, shape in shapes.items():
        if name not in in_operations:
            yield "\n".join(filter(None, [_plain(shape.get("documentation", "")), *members(shape)]))

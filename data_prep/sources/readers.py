"""Read documents from a source: the AWS documentation in botocore, local files and folders, Hugging Face data sets.

A source is cut into pieces, which are read independently of each other: files, ranges of large files, files of a hub
data set. The pieces depend on the source alone, so what is read is the same however many processes read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_prep.formats.texts import Document
from data_prep.sources import aws_docs, files
from data_prep.sources.files import Span
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError

AWS_DOCS = "aws-docs"
AWS_PIECES = 16
MAX_ERROR_CHARACTERS = 200


@dataclass(frozen=True)
class Piece:
    """A part of a source: spans of files, or one of `of` shares of a hub data set or of the AWS documentation."""

    source: Source
    spans: tuple[Span, ...] = ()
    share: int = 0
    of: int = 1
    size: int = 1


def pieces(source: Source, piece_bytes: int) -> list[Piece]:
    """Cut a source into pieces of about `piece_bytes`. Raises ScalerError when there is nothing to read."""
    if source.source == AWS_DOCS:
        aws_docs.version()
        return [Piece(source, share=share, of=AWS_PIECES) for share in range(AWS_PIECES)]
    path = Path(source.source)
    if not path.exists():
        shares = _hub_rows(source).num_shards
        return [Piece(source, share=share, of=shares) for share in range(shares)]
    cut: list[Piece] = []
    spans: list[Span] = []
    for span in itertools.chain.from_iterable(files.spans(file, source, piece_bytes) for file in files.find(path)):
        spans.append(span)
        size = sum(map(len, spans))
        if size >= piece_bytes:
            cut.append(Piece(source, tuple(spans), size=size))
            spans = []
    if spans:
        cut.append(Piece(source, tuple(spans), size=sum(map(len, spans))))
    return cut


def identity(source: Source, cut: list[Piece]) -> dict[str, Any]:
    """Return what identifies a source, so that a change of it is seen: a version, or files with sizes and times."""
    if source.source == AWS_DOCS:
        return {"botocore": aws_docs.version()}
    of_files = {str(span.path): [span.size, span.changed] for piece in cut for span in piece.spans}
    return of_files or {"hub": source.source, "revision": source.hub_revision, "shares": len(cut)}


def read(piece: Piece, max_bytes: int) -> Iterator[Document]:
    """Yield the documents of a piece, in a fixed order.

    Raises: ScalerError with file and place for input that cannot be read, has changed since the piece was cut,
    or has a document of more than `max_bytes`.
    """
    if piece.source.source == AWS_DOCS:
        yield from map(Document, aws_docs.documents(piece.share, piece.of))
    elif piece.spans:
        for span in piece.spans:
            yield from files.read(span, piece.source, max_bytes)
    else:
        yield from _hub(piece, max_bytes)


def _unloadable(source: Source, error: Exception) -> ScalerError:
    reason = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
    return ScalerError(
        f"{source.source!r}: no such file or folder, and no Hugging Face data set that can be loaded ({reason})"
    )


def _hub_rows(source: Source) -> Any:
    import datasets

    try:
        return datasets.load_dataset(
            source.source, source.hub_config, split=source.hub_split, revision=source.hub_revision, streaming=True
        )
    except Exception as error:  # the hub client's errors have no common base
        raise _unloadable(source, error) from error


def _hub(piece: Piece, max_bytes: int) -> Iterator[Document]:
    """Stream one share of a Hugging Face data set. Raises ScalerError when it cannot be loaded."""
    source = piece.source
    rows = iter(_hub_rows(source).shard(num_shards=piece.of, index=piece.share))
    for number in itertools.count():
        try:
            record = next(rows)
        except StopIteration:
            return
        except Exception as error:  # likewise
            raise _unloadable(source, error) from error
        yield from files.documents(record, source, f"{source.source}, share {piece.share}, row {number}", max_bytes)

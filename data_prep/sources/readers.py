"""Read documents from a source: the AWS documentation in botocore, local files and folders, Hugging Face data sets.

A source is cut into pieces, which are read independently of each other: files, ranges of large files, files of a hub
data set. The pieces depend on the source alone, so what is read is the same however many processes read it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from data_prep.formats.texts import Document
from data_prep.sources import aws_docs, files, hub, listing, pages
from data_prep.sources.lines import Span
from data_prep.sources.records import LeftOut, document
from scaler.config.data_sections import Source
from scaler.core.hub import commit_of

AWS_DOCS = "aws-docs"
AWS_PIECES = 16
MANY = 300  # small files of text from which on each is a document, unless the shares of the splits say otherwise


@dataclass(frozen=True)
class Piece:
    """A part of a source: spans of files, or one of `of` shares of a hub data set or of the AWS documentation."""

    source: Source
    spans: tuple[Span, ...] = ()
    commit: str = ""
    share: int = 0
    of: int = 1
    size: int = 1


@dataclass(frozen=True)
class Plan:
    """A source that was looked at.

    Attributes:
        pieces: into which it is cut.
        identity: a version, or files with sizes and times, so that a change of the source is seen.
        facts: for the manifest: files read and left out and the unit of text, or the commit of a hub data set.
        folders: device and inode of each folder that was listed.
    """

    source: Source
    pieces: list[Piece]
    identity: dict[str, Any]
    facts: dict[str, Any] = field(default_factory=dict)
    folders: frozenset[tuple[int, int]] = frozenset()


def plan(source: Source, piece_bytes: int, many: int = MANY) -> Plan:
    """Cut a source into pieces of about `piece_bytes`.

    Args:
        many: files of text from which on each is a document where the recipe does not say.

    Raises: ScalerError when there is nothing to read, or something cannot be listed.
    """
    if source.source == AWS_DOCS:
        return Plan(source, _shares(source, AWS_PIECES), {"botocore": aws_docs.version()})
    if listing.is_there(source.source):
        return _of_files(source, piece_bytes, many)
    commit = commit_of(source.source, source.hub_revision)
    shares = hub.rows(source, commit).num_shards
    identity = {"hub": source.source, "revision": source.hub_revision, "shares": shares}
    return Plan(source, _shares(source, shares, commit), identity, {"commit": commit})


def _shares(source: Source, of: int, commit: str = "") -> list[Piece]:
    return [Piece(source, commit=commit, share=share, of=of) for share in range(of)]


def _of_files(source: Source, piece_bytes: int, many: int) -> Plan:
    found = listing.find(source.source)
    kinds = {listing.kind_of(file.path.name) for file in found.files}
    unit = files.unit_of(found.files, source, many)
    cut: list[Piece] = []
    spans: list[Span] = []
    size = 0
    for span in itertools.chain.from_iterable(files.spans(file, unit, piece_bytes) for file in found.files):
        spans.append(span)
        size += len(span)
        if size >= piece_bytes:
            cut.append(Piece(source, tuple(spans), size=size))
            spans, size = [], 0
    if spans:
        cut.append(Piece(source, tuple(spans), size=size))
    identity: dict[str, Any] = {str(file.path): [file.size, file.changed] for file in found.files}
    if listing.PAGE in kinds:
        identity["trafilatura"] = pages.version()
    facts = {"files": found.facts(), **({"text_unit": unit} if listing.TEXT in kinds else {})}
    return Plan(source, cut, identity, facts, frozenset(found.folders))


def read(piece: Piece, max_bytes: int) -> Iterator[Document | LeftOut]:
    """Yield the documents of a piece, in a fixed order, and in their place what is left out.

    Raises: ScalerError with file and place for input that cannot be read, has changed since the piece was cut,
    or has a document of more than `max_bytes`.
    """
    if piece.source.source == AWS_DOCS:
        for text in aws_docs.documents(piece.share, piece.of):
            yield document(text, None, AWS_DOCS)
    elif piece.spans:
        for span in piece.spans:
            yield from files.read(span, piece.source, max_bytes)
    else:
        yield from hub.read(piece.source, piece.commit, piece.share, piece.of, max_bytes)

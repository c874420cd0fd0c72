"""Read the manifests of prepared folders; refuse a missing key, a value of a wrong type, and a name that is a path.

Keys that are not listed here are let through, because manifests say more than what other stages read.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import NotRequired, TypedDict

from scaler.core.errors import ScalerError
from scaler.core.files import MANIFEST, PREPARE_AGAIN, read_json, read_manifest

STRICT = ConfigDict(strict=True, allow_inf_nan=False)  # also of what is within
File = TypeVar("File")
Count = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(pattern=r"^\w[\w.-]*$")]  # of a file in the folder, and no path to elsewhere
FilesAndBytes = Annotated[list[Count], Field(min_length=2, max_length=2)]
Checksum = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]


class OfFiles(TypedDict):
    """The files and bytes of a source by ending: those that were read, and those that were not, by reason."""

    read: dict[str, FilesAndBytes]
    left_out: dict[str, dict[str, FilesAndBytes]]


class OfSource(TypedDict):
    """What was read of a source."""

    source: str
    name: NotRequired[str]
    documents: NotRequired[Count]
    characters: NotRequired[Count]
    documents_in: NotRequired[Count]
    left_out: NotRequired[dict[str, Count]]
    first: NotRequired[dict[str, str]]
    files: NotRequired[OfFiles]
    text_unit: NotRequired[Literal["paragraph", "line", "file"]]


class Step(TypedDict):
    """A stage that the data went through."""

    stage: str
    settings: dict[str, Any]
    counts: NotRequired[dict[str, Count]]


class OfText(TypedDict):
    """A file of text."""

    name: Name
    source: str
    documents: Count
    characters: Count
    bytes: Count
    xxh3: Checksum


class OfShard(TypedDict):
    """A shard of token ids."""

    name: Name
    source: NotRequired[str | None]
    documents: Count
    tokens: Count
    characters: NotRequired[Count | None]
    lengths: NotRequired[list[Count]]
    bin_xxh3: Checksum
    idx_xxh3: Checksum


class OfRows(TypedDict):
    """A file of rows."""

    name: Name
    source: NotRequired[str | None]
    rows: Count
    tokens: Count
    least_maskable: Count
    documents: Count
    dropped_rows: Count
    text_tokens: NotRequired[Count | None]
    characters: NotRequired[Count | None]
    xxh3: Checksum


class OfMix(TypedDict):
    """A source's part of the mix."""

    source: str
    available_tokens: Count
    tokens: Count
    share: float
    epochs: float


class Splits(TypedDict, Generic[File]):
    """The files of each split."""

    train: list[File]
    heldout: NotRequired[list[File]]
    test: NotRequired[list[File]]


@with_config(STRICT)
class Text(TypedDict):
    """The manifest of corpus, clean or dedup."""

    made_from: dict[str, Any]
    sources: list[OfSource]
    history: list[Step]
    documents_in: NotRequired[Count]
    counts: NotRequired[dict[str, Count]]
    splits: Splits[OfText]


@with_config(STRICT)
class OfTokenizer(TypedDict):
    """The manifest of a tokenizer."""

    made_from: dict[str, Any]
    vocab_size: Size
    tokenizer_xxh3: Checksum
    history: NotRequired[list[Step]]


@with_config(STRICT)
class Shards(TypedDict):
    """The manifest of shards."""

    made_from: dict[str, Any]
    vocab_size: Size
    tokenizer_xxh3: Checksum
    strip_ids: list[Count]
    sources: list[OfSource]
    history: list[Step]
    documents_in: NotRequired[Count]
    counts: NotRequired[dict[str, Count]]
    splits: Splits[OfShard]


class Coverage(TypedDict):
    """The fractions that have a vector which is not drawn."""

    entries: float
    tokens: float


class VectorSettings(TypedDict):
    """Where the vectors come from."""

    ready_made: str | None


class OfVectors(TypedDict):
    """What the vectors were made from."""

    settings: VectorSettings


@with_config(STRICT)
class Vectors(TypedDict):
    """The manifest of word vectors."""

    made_from: OfVectors
    vocab_size: Size
    vector_size: Size
    tokenizer_xxh3: Checksum
    tokens: Count
    coverage: Coverage
    history: list[Step]


@with_config(STRICT)
class Rows(TypedDict):
    """The manifest of rows."""

    made_from: dict[str, Any]
    seq_len: Size
    vocab_size: Size
    tokenizer_xxh3: Checksum
    unigram_xxh3: Checksum
    mix: list[OfMix]
    sources: list[OfSource]
    documents_in: NotRequired[Count]
    counts: NotRequired[dict[str, Count]]
    splits: Splits[OfRows]


@with_config(STRICT)
class Labels(TypedDict):
    """The manifest of labelled tasks."""

    made_from: dict[str, Any]
    tasks: dict[str, dict[str, dict[str, Any]]]
    repeats_left_out: dict[str, Count]
    accuracy_of_rules: dict[str, float]


KINDS: dict[str, Any] = {
    **dict.fromkeys(("corpus", "clean", "dedup"), Text),
    **{"tokenizer": OfTokenizer, "shards": Shards, "word2vec": Vectors, "rows": Rows, "labels": Labels},
}


@functools.cache
def _adapter(kind: str) -> TypeAdapter[Any]:
    return TypeAdapter(KINDS[kind])


def kind_of(folder: Path) -> str:
    """Return the kind that a folder's manifest names; "" where there is no manifest, or it names none."""
    try:
        return str(read_json(folder / MANIFEST).get("kind", ""))
    except ScalerError:
        return ""


def read(folder: Path, kind: str) -> dict[str, Any]:
    """Return the manifest of a folder of one kind, in which what other stages read is of the right type.

    Raises: ScalerError when there is none, or a key is missing or wrong.
    """
    content = read_manifest(folder, kind)
    try:
        _adapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise ScalerError(f"{folder / MANIFEST}: is damaged ({place}: {first['msg']}); {PREPARE_AGAIN}") from error
    return content

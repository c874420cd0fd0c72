"""Read labelled texts and sentences from files, strict about every line and what the task allows.

A text has one class ("classification"; "sentiment" with exactly two classes) or any number ("multilabel"). A sentence
has a BIO tag for each word ("tokens").
"""

from __future__ import annotations

import csv
import functools
import io
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler.core.errors import ScalerError, nearest

TOKENS, MULTILABEL, SENTIMENT = "tokens", "multilabel", "sentiment"
TASKS = ("classification", SENTIMENT, MULTILABEL, TOKENS)
DEFAULT_FIELDS = {TOKENS: ("tokens", "tags"), MULTILABEL: ("text", "labels")}  # others: "text", "label"
SUFFIXES = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "tsv", ".conll": "conll"}
SEPARATOR = "|"  # of several labels in one field
SENTIMENTS = {"0": "negative", "1": "positive"}  # meaning of 0 and 1 in that task
SURROGATE = re.compile(r"[\ud800-\udfff]")
TAG = re.compile(r"O|[BI]-.+")
MAX_FIELD_CHARACTERS = 1 << 30  # of CSV, whose reader refuses more than 131,072 by default


@dataclass(frozen=True)
class Example:
    """A text with its labels, or a sentence with its tags.

    Attributes:
        text: the text; of a sentence, its words with one space between.
        labels: the classes; of a sentence, one tag per word.
        where: "FILE:LINE".
        words: the words of a sentence; empty for a text.
    """

    text: str
    labels: tuple[str, ...]
    where: str
    words: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reading:
    """The options for reading files of examples."""

    task: str
    format: str | None = None  # None: by the file's suffix
    encoding: str = "utf-8"
    text_field: str | None = None  # of JSON lines, CSV and TSV
    label_field: str | None = None
    skip_empty: bool = False  # leave out texts without a word, and count them; otherwise they are refused

    @property
    def fields(self) -> tuple[str, str]:
        """Return the names of the fields for text and labels."""
        text, label = DEFAULT_FIELDS.get(self.task, ("text", "label"))
        return self.text_field or text, self.label_field or label


def read(path: Path, how: Reading) -> tuple[list[Example], int]:
    """Read a file; return its examples, and how many empty ones were left out.

    Raises: ScalerError with file and line for what cannot be read as the task needs it.
    """
    kind = how.format or SUFFIXES.get(path.suffix.lower())
    if kind is None:
        raise ScalerError(f"{path}: its name does not say the format; give --format, one of {', '.join(READERS)}")
    if how.task == TOKENS and kind not in OF_WORDS:
        raise ScalerError(f"{path}: {kind} holds texts, but {TOKENS} needs words with tags; use {', '.join(OF_WORDS)}")
    if how.task != TOKENS and kind == "conll":
        raise ScalerError(f"{path}: conll holds words with tags; use --task {TOKENS}, or another file")
    return without_empty(READERS[kind](path, _decoded(path, how.encoding), how), how, str(path))


def without_empty(examples: Iterator[Example], how: Reading, source: str) -> tuple[list[Example], int]:
    """Return the examples that have text, and the number of those without.

    Raises: ScalerError where empty ones are not allowed, or none has text.
    """
    kept, skipped = [], 0
    for example in examples:
        for what, words in (("the text", example.text), *(("a label", label) for label in example.labels)):
            if SURROGATE.search(words):
                raise ScalerError(f"{example.where}: half of a character (\\ud800 to \\udfff) in {what}; take it out")
        if example.text.strip() and all(map(str.strip, example.words)):
            kept.append(example)
        elif how.skip_empty:
            skipped += 1
        else:
            what = "a word" if example.words else "the text"
            raise ScalerError(f"{example.where}: {what} is empty; fill it, or leave such ones out with --skip_empty")
    if not kept:
        raise ScalerError(f"{source}: has no labelled text; name a file that has")
    return kept, skipped


def _decoded(path: Path, encoding: str) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ScalerError(f"{path}: cannot be read ({error.strerror}); name a file that can") from error
    try:
        return content.decode(encoding).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise ScalerError(
            f"{path}:{line}: byte {content[error.start]:#04x} is not {encoding}; name the file's --encoding, such as "
            "latin-1"
        ) from error
    except LookupError as error:
        raise ScalerError(f"--encoding {encoding}: unknown to Python; utf-8 and latin-1 are known") from error


def _lines(path: Path, text: str) -> Iterator[tuple[str, str]]:
    """Yield ("FILE:LINE", line). Only line feeds end lines; str.splitlines cuts at more, which texts contain."""
    for number, line in enumerate(text.removesuffix("\n").split("\n"), start=1):
        yield f"{path}:{number}", line.removesuffix("\r")


def _jsonl(path: Path, text: str, how: Reading) -> Iterator[Example]:
    for where, line in _lines(path, text):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise ScalerError(f"{where}: not JSON ({error}); each line is one object") from error
        if not isinstance(record, dict):
            raise ScalerError(f"{where}: {line[:40]!r} is no JSON object; each line is one object")
        yield of_record(record, where, how)


def of_record(record: dict[str, Any], where: str, how: Reading) -> Example:
    """Make an example of a mapping of fields. Raises ScalerError for a field that is missing or of another type."""
    for name in how.fields:
        if name not in record:
            raise ScalerError(f"{where}: no field {name!r}; {nearest(name, record) if record else 'it is empty'}")
    text, labels = (record[name] for name in how.fields)
    text_field, label_field = how.fields
    if how.task == TOKENS:
        for name, value in zip(how.fields, (text, labels), strict=True):
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise ScalerError(f"{where}: {name} is not a list of strings; {TOKENS} needs words and their tags")
        if len(text) != len(labels):
            raise ScalerError(
                f"{where}: {len(text)} {text_field} and {len(labels)} {label_field}; one for each is needed"
            )
        return sentence(text, labels, [where] * len(text))
    if not isinstance(text, str):
        raise ScalerError(f"{where}: {text_field} is {type(text).__name__}, not a text; name its --text_field")
    several = labels if how.task == MULTILABEL else [labels]
    if not isinstance(several, list) or not all(isinstance(label, str | int) for label in several):
        needed = "a list of strings or integers" if how.task == MULTILABEL else "a string or an integer"
        raise ScalerError(f"{where}: {label_field} is {str(labels)[:40]!r}, but {needed} is needed")
    return _text(text, [str(label) for label in several], where, how)


def _text(text: str, labels: str | Sequence[str], where: str, how: Reading) -> Example:
    """Make an example of a text and its labels, or of the field of a file that has them."""
    if isinstance(labels, str):
        field = labels.split(SEPARATOR) if how.task == MULTILABEL else [labels]
        labels = field if labels.strip() or how.task != MULTILABEL else []
    if how.task == SENTIMENT:
        labels = [SENTIMENTS.get(label, label) for label in labels]
    if not all(label.strip() for label in labels):
        raise ScalerError(f"{where}: a label is empty; name it, or take the line out")
    return Example(text, tuple(dict.fromkeys(label.strip() for label in labels)), where)


def _table(path: Path, text: str, how: Reading, **layout: Any) -> Iterator[Example]:
    csv.field_size_limit(MAX_FIELD_CHARACTERS)
    rows = csv.reader(io.StringIO(text, newline=""), strict=True, **layout)
    header: list[str] = []
    while True:
        where = f"{path}:{rows.line_num + 1}"  # the first line of a quoted text, which may span several
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ScalerError(f"{where}: not CSV ({error}); write quotes within a text twice") from error
        if not row:
            continue
        if not header:
            header = row
            for name in how.fields:
                if name not in header:
                    raise ScalerError(f"{where}: no column {name!r} in the first line; {nearest(name, header)}")
        elif len(row) != len(header):
            raise ScalerError(
                f"{where}: {len(row)} fields, but the first line names {len(header)}; quote a text that has more"
            )
        else:
            field, labels = (row[header.index(name)] for name in how.fields)
            yield _text(field, labels, where, how)


def _plain(path: Path, text: str, how: Reading) -> Iterator[Example]:
    """Read lines of "LABEL text": the label ends at the first space."""
    for where, line in _lines(path, text):
        if line.strip():
            label, _, rest = line.lstrip().partition(" ")
            yield _text(rest.strip(), label, where, how)


def _conll(path: Path, text: str, how: Reading) -> Iterator[Example]:
    """Read sentences of lines with two or more columns, the word first and its tag last, separated by blank lines.

    A line of white space alone is blank, too, because WNUT-17 has lone tabs.
    """
    columns, split_at = 0, ""
    words: list[str] = []
    tags: list[str] = []
    places: list[str] = []
    for where, line in [*_lines(path, text), ("", "")]:
        if not line.strip() or line.startswith("-DOCSTART-"):  # CoNLL-2003's mark between documents
            if words:
                yield sentence(words, tags, places)
            words, tags, places = [], [], []
            continue
        if not columns:
            split_at = "\t" if "\t" in line else ""
        fields = line.split(split_at) if split_at else line.split()
        columns = columns or len(fields)
        if len(fields) != columns or columns < 2:
            between = "tabs" if split_at else "spaces"
            rule = f"the first line has {columns}" if columns > 1 else "a word and its tag are needed"
            raise ScalerError(f"{where}: {len(fields)} columns between {between}, but {rule}; mend the line")
        words.append(fields[0])
        tags.append(fields[-1].strip())
        places.append(where)


def sentence(words: Sequence[str], tags: Sequence[str], places: Sequence[str]) -> Example:
    """Make a sentence in IOB2 tags. Raises ScalerError where an entity does not begin with B-."""
    before = "O"
    for tag, where in zip(tags, places, strict=True):
        if not TAG.fullmatch(tag):
            raise ScalerError(f"{where}: {tag!r} is not a BIO tag; O, B-NAME and I-NAME are")
        if tag.startswith("I-") and before[2:] != tag[2:]:
            raise ScalerError(f"{where}: {tag} after {before}; in IOB2 an entity begins with B-{tag[2:]}")
        before = tag
    return Example(" ".join(words), tuple(tags), places[0] if places else "", tuple(words))


Reader = Callable[[Path, str, Reading], Iterator[Example]]
# in fields between tabs quotes are ordinary characters, as in GLUE's files
TABS = functools.partial(_table, delimiter="\t", quoting=csv.QUOTE_NONE)
READERS: dict[str, Reader] = {"jsonl": _jsonl, "csv": _table, "tsv": TABS, "conll": _conll, "plain": _plain}
OF_WORDS = ("conll", "jsonl")

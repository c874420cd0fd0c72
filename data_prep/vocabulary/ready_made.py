"""Read word vectors of other programs: word2vec's text and binary files, and gensim's KeyedVectors, with checks.

gensim's readers take a row of one number, more rows than the header says, and words that are blank, in silence, and
leave zeros for a repeated word. A .kv file is a pickle, which can run any program; here it can make a KeyedVectors of
strings and arrays and nothing else.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tokenizers import Tokenizer

from scaler.core.errors import ScalerError

LONGEST_HEADER = 64  # bytes: two numbers
LONGEST_WORD = 1 << 16  # bytes; where no space comes, the file is no word2vec file, or damaged
READ_AT_ONCE = 1 << 18  # bytes
EXACT, NORMALISED = 2, 1  # how an entry got its vector
NUMBER = re.compile(r"<?[iuf][1248]")  # NumPy's name of one


@dataclass(frozen=True)
class _File:
    """An opened file of vectors: its rows, each a word in UTF-8 and its numbers, and the number of the first one."""

    count: int
    width: int
    first: int
    unit: str
    rows: Iterator[tuple[bytes, np.ndarray]]


def files(path: Path) -> list[Path]:
    """Return the files that a file of vectors consists of. Raises ScalerError when it is missing."""
    if not path.is_file():
        raise ScalerError(f"{path}: no such file; word2vec.ready_made names one, or is left out to train the vectors")
    beside = path.with_name(path.name + ".vectors.npy")
    return [path, beside] if path.suffix == ".kv" and beside.is_file() else [path]


def read(path: Path, width: int) -> Iterator[tuple[bytes, np.ndarray]]:
    """Yield each word of a file, in UTF-8, and its vector, float32 (width,), in constant memory but for the words.

    Raises: ScalerError that names the line or row that is damaged, blank, a repeat, of another width, or not finite.
    """
    files(path)
    with path.open("rb") as file:
        opened = {".kv": _keyed_vectors, ".bin": _binary}.get(path.suffix, _text)(path, file)
        if opened.width != width:
            raise ScalerError(
                f"{path}: vectors of {opened.width} numbers, but word2vec.vector_size is {width}; set it to that, "
                "and the model's width with it"
            )
        seen: set[bytes] = set()
        number = opened.first
        for word, vector in opened.rows:
            where = f"{path}: {opened.unit} {number:,}"
            if number - opened.first >= opened.count:
                raise ScalerError(f"{where}: one more than the {opened.count:,} that its header says; save it again")
            if not word.strip():
                raise ScalerError(f"{where}: a vector of a blank word; leave it out")
            if word in seen:
                raise ScalerError(f"{where}: {_shown(word)} has a vector already; leave one out")
            if not np.isfinite(vector).all():
                raise ScalerError(f"{where}: the vector of {_shown(word)} is not finite; leave it out")
            seen.add(word)
            yield word, vector
            number += 1
        if number - opened.first < opened.count:
            raise ScalerError(
                f"{path}: cut short, it ends after {number - opened.first:,} vectors of {opened.count:,}; get it again"
            )


def matched(path: Path, tokenizer_file: Path, entries: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Give the tokenizer's entries the vectors of the words that they spell.

    A word is the entry of the same spelling; or, where no word is, of what the tokenizer's normaliser makes of the
    word, which may be its lower case. Of several such words, the first counts: files begin with the frequent ones.

    Returns: float32 (entries, width), zeros where there is no vector, and bool (entries,), where there is one.

    Raises: ScalerError as `read`, and when not one word is an entry.
    """
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    of_word = {entry.encode(): number for entry, number in tokenizer.get_vocab(with_added_tokens=True).items()}
    normalise = tokenizer.normalizer.normalize_str if tokenizer.normalizer else None
    matrix = np.zeros((entries, width), dtype=np.float32)
    how = np.zeros(entries, dtype=np.int8)
    for word, vector in read(path, width):
        entry, found = of_word.get(word), EXACT
        if entry is None and normalise:
            entry, found = of_word.get(normalise(word.decode(errors="replace")).encode()), NORMALISED
        if entry is not None and found > how[entry]:
            matrix[entry], how[entry] = vector, found
    if how.any() and not matrix.any():
        raise ScalerError(f"{path}: all vectors of the tokenizer's entries are zeros; get the file again")
    if not how.any():
        raise ScalerError(f"{path}: none of its words is an entry of {tokenizer_file}; they have to be spelt alike")
    return matrix, how > 0


def _shown(word: bytes) -> str:
    return repr(word[:40].decode(errors="replace"))


def _header(path: Path, line: bytes) -> tuple[int, int]:
    """Return rows and width from the first line of both word2vec formats."""
    parts = line.split()
    if len(parts) != 2 or not all(part.isdigit() for part in parts) or not line.endswith(b"\n"):
        raise ScalerError(
            f"{path}: line 1 is {_shown(line)}, but a word2vec file begins with its count of vectors and their width; "
            "put that line there; of a fastText model take the .vec"
        )
    return int(parts[0]), int(parts[1])


def _text(path: Path, file: IO[bytes]) -> _File:
    count, width = _header(path, file.readline(LONGEST_HEADER))

    def rows() -> Iterator[tuple[bytes, np.ndarray]]:
        for number, line in enumerate(file, 2):
            word, _, numbers = line.partition(b" ")
            try:
                with np.errstate(over="ignore"):  # too large for float32 is not finite, which is found later
                    vector = np.array(numbers.split(), dtype=np.float32)
            except ValueError as error:
                raise ScalerError(f"{path}: line {number:,}: not a word and {width} numbers ({error})") from error
            if len(vector) != width:
                raise ScalerError(
                    f"{path}: line {number:,}: {len(vector)} numbers after {_shown(word)}, but the header says {width}"
                )
            yield word, vector

    return _File(count, width, 2, "line", rows())


def _binary(path: Path, file: IO[bytes]) -> _File:
    count, width = _header(path, file.readline(LONGEST_HEADER))
    size = 4 * width

    def rows() -> Iterator[tuple[bytes, np.ndarray]]:
        block, at, row = b"", 0, 1
        while True:
            space = block.find(b" ", at)
            if space < 0 or len(block) < space + 1 + size:
                if space < 0 and len(block) - at > LONGEST_WORD:
                    raise ScalerError(f"{path}: row {row:,}: no word where one belongs; the file is damaged")
                more = file.read(READ_AT_ONCE)
                if not more:
                    break
                block, at = block[at:] + more, 0
                continue
            # the C program ends each row with a line feed, gensim does not
            yield block[at:space].lstrip(b"\n"), np.frombuffer(block, "<f4", width, space + 1)
            at, row = space + 1 + size, row + 1
        if block[at:].strip(b"\n"):
            raise ScalerError(f"{path}: row {row:,}: cut short, or wider than {width} numbers; get the file again")

    return _File(count, width, 1, "row", rows())


class _KeyedVectors:
    """The one class that a .kv file may make; its attributes are checked below."""


class _Array:
    """An array as NumPy pickles it, but of numbers alone: NumPy's own makes pointers out of bytes for whoever asks."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, kind, by_columns, content = state
        order: Any = "F" if by_columns else "C"
        self.value = np.frombuffer(bytes(content), _kind(kind)).reshape(tuple(map(int, shape)), order=order)


class _Kind:
    """A NumPy dtype as it is pickled: a name, and a state with the order of bytes."""

    def __init__(self, name: Any, *rest: Any) -> None:
        self.name, self.order = str(name), "<"

    def __setstate__(self, state: Any) -> None:
        self.order = str(state[1])


def _kind(found: Any) -> np.dtype[Any]:
    if not isinstance(found, _Kind) or found.order not in "<|=" or not NUMBER.fullmatch(found.name):
        raise pickle.UnpicklingError("it has an array of something other than little-endian numbers")
    return np.dtype(found.name)


def _reconstruct(*arguments: Any) -> _Array:
    return _Array()


def _frombuffer(content: Any, kind: Any, shape: Any, order: Any) -> _Array:
    made = _Array()
    made.__setstate__((1, shape, kind, order == "F", content))
    return made


ALLOWED: dict[tuple[str, str], Any] = {  # all that a .kv file may name, and what it gets instead
    ("gensim.models.keyedvectors", "KeyedVectors"): _KeyedVectors,
    ("numpy", "ndarray"): None,
    ("numpy", "dtype"): _Kind,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,  # of pickle's protocol 5
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core", "numpy._core")  # as NumPy 1 called it
        if (module, name) not in ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no KeyedVectors of gensim 4 needs")
        return ALLOWED[module, name]


def _keyed_vectors(path: Path, file: IO[bytes]) -> _File:
    try:
        content = vars(_Unpickler(file).load())
        words, vectors = content["index_to_key"], content.get("vectors")
        vectors = vectors.value if isinstance(vectors, _Array) else vectors
    except Exception as error:  # of any kind where a pickle is damaged
        reason = " ".join(str(error).split())[:200]
        raise ScalerError(f"{path}: not KeyedVectors as gensim 4 saves them ({reason}); save them as .vec") from error
    if vectors is None:
        beside = path.with_name(path.name + ".vectors.npy")
        try:
            vectors = np.load(beside, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise ScalerError(f"{beside}: the vectors of {path.name}, not readable ({error}); copy both") from error
    whole = isinstance(words, list) and isinstance(vectors, np.ndarray) and vectors.dtype.kind == "f"
    if not whole or vectors.ndim != 2 or len(vectors) != len(words):
        raise ScalerError(f"{path}: its words and vectors are not equally many; save it again, as .vec perhaps")

    def rows() -> Iterator[tuple[bytes, np.ndarray]]:
        for number, word in enumerate(words):
            if not isinstance(word, str):
                raise ScalerError(f"{path}: row {number + 1:,}: its word is {word!r}, which is no string")
            yield word.encode(errors="replace"), np.asarray(vectors[number], dtype=np.float32)

    return _File(len(words), int(vectors.shape[1]), 1, "row", rows())

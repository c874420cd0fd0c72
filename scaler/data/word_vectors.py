"""Write and read word vectors on disk: a row for each entry of a tokenizer, row i of entry i.

A folder holds `vectors.npy`, float32 (entries, vector_size), and `counts.npy`, int64 (entries,), how often each entry
occurs in the training documents. Its `manifest.json` has the checksums of both and of their tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaler.core.errors import ScalerError
from scaler.core.files import PREPARE_AGAIN, check_file, read_manifest

KIND = "word2vec"
VECTORS = "vectors.npy"
COUNTS = "counts.npy"
PREPARE = "run `scaler prepare` with a `word2vec` section in the recipe"


@dataclass(frozen=True)
class WordVectors:
    """The word vectors of a folder.

    Attributes:
        vectors: (entries, vector_size) float32, mapped read-only.
        counts: (entries,) int64, how often each entry occurs in the training documents.
        settings: the recipe's section that they were made with.
    """

    vectors: np.ndarray
    counts: np.ndarray
    settings: dict[str, Any]


def read(folder: Path, tokenizer_xxh3: str, vector_size: int) -> WordVectors:
    """Open a folder of vectors and check it.

    Args:
        tokenizer_xxh3: checksum of the tokenizer.json whose entries the rows belong to.
        vector_size: numbers in a vector that the model needs.

    Raises: ScalerError when the folder is absent or damaged, made for another tokenizer, or of another width.
    """
    content = read_manifest(folder, KIND, PREPARE)
    try:
        width, entries, made_for = int(content["vector_size"]), int(content["vocab_size"]), content["tokenizer_xxh3"]
        checksums = {VECTORS: str(content["vectors_xxh3"]), COUNTS: str(content["counts_xxh3"])}
        settings = dict(content["made_from"]["settings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ScalerError(f"{folder}: not a manifest of word vectors ({error!r}); {PREPARE_AGAIN}") from error
    if made_for != tokenizer_xxh3:
        raise ScalerError(
            f"{folder}: vectors of the tokenizer {made_for[:8]}, but the data's is {tokenizer_xxh3[:8]}; "
            "run `scaler prepare` to make them anew"
        )
    if width != vector_size:
        raise ScalerError(
            f"{folder}: vectors of {width} numbers, but {vector_size} are needed; set word2vec.vector_size, "
            "and run `scaler prepare`"
        )
    for name, xxh3 in checksums.items():
        check_file(folder / name, xxh3)
    vectors = _mapped(folder / VECTORS, np.dtype(np.float32), (entries, width))
    counts = np.asarray(_mapped(folder / COUNTS, np.dtype(np.int64), (entries,)))
    return WordVectors(vectors, counts, settings)


def _mapped(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.ndarray:
    """Map an .npy file. Raises ScalerError when it holds another kind of array."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ScalerError(f"{path}: not an .npy file ({error}); {PREPARE_AGAIN}") from error
    if array.dtype != dtype or array.shape != shape:
        raise ScalerError(f"{path}: {array.dtype} {array.shape}, where {dtype} {shape} belongs; {PREPARE_AGAIN}")
    return np.asarray(array)

"""Train a word2vec vector for each entry of a tokenizer."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from data_prep.formats import manifests
from data_prep.pipeline import folders
from data_prep.vocabulary import ready_made, word2vec_training
from data_prep.vocabulary.documents import Documents
from scaler.config.data_sections import Word2Vec
from scaler.core import limits
from scaler.core.errors import ScalerError
from scaler.core.files import checksum
from scaler.data.arrays import write_array
from scaler.data.word_vectors import COUNTS, KIND, VECTORS

LEAST_RAREST = 100  # rows, if there are so many, whose moments the vectors of rare entries get


def draw(matrix: np.ndarray, trusted: np.ndarray, counts: np.ndarray, seed: int) -> None:
    """Fill the rows that are not trusted, in place, with random vectors like those of the rarest trusted entries.

    They are drawn from a normal distribution with the mean and standard deviation, dimension by dimension, of the
    rarest tenth. An entry's vector depends on the seed, its number and these moments alone.

    Args:
        matrix: float32 (entries, vector_size).
        trusted: bool (entries,), True where a row is trained or ready-made; at least one.
        counts: int64 (entries,), how often each occurs.
    """
    rows = np.flatnonzero(trusted)
    rarest = rows[np.argsort(counts[rows], kind="stable")][: max(LEAST_RAREST, len(rows) // 10)]
    alike = matrix[rarest].astype(np.float64)
    mean, spread = alike.mean(axis=0), alike.std(axis=0)
    for entry in np.flatnonzero(~trusted).tolist():
        chance = np.random.Generator(np.random.Philox(key=[seed, entry]))
        matrix[entry] = mean + spread * chance.standard_normal(matrix.shape[1])


def make(
    shards: Path, tokenizer: Path, folder: Path, settings: Word2Vec, seed: int, threads: int | None = None
) -> bool:
    """Train or adopt the vectors unless the folder already is the result; return True when it was written.

    Args:
        threads: of the training; by default one a core.

    Raises: ScalerError when shards, tokenizer or ready-made vectors are absent, damaged or do not belong together, no
        entry is frequent enough, or gensim is missing.
    """
    threads = limits.cores() if threads is None else threads
    if threads < 1:
        raise ScalerError(f"threads={threads}, but at least 1 is needed")
    if not 0 <= seed < 1 << 63:
        raise ScalerError(f"seed={seed}, but it is at least 0 and below 2**63")
    manifest = manifests.read(shards, "shards")
    if not (tokenizer / "tokenizer.json").is_file():
        raise ScalerError(f"{tokenizer}: no tokenizer here; name the one that the shards were made with")
    if checksum(tokenizer / "tokenizer.json") != manifest["tokenizer_xxh3"]:
        raise ScalerError(f"{shards}: written with another tokenizer than {tokenizer}; make the shards again")
    source = Path(settings.ready_made) if settings.ready_made else None
    made_from = {
        "shards": folders.checksum_of_manifest(shards, "shards"),
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "ready_made": [checksum(path) for path in ready_made.files(source)] if source else None,
    }
    if folders.is_current(folder, KIND, made_from) and (folder / VECTORS).is_file():
        return False
    if not source:
        word2vec_training.import_gensim()  # refuses before the work begins where it is missing
    vocab_size = int(manifest["vocab_size"])
    with folders.staged(folder, KIND, made_from) as partial:
        documents = Documents(shards, manifest, seed)
        counts = documents.counts(vocab_size)
        if source:
            matrix, trusted = ready_made.matched(source, tokenizer / "tokenizer.json", vocab_size, settings.vector_size)
        else:
            trusted = counts >= settings.min_count
            if not trusted.any():
                raise ScalerError(
                    f"{shards}: no entry occurs word2vec.min_count={settings.min_count} times in the training "
                    "documents; lower it, or prepare more text"
                )
            found = word2vec_training.stoppable_train(
                documents, counts, settings, seed, threads, partial / folders.TASKS
            )
            matrix = np.zeros((vocab_size, settings.vector_size), dtype=np.float32)
            matrix[trusted] = found
        draw(matrix, trusted, counts, seed)
        folders.write_manifest(
            partial,
            KIND,
            made_from,
            vocab_size=vocab_size,
            vector_size=settings.vector_size,
            tokenizer_xxh3=manifest["tokenizer_xxh3"],
            vectors_xxh3=write_array(partial / VECTORS, matrix),
            counts_xxh3=write_array(partial / COUNTS, counts),
            tokens=documents.tokens,
            coverage={
                "entries": float(trusted.mean()),
                "tokens": float(counts[trusted].sum() / max(1, documents.tokens)),
            },
            history=[*manifest["history"], {"stage": KIND, "settings": {**dataclasses.asdict(settings), "seed": seed}}],
        )
    return True


def describe(folder: Path) -> str:
    """Return size and coverage of a folder of vectors as one line."""
    content = manifests.read(folder, KIND)
    entries, tokens = content["coverage"]["entries"], content["coverage"]["tokens"]
    how = "taken over" if content["made_from"]["settings"]["ready_made"] else "trained"
    return (
        f"{content['vocab_size']:,} entries of {content['vector_size']} numbers, {entries:.2%} of them {how}, "
        f"which stand for {tokens:.2%} of the training tokens; the others drawn"
    )

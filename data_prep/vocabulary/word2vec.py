"""Train a word2vec vector for each entry of a tokenizer."""

from __future__ import annotations

import atexit
import dataclasses
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.pipeline import folders
from data_prep.vocabulary import vectors
from data_prep.vocabulary.documents import Documents
from scaler.config.data_sections import Word2Vec
from scaler.core.errors import EXIT_INTERRUPTED, ScalerError
from scaler.core.files import check_file, checksum, read_json, read_manifest, write_json
from scaler.data.word_vectors import COUNTS, KIND, VECTORS, write_array

SEGMENT_TOKENS = 1 << 21  # a thread: 30 s of CBOW, 100 s of skip-gram at 768 dimensions; gensim's threads meet after it
SAVE_SECONDS = 180  # at least, between two saves of the state; each writes both matrices
STATE = "state.json"
LEAST_RAREST = 100  # rows, if there are so many, whose moments the vectors of rare entries get


class _Sentences:
    """What gensim reads: the pieces of a segment, as lists of the places that entries have in its vocabulary.

    Its producer must not raise, or gensim waits for ever.
    """

    def __init__(self, pieces: Iterator[np.ndarray], places: np.ndarray, bar: Any) -> None:
        self._pieces, self._places, self._bar = pieces, places, bar
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[list[int]]:
        try:
            for piece in self._pieces:
                yield self._places[piece].tolist()
                self._bar.update(len(piece))
        except Exception as error:
            self.error = error


def _gensim() -> Any:
    try:
        from gensim.models import Word2Vec as Gensim
    except ImportError as error:
        raise ScalerError(
            f"training word vectors needs gensim ({error}); install it with `pip install '.[word2vec]'`, "
            "or name word2vec.ready_made vectors"
        ) from error
    logging.getLogger("gensim").setLevel(logging.ERROR)  # it warns of segments that are short
    return Gensim


def _model(counts: np.ndarray, settings: Word2Vec, seed: int, threads: int) -> Any:
    """gensim's model over the entries that are frequent enough, numbered in their order."""
    model = _gensim()(
        vector_size=settings.vector_size,
        sg=settings.architecture == "skip-gram",
        window=settings.window,
        negative=settings.negative,
        shrink_windows=settings.shrink_windows,
        sample=settings.sample,
        min_count=1,
        sorted_vocab=0,
        seed=seed % 2**32,  # what NumPy's RandomState takes
        workers=threads,
    )
    model.build_vocab_from_freq(dict(enumerate(counts[counts >= settings.min_count].tolist())))
    # says the same as its dictionary, in half of the time that threads take turns for: Python's lock then lets 2.8 M
    # tokens/s through instead of 1.4 M (docs/log/2026-11.md)
    model.wv.key_to_index = range(len(model.wv.key_to_index))
    return model


def _rate(settings: Word2Vec, share: float) -> float:
    """The learning rate when this share of all epochs is done."""
    return settings.learning_rate + share * (settings.min_learning_rate - settings.learning_rate)


def train(
    documents: Documents, counts: np.ndarray, settings: Word2Vec, seed: int, threads: int, tasks: Path
) -> np.ndarray:
    """Train vectors, from the state that `tasks` holds on, if there is one.

    Returns: float32 (entries of at least min_count, vector_size), in the order of the entries.
    """
    model = _model(counts, settings, seed, threads)
    trained = counts >= settings.min_count
    # rare entries get a place past the last, which gensim leaves out; and integers must be lists, or it hangs
    places = np.where(trained, np.cumsum(trained) - 1, trained.sum())
    position, total = _resume(model, tasks), settings.epochs * documents.tokens
    saved = time.monotonic()
    bar = tqdm(total=total, initial=position, unit=" tokens", unit_scale=True, desc="word2vec", disable=None)
    with bar:
        while position < total:
            epoch_end = (position // documents.tokens + 1) * documents.tokens
            end = min(position + SEGMENT_TOKENS * threads, epoch_end)
            sentences = _Sentences(documents.pieces(position, end), places, bar)
            model.train(
                sentences,
                total_words=end - position,
                epochs=1,
                start_alpha=_rate(settings, position / total),
                end_alpha=_rate(settings, end / total),
            )
            if sentences.error is not None:
                raise sentences.error
            position = end
            if position == epoch_end or time.monotonic() - saved >= SAVE_SECONDS:
                _save(model, position, tasks)
                saved = time.monotonic()
    return np.asarray(model.wv.vectors)


def _save(model: Any, position: int, tasks: Path) -> None:
    """Save all that training goes on from, which takes the last save's place once its .json is there."""
    arrays = {"vectors": model.wv.vectors, "syn1neg": model.syn1neg}
    files = {}
    for what, array in arrays.items():
        name = f"{what}-{position}.npy"
        files[what] = {"name": name, "xxh3": write_array(tasks / name, array)}
    _, keys, place, *_ = model.random.get_state()
    write_json(tasks / STATE, {"position": position, "random": [keys.tolist(), int(place)], "files": files})
    for path in tasks.glob("*.npy"):
        if path.name not in {file["name"] for file in files.values()}:
            path.unlink()


def _resume(model: Any, tasks: Path) -> int:
    """Put a saved state, if there is one, into the model; return its position."""
    if not (tasks / STATE).exists():
        return 0
    state = read_json(tasks / STATE)
    for what, array in {"vectors": model.wv.vectors, "syn1neg": model.syn1neg}.items():
        path = tasks / state["files"][what]["name"]
        check_file(path, state["files"][what]["xxh3"])
        array[:] = np.load(path, mmap_mode="r", allow_pickle=False)
    model.random.set_state(("MT19937", *state["random"]))
    return int(state["position"])


def draw(matrix: np.ndarray, trusted: np.ndarray, counts: np.ndarray, seed: int) -> None:
    """Fill the rows that are not trusted, in place, as the rarest of those that are.

    Drawn from a normal distribution with the mean and standard deviation, dimension by dimension, of the rarest tenth.
    What an entry gets hangs on the seed, its number and these moments alone.

    Args:
        matrix: float32 (entries, vector_size).
        trusted: bool (entries,), at least one.
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
    """Train or take over the vectors unless the folder already is what comes out; say whether it was written.

    Args:
        threads: that train; by default one a core.

    Raises: ScalerError when shards, tokenizer or ready-made vectors are absent, damaged or do not belong together, no
        entry is frequent enough, or gensim is missing.
    """
    threads = len(os.sched_getaffinity(0)) if threads is None else threads
    if threads < 1:
        raise ScalerError(f"threads={threads}, but at least 1 has to work")
    if not 0 <= seed < 1 << 63:
        raise ScalerError(f"seed={seed}, but it is at least 0 and below 2**63")
    manifest = read_manifest(shards, "shards")
    if not (tokenizer / "tokenizer.json").is_file():
        raise ScalerError(f"{tokenizer}: no tokenizer here; name the one that the shards were made with")
    if checksum(tokenizer / "tokenizer.json") != manifest["tokenizer_xxh3"]:
        raise ScalerError(f"{shards}: written with another tokenizer than {tokenizer}; make the shards again")
    source = Path(settings.ready_made) if settings.ready_made else None
    made_from = {
        "shards": folders.checksum_of_manifest(shards, "shards"),
        "settings": dataclasses.asdict(settings),
        "seed": seed,
        "ready_made": [checksum(path) for path in vectors.files(source)] if source else None,
    }
    if folders.is_current(folder, KIND, made_from) and (folder / VECTORS).is_file():
        return False
    if not source:
        _gensim()  # before the work begins
    vocab_size = int(manifest["vocab_size"])
    with folders.staged(folder, KIND, made_from) as partial:
        documents = Documents(shards, manifest, seed)
        counts = documents.counts(vocab_size)
        if source:
            matrix, trusted = vectors.matched(source, tokenizer / "tokenizer.json", vocab_size, settings.vector_size)
        else:
            trusted = counts >= settings.min_count
            if not trusted.any():
                raise ScalerError(
                    f"{shards}: no entry occurs word2vec.min_count={settings.min_count} times in the training "
                    "documents; lower it, or prepare more text"
                )
            found = _stoppable_train(documents, counts, settings, seed, threads, partial / folders.TASKS)
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


def _stoppable_train(*arguments: Any) -> np.ndarray:
    try:
        return train(*arguments)
    except KeyboardInterrupt:
        atexit.register(os._exit, EXIT_INTERRUPTED)  # gensim's threads compute on, and can only be left
        raise


def describe(folder: Path) -> str:
    """Size and coverage of a folder of vectors, as a line."""
    content = read_manifest(folder, KIND)
    entries, tokens = content["coverage"]["entries"], content["coverage"]["tokens"]
    how = "taken over" if content["made_from"]["settings"]["ready_made"] else "trained"
    return (
        f"{content['vocab_size']:,} entries of {content['vector_size']} numbers, {entries:.2%} of them {how}, "
        f"which stand for {tokens:.2%} of the training tokens; the others drawn"
    )

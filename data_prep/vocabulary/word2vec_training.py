"""Train word2vec vectors with gensim, segment by segment, so that a run that was stopped goes on."""

from __future__ import annotations

import atexit
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.vocabulary.documents import Documents
from scaler.config.data_sections import Word2Vec
from scaler.core.errors import EXIT_INTERRUPTED, ScalerError
from scaler.core.files import check_file, read_json, write_json
from scaler.data.arrays import write_array

SEGMENT_TOKENS = 1 << 21  # a thread: 30 s of CBOW, 100 s of skip-gram at 768 dimensions; gensim's threads meet after it
SAVE_SECONDS = 180  # at least, between two saves of the state; each writes both matrices
STATE = "state.json"


class _Sentences:
    """An iterable for gensim: the pieces of a segment, as lists of the entries' places in its vocabulary.

    An error while they are read is kept in `error`, because gensim would wait for ever after one that is raised.
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


def import_gensim() -> Any:
    """Return gensim's class Word2Vec. Raises ScalerError where gensim is not installed."""
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
    """Return gensim's model over the entries that are frequent enough, numbered in their order."""
    model = import_gensim()(
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
    # holds the same as its dictionary, and takes half of the time in which threads hold Python's lock: 2.8 M tokens/s
    # pass instead of 1.4 M (docs/log/2026-11.md)
    model.wv.key_to_index = range(len(model.wv.key_to_index))
    return model


def _learning_rate(settings: Word2Vec, fraction: float) -> float:
    """Return the learning rate when this fraction of all epochs is done."""
    return settings.learning_rate + fraction * (settings.min_learning_rate - settings.learning_rate)


def train(
    documents: Documents, counts: np.ndarray, settings: Word2Vec, seed: int, threads: int, tasks: Path
) -> np.ndarray:
    """Train vectors, from the state that the folder `tasks` holds, if there is one.

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
                start_alpha=_learning_rate(settings, position / total),
                end_alpha=_learning_rate(settings, end / total),
            )
            if sentences.error is not None:
                raise sentences.error
            position = end
            if position == epoch_end or time.monotonic() - saved >= SAVE_SECONDS:
                _save(model, position, tasks)
                saved = time.monotonic()
    return np.asarray(model.wv.vectors)


def _save(model: Any, position: int, tasks: Path) -> None:
    """Save the state that training resumes from; it replaces the last one once its .json is complete."""
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
    """Load a saved state, if there is one, into the model; return its position in tokens."""
    if not (tasks / STATE).exists():
        return 0
    state = read_json(tasks / STATE)
    for what, array in {"vectors": model.wv.vectors, "syn1neg": model.syn1neg}.items():
        path = tasks / state["files"][what]["name"]
        check_file(path, state["files"][what]["xxh3"])
        array[:] = np.load(path, mmap_mode="r", allow_pickle=False)
    model.random.set_state(("MT19937", *state["random"]))
    return int(state["position"])


def stoppable_train(*arguments: Any) -> np.ndarray:
    """Train as `train` does; Ctrl-C ends the process although gensim's threads compute on."""
    try:
        return train(*arguments)
    except KeyboardInterrupt:
        atexit.register(os._exit, EXIT_INTERRUPTED)  # gensim's threads cannot be stopped, only left
        raise

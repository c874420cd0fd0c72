"""Read the training documents of a folder of shards as one sequence of tokens, in pieces that gensim takes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_prep.formats.token_shards import TOKENS_AT_ONCE, Shard, count_tokens
from scaler.data import order

LONGEST_PIECE = 10_000  # tokens; gensim leaves out what a sentence has beyond its MAX_SENTENCE_LEN


class Documents:
    """The training documents of a folder of shards, end to end: one sequence of tokens, read epoch by epoch.

    A position counts the tokens since the first epoch began. In each epoch the shards have an order of their own,
    because the learning rate falls along it.

    Attributes:
        tokens: of one epoch.
    """

    def __init__(self, folder: Path, manifest: dict[str, Any], seed: int) -> None:
        self._prefixes = [folder / entry["name"] for entry in manifest["splits"].get("train", [])]
        self._strip_ids, self._seed = manifest["strip_ids"], seed
        self._sizes = [int(Shard(prefix).documents(self._strip_ids)[1].sum()) for prefix in self._prefixes]
        self._opened: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None
        self.tokens = sum(self._sizes)

    def pieces(self, begin: int, end: int) -> Iterator[np.ndarray]:
        """Yield the ids of the tokens from position `begin` to `end`, both of one epoch.

        A piece ends with its document, with every 10,000 tokens of one, and at `end`.
        """
        epoch = begin // self.tokens
        at = epoch * self.tokens
        shards = order.permute(np.arange(len(self._sizes)), len(self._sizes), order.key(self._seed, epoch))
        for number in shards.tolist():
            size = self._sizes[number]
            if max(begin, at) < min(end, at + size):
                yield from self._of_shard(number, max(begin - at, 0), min(end - at, size))
            at += size

    def _of_shard(self, number: int, begin: int, end: int) -> Iterator[np.ndarray]:
        ids, starts, ends = self._open(number)
        document = int(np.searchsorted(ends, begin, side="right"))
        while begin < end:
            stop = min(end, int(ends[document]))
            shift = int(starts[document]) - (int(ends[document - 1]) if document else 0)
            for at in range(begin, stop, LONGEST_PIECE):
                yield ids[at + shift : min(at + LONGEST_PIECE, stop) + shift]
            begin, document = stop, document + 1

    def _open(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a shard's ids, where its documents begin in them, and where they end when laid end to end."""
        if self._opened is None or self._opened[0] != number:
            shard = Shard(self._prefixes[number])
            starts, lengths = shard.documents(self._strip_ids)
            self._opened = number, shard.ids, starts[lengths > 0], np.cumsum(lengths[lengths > 0])
        return self._opened[1:]

    def counts(self, vocab_size: int) -> np.ndarray:
        """Return how often each entry occurs: int64 (vocab_size,). Raises ScalerError for an id outside of it."""
        counts = np.zeros(vocab_size, dtype=np.int64)
        sizes = tqdm(self._sizes, unit=" shards", desc="counting", disable=None)
        for number, size in enumerate(sizes):
            waiting, held = [np.empty(0, np.int64)], 0
            for piece in self._of_shard(number, 0, size):
                waiting.append(piece)
                held += len(piece)
                if held >= TOKENS_AT_ONCE:
                    counts += count_tokens(np.concatenate(waiting), vocab_size, self._prefixes[number])
                    waiting, held = waiting[:1], 0
            counts += count_tokens(np.concatenate(waiting), vocab_size, self._prefixes[number])
        return counts

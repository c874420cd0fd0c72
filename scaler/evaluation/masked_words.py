"""Mask the same whole words of the same text for every model, to compare models with different vocabularies.

A masked-LM loss is measured per token, and another vocabulary has other tokens. So each model reads the same passages
with the same words hidden, however its tokenizer splits them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from scaler.data.batches import Batch
from scaler.model.build import first_position
from scaler.model.masked_lm import MaskedLM

WORDS = 60  # of a passage: some 100 tokens, which all models can take
HIDDEN_FRACTION = 0.15  # of the words, as of tokens in training (Devlin et al. 2019)
ROWS = 16  # passages at once
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Passage:
    """Some words of a document, and the places of the hidden ones in it: (begin, end) in characters."""

    text: str
    hidden: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class HiddenWords:
    """A model's score on the hidden words.

    Attributes:
        words: number of hidden words.
        right: fraction of them of which every token was the model's first guess.
        loss_per_character: cross-entropy of their tokens in nats, each guessed by itself, per character.
        tokens_per_word: tokens of the model's vocabulary per hidden word.
        unknown: fraction of the words that the vocabulary cannot spell; they count as wrong.
    """

    words: int
    right: float
    loss_per_character: float
    tokens_per_word: float
    unknown: float


def passages(texts: Iterable[str]) -> Iterator[Passage]:
    """Cut documents into passages, and hide words by a hash of text and place; shorter remainders are dropped."""
    for text in texts:
        words = [found.span() for found in _WORD.finditer(text)]
        for first in range(0, len(words) - WORDS + 1, WORDS):
            begin, end = words[first][0], words[first + WORDS - 1][1]
            part = text[begin:end]
            seed = xxhash.xxh3_64_intdigest(part.encode())
            drawn = ((xxhash.xxh3_64_intdigest(bytes([place]), seed=seed), place) for place in range(WORDS))
            places = sorted(place for _, place in sorted(drawn)[: round(WORDS * HIDDEN_FRACTION)])
            spans = (words[first + place] for place in places)
            yield Passage(part, tuple((start - begin, stop - begin) for start, stop in spans))


def encoded(passage: Passage, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a passage, unmasked; return ids, and (place of the token, number of its word) of each token to guess."""
    found = tokenizer(passage.text, return_offsets_mapping=True, verbose=False)
    places = []
    for place, (begin, end) in enumerate(found["offset_mapping"]):
        for number, (start, stop) in enumerate(passage.hidden):
            if begin < stop and end > start:
                places.append((place, number))
    return found["input_ids"], places


def fits(passage: Passage, network: PreTrainedModel, tokenizer: Any) -> bool:
    """Return whether the model has positions for all tokens of a passage."""
    positions = getattr(network.config, "max_position_embeddings", None)
    return positions is None or len(encoded(passage, tokenizer)[0]) <= positions - first_position(network.config)


def measure(network: PreTrainedModel, tokenizer: Any, texts: Iterable[Passage]) -> HiddenWords:
    """Let a model guess the hidden words of passages that it has positions for; it is switched to evaluation."""
    rows = [(passage, *encoded(passage, tokenizer)) for passage in texts]
    masked_lm = MaskedLM(network.eval())
    words = right = tokens = unknown = characters = 0
    loss = 0.0
    rows.sort(key=lambda row: len(row[1]))  # so that a batch has little padding
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        losses, is_right = _guessed(masked_lm, tokenizer, [(ids, places) for _, ids, places in some])
        loss += sum(map(sum, losses))
        for (passage, ids, places), guesses in zip(some, is_right, strict=True):
            spelt = {number for _, number in places}
            spelt -= {number for place, number in places if ids[place] == tokenizer.unk_token_id}
            wrong = {number for (_, number), well in zip(places, guesses, strict=True) if not well}
            words += len(passage.hidden)
            unknown += len(passage.hidden) - len(spelt)
            right += len(spelt - wrong)
            tokens += len(places)
            characters += sum(stop - begin for begin, stop in passage.hidden)
    count = max(1, words)
    return HiddenWords(words, right / count, loss / max(1, characters), tokens / count, unknown / count)


def _guessed(
    masked_lm: MaskedLM, tokenizer: Any, rows: Sequence[tuple[list[int], list[tuple[int, int]]]]
) -> tuple[list[list[float]], list[list[bool]]]:
    """Return the cross-entropy of each token to guess, and whether it was the first guess, row by row."""
    length, most = max(len(ids) for ids, _ in rows), max(len(places) for _, places in rows)
    config = masked_lm.model.config
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id))
    segments = torch.zeros_like(ids)
    masked, labels = torch.zeros(len(rows), most, dtype=torch.int64), torch.zeros(len(rows), most, dtype=torch.int64)
    for row, (tokens, places) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        segments[row, : len(tokens)] = 1
        where = torch.tensor([place for place, _ in places])
        masked[row, : len(places)] = where
        labels[row, : len(places)] = ids[row, where]
        ids[row, where] = int(tokenizer.mask_token_id)
    batch = Batch.of_documents(ids, segments, masked, labels, first_position(config))
    with torch.no_grad():
        _, scores = masked_lm(batch.to(masked_lm.model.device))
    assert scores is not None  # in evaluation
    losses = scores.losses.view(len(rows), most).tolist()
    well = (scores.guesses[:, 0].cpu() == labels.flatten()).view(len(rows), most).tolist()
    counts = [len(places) for _, places in rows]
    return (
        [row[:count] for row, count in zip(losses, counts, strict=True)],
        [row[:count] for row, count in zip(well, counts, strict=True)],
    )

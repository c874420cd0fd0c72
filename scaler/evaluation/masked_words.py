"""Whole words masked in running text, the same words for every model: figures that compare vocabularies.

A masked-LM loss is of tokens, and another vocabulary has other tokens. Here each model reads the same stretches of text
with the same words hidden, whole, whatever its tokens for them are.
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

WORDS = 60  # of a stretch: some 100 tokens, which any model here can take
SHARE = 0.15  # of the words, as of tokens in training (Devlin et al. 2019)
ROWS = 16  # stretches at once
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Stretch:
    """Some words of a document, and where the hidden ones stand in it: (begin, end) in characters."""

    text: str
    hidden: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Found:
    """What a model makes of the hidden words.

    Attributes:
        words: that were hidden.
        right: share of them of which every token was the model's first guess.
        loss_per_character: cross-entropy of their tokens in nats, each guessed by itself, by their characters.
        tokens_per_word: of the model's vocabulary.
        unknown: share of the words that the vocabulary cannot spell; they count as wrong.
    """

    words: int
    right: float
    loss_per_character: float
    tokens_per_word: float
    unknown: float


def stretches(texts: Iterable[str]) -> Iterator[Stretch]:
    """Cut documents into stretches, and hide words of them by a hash of text and place; rests of a few words go."""
    for text in texts:
        words = [found.span() for found in _WORD.finditer(text)]
        for first in range(0, len(words) - WORDS + 1, WORDS):
            begin, end = words[first][0], words[first + WORDS - 1][1]
            part = text[begin:end]
            seed = xxhash.xxh3_64_intdigest(part.encode())
            drawn = ((xxhash.xxh3_64_intdigest(bytes([place]), seed=seed), place) for place in range(WORDS))
            places = sorted(place for _, place in sorted(drawn)[: round(WORDS * SHARE)])
            spans = (words[first + place] for place in places)
            yield Stretch(part, tuple((start - begin, stop - begin) for start, stop in spans))


def encoded(stretch: Stretch, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """The ids of a stretch, unmasked, and (place of the token, number of the hidden word) of each token to guess."""
    found = tokenizer(stretch.text, return_offsets_mapping=True, verbose=False)
    places = []
    for place, (begin, end) in enumerate(found["offset_mapping"]):
        for number, (start, stop) in enumerate(stretch.hidden):
            if begin < stop and end > start:
                places.append((place, number))
    return found["input_ids"], places


def fits(stretch: Stretch, network: PreTrainedModel, tokenizer: Any) -> bool:
    """True when the model has positions for all tokens of a stretch."""
    positions = getattr(network.config, "max_position_embeddings", None)
    return positions is None or len(encoded(stretch, tokenizer)[0]) <= positions - first_position(network.config)


def measure(network: PreTrainedModel, tokenizer: Any, texts: Iterable[Stretch]) -> Found:
    """Let a model guess the hidden words of stretches that it has positions for. It is set to evaluation."""
    rows = [(stretch, *encoded(stretch, tokenizer)) for stretch in texts]
    masked_lm = MaskedLM(network.eval())
    words = right = tokens = unknown = characters = 0
    loss = 0.0
    rows.sort(key=lambda row: len(row[1]))  # so that a batch has little padding
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        losses, is_right = _guessed(masked_lm, tokenizer, [(ids, places) for _, ids, places in some])
        loss += sum(map(sum, losses))
        for (stretch, ids, places), guesses in zip(some, is_right, strict=True):
            spelt = {number for _, number in places}
            spelt -= {number for place, number in places if ids[place] == tokenizer.unk_token_id}
            wrong = {number for (_, number), well in zip(places, guesses, strict=True) if not well}
            words += len(stretch.hidden)
            unknown += len(stretch.hidden) - len(spelt)
            right += len(spelt - wrong)
            tokens += len(places)
            characters += sum(stop - begin for begin, stop in stretch.hidden)
    share = max(1, words)
    return Found(words, right / share, loss / max(1, characters), tokens / share, unknown / share)


def _guessed(
    masked_lm: MaskedLM, tokenizer: Any, rows: Sequence[tuple[list[int], list[tuple[int, int]]]]
) -> tuple[list[list[float]], list[list[bool]]]:
    """Cross-entropy of each token to guess, and whether it was the first guess, row by row."""
    length, most = max(len(ids) for ids, _ in rows), max(len(places) for _, places in rows)
    config = masked_lm.model.config
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id))
    segments = torch.zeros_like(ids)
    positions = torch.full_like(ids, max(0, first_position(config) - 1))
    masked, labels = torch.zeros(len(rows), most, dtype=torch.int64), torch.zeros(len(rows), most, dtype=torch.int64)
    for row, (tokens, places) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        segments[row, : len(tokens)] = 1
        positions[row, : len(tokens)] = torch.arange(len(tokens)) + first_position(config)
        where = torch.tensor([place for place, _ in places])
        masked[row, : len(places)] = where
        labels[row, : len(places)] = ids[row, where]
        ids[row, where] = int(tokenizer.mask_token_id)
    batch = Batch(ids, positions, segments, masked, labels)
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

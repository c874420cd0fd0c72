"""Compute the held-out loss, on rows that training never reads and with the same masks each time.

So figures of one run, and of models with one tokenizer, can be compared; the loss per character compares vocabularies,
too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import nn

from scaler.data.batches import RowReader
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.model.masked_lm import Scores

CONTEXT_TOKENS = 12


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and fraction of right guesses over `tokens` masked tokens."""

    loss: float
    masked_accuracy: float
    tokens: int


@dataclass(frozen=True)
class HeldOut(Score):
    """The score of a whole split.

    Attributes:
        loss_per_character: the loss in nats times the text's tokens per character. It compares vocabularies: longer
            tokens are harder to guess, but fewer. It is no exact measure of compression, because masks hide whole
            tokens. None where the text's number of characters is unknown.
        sources: score of each source by its name; empty where there are fewer than two.
    """

    loss_per_character: float | None = None
    sources: Mapping[str, Score] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """Return exp(loss), infinite where that is more than a float holds."""
        return float(torch.tensor(self.loss, dtype=torch.float64).exp())

    def records(self, prefix: str) -> dict[str, float]:
        """Return the figures by name, as `RunLog.write` takes them: PREFIX_loss, PREFIX_loss_SOURCE and so on."""
        per_character = {} if self.loss_per_character is None else {"loss_per_character": self.loss_per_character}
        figures = {
            **{f"loss_{name}": score.loss for name, score in self.sources.items()},
            **{"loss": self.loss, "perplexity": self.perplexity, "masked_accuracy": self.masked_accuracy},
            **per_character,
        }
        return {f"{prefix}_{name}": value for name, value in figures.items()}


def _batches(reader: RowReader, micro_rows: int) -> list[np.ndarray]:
    """Split the held-out rows into batches of at most `micro_rows`: int64 arrays."""
    rows = np.arange(len(reader.rows))
    return [rows[start : start + micro_rows] for start in range(0, len(rows), micro_rows)]


def evaluate(engine: Callable[..., Any], reader: RowReader, micro_rows: int, world: World) -> HeldOut:
    """Evaluate all held-out rows, split among the ranks batch by batch; every rank gets the same answer.

    Each rank runs the same number of forward passes, because at ZeRO-3 each of them is a collective.

    Args:
        engine: function that returns the mean loss of a batch, and the scores of its masked positions.
        reader: reader of the rows.
        micro_rows: most rows of a forward pass.
        world: the ranks that split the work.
    """
    batches = _batches(reader, micro_rows)
    device = devices.device(world)
    names = reader.rows.sources
    sums = torch.zeros(len(names), 3, dtype=torch.float64, device=device)
    with torch.no_grad():
        for turn in range(-(-len(batches) // world.size)):
            number = turn * world.size + world.rank
            rows = batches[number % len(batches)]
            batch = reader.fixed(rows).to(device)
            _, scores = engine(batch)
            if number < len(batches):
                source = torch.from_numpy(reader.rows.source_of(rows)).to(device)
                is_of = nn.functional.one_hot(source, len(names)).to(sums)  # (rows, sources)
                sums += is_of.T @ score_rows(scores, batch.labels)
    by_source = collectives.total(sums)
    by_name = {name: _score(found) for name, found in zip(names, by_source, strict=True)}
    whole, text = _score(by_source.sum(0)), reader.rows
    per_character = None
    if text.text_tokens and text.characters:
        per_character = whole.loss * text.text_tokens / text.characters
    return HeldOut(**vars(whole), loss_per_character=per_character, sources=by_name if len(names) > 1 else {})


def score_rows(scores: Scores, labels: torch.Tensor) -> torch.Tensor:
    """Sum cross-entropy in nats, right guesses and masked tokens of each row: float64 (rows, 3).

    Args:
        labels: int64 (rows, masked).
    """
    loss, correct = scores.losses.double(), (scores.guesses[:, 0] == labels.flatten()).double()
    of_tokens = torch.stack([loss, correct, torch.ones_like(loss)], dim=-1)  # (rows * masked, 3)
    return of_tokens.view(*labels.shape, 3).sum(1)


def _score(sums: torch.Tensor) -> Score:
    loss, correct, tokens = sums.tolist()
    return Score(loss / tokens, correct / tokens, int(tokens))


def unigram_entropy(reader: RowReader, unigram_counts: np.ndarray) -> float:
    """Return the cross-entropy in nats of the held-out masked tokens under the training split's token frequencies.

    No model without context does better. Frequencies are smoothed by one occurrence.
    """
    probability = (unigram_counts + 1.0) / (unigram_counts.sum() + len(unigram_counts))
    labels = np.concatenate([reader.fixed(rows).labels.numpy().ravel() for rows in _batches(reader, 256)])
    return float(-np.log(probability[labels]).mean())


def filled_masks(engine: Callable[..., Any], reader: RowReader, tokenizer: Any, world: World, count: int = 6) -> str:
    """Guess a few held-out masks and show them in their context, as Markdown. Every rank must call it."""
    rows = np.arange(min(count, len(reader.rows)))
    batch = reader.fixed(rows)
    with torch.no_grad():
        _, scores = engine(batch.to(devices.device(world)))
    lines = []
    for row in range(len(rows)):
        is_mask = batch.input_ids[row, batch.masked_positions[row]] == reader.vocabulary.mask_id
        chosen = int(is_mask.nonzero()[0]) if is_mask.any() else 0
        position = int(batch.masked_positions[row, chosen])
        left = batch.input_ids[row, max(0, position - CONTEXT_TOKENS) : position]
        right = batch.input_ids[row, position + 1 : position + 1 + CONTEXT_TOKENS]
        number = row * reader.masked + chosen
        shown = ", ".join(
            f"{tokenizer.decode([int(token)]).strip()!r} {float(probability):.0%}"
            for probability, token in zip(scores.probabilities[number], scores.guesses[number], strict=True)
        )
        truth = tokenizer.decode([int(batch.labels[row, chosen])]).strip()
        text = f"{tokenizer.decode(left)} **[{truth}]** {tokenizer.decode(right)}"
        lines.append(f"- {text.replace('<', '&lt;')}  \n  guesses: {shown}")
    return "\n".join(lines)

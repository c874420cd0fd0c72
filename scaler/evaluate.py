"""Held-out loss with fixed rows and fixed masks, the same at every world size, and what it is compared with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from scaler import world as world_facts
from scaler.batches import Batch, RowReader
from scaler.world import World

TOP_GUESSES = 3
CONTEXT_TOKENS = 12


@dataclass(frozen=True)
class HeldOut:
    """Mean cross-entropy in nats and share of right guesses over `tokens` masked tokens."""

    loss: float
    masked_accuracy: float
    tokens: int


def heldout_rows(reader: RowReader, micro_rows: int) -> list[np.ndarray]:
    """The held-out rows in batches of at most `micro_rows`: int64 arrays."""
    rows = np.arange(len(reader.rows))
    return [rows[start : start + micro_rows] for start in range(0, len(rows), micro_rows)]


def read_fixed(reader: RowReader, rows: np.ndarray) -> Batch:
    """Held-out rows as they always are: masked as in epoch 0."""
    return reader.read(np.zeros_like(rows), rows)


def heldout(engine: Callable[..., Any], reader: RowReader, micro_rows: int, world: World) -> HeldOut:
    """Evaluate all held-out rows, shared among the ranks batch by batch; every rank gets the same answer.

    Each rank runs the same number of forward passes, for at ZeRO-3 each of them is a collective.
    """
    batches = heldout_rows(reader, micro_rows)
    device = world_facts.device(world)
    sums = torch.zeros(3, dtype=torch.float64, device=device)
    with torch.no_grad():
        for turn in range(-(-len(batches) // world.size)):
            number = turn * world.size + world.rank
            batch = read_fixed(reader, batches[number % len(batches)]).to(device)
            loss, logits = engine(batch)
            if number < len(batches):
                tokens = batch.labels.numel()
                correct = (logits.argmax(-1) == batch.labels).sum()
                sums += torch.stack([loss.double() * tokens, correct.double(), sums.new_tensor(float(tokens))])
    loss_sum, correct_sum, tokens_sum = world_facts.total(sums).tolist()
    return HeldOut(loss_sum / tokens_sum, correct_sum / tokens_sum, int(tokens_sum))


def unigram_entropy(reader: RowReader, unigram_counts: np.ndarray) -> float:
    """Cross-entropy in nats of the held-out masked tokens under the training split's token frequencies.

    The best that a model without any context can do; frequencies are smoothed by one occurrence.
    """
    probability = (unigram_counts + 1.0) / (unigram_counts.sum() + len(unigram_counts))
    labels = np.concatenate([read_fixed(reader, rows).labels.numpy().ravel() for rows in heldout_rows(reader, 256)])
    return float(-np.log(probability[labels]).mean())


def filled_masks(engine: Callable[..., Any], reader: RowReader, tokenizer: Any, world: World, count: int = 6) -> str:
    """Guess a few held-out masks and show them in their context, as Markdown. Every rank must call it."""
    rows = np.arange(min(count, len(reader.rows)))
    batch = read_fixed(reader, rows)
    with torch.no_grad():
        _, logits = engine(batch.to(world_facts.device(world)))
    lines = []
    for row in range(len(rows)):
        is_mask = batch.input_ids[row, batch.masked_positions[row]] == reader.vocabulary.mask_id
        chosen = int(is_mask.nonzero()[0]) if is_mask.any() else 0
        position = int(batch.masked_positions[row, chosen])
        left = batch.input_ids[row, max(0, position - CONTEXT_TOKENS) : position]
        right = batch.input_ids[row, position + 1 : position + 1 + CONTEXT_TOKENS]
        guesses = logits[row, chosen].float().softmax(-1).topk(TOP_GUESSES)
        shown = ", ".join(
            f"{tokenizer.decode([int(token)]).strip()!r} {float(share):.0%}"
            for share, token in zip(guesses.values, guesses.indices, strict=True)
        )
        truth = tokenizer.decode([int(batch.labels[row, chosen])]).strip()
        text = f"{tokenizer.decode(left)} **[{truth}]** {tokenizer.decode(right)}"
        lines.append(f"- {text.replace('<', '&lt;')}  \n  guesses: {shown}")
    return "\n".join(lines)

"""Score masked positions over the vocabulary, never more of them at once than memory should hold.

With 256,000 entries the scores of one batch take more memory than all else. So a wide head computes its loss and
gradient some entries at a time; where entries are ranked, it takes some positions at a time. torch's
`linear_cross_entropy` gives the same loss, but rounds it to bf16 in a bf16 model: steps of 0.03 at a loss of 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

SCORES_TO_RANK = 1 << 26  # in fp32 268 MB: 262 positions of 256,000 entries
TOP = 3  # guesses kept for each position


@dataclass(frozen=True)
class Scores:
    """A summary of the scores at `positions` masked positions, in the order of the labels.

    Attributes:
        losses: fp32 (positions,), cross-entropy in nats.
        guesses: int64 (positions, TOP), the entries with the highest scores, best first.
        probabilities: fp32 (positions, TOP), those of the guesses.
    """

    losses: torch.Tensor
    guesses: torch.Tensor
    probabilities: torch.Tensor


def positions_at_once(entries: int) -> int:
    """Return how many positions are ranked at once over so many entries."""
    return max(1, SCORES_TO_RANK // entries)


def score(
    logits_of: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, labels: torch.Tensor, step: int
) -> Scores:
    """Score some positions at a time.

    Args:
        logits_of: function from hidden states (some, width) to logits (some, entries).
        hidden: (positions, width).
        labels: int64 (positions,).
        step: positions scored at once.
    """
    parts = []
    for some, wanted in zip(hidden.split(step), labels.split(step), strict=True):
        logits = logits_of(some).float()
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        best = logits.topk(min(TOP, logits.shape[-1]))
        parts.append((losses, best.indices, (best.values - logits.logsumexp(-1, keepdim=True)).exp()))
    return Scores(*map(torch.cat, zip(*parts, strict=True)))

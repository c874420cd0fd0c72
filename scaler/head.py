"""The last layer of a masked LM: scores over the vocabulary, never more at once than memory should hold.

With 256,000 entries the scores of one batch take more memory than all else. So a wide head gives its loss, and the
gradient of it, some positions at a time. (torch's `linear_cross_entropy` does the same, but rounds the loss of a bf16
model to bf16: steps of 0.03 at a loss of 5.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SCORES_AT_ONCE = 1 << 26  # in fp32 268 MB: 262 positions of 256,000 entries
TOP = 3  # guesses that are shown


@dataclass(frozen=True)
class Scores:
    """What is left of the scores at `positions` masked positions, all in the order of the labels.

    Attributes:
        losses: fp32 (positions,), cross-entropy in nats.
        guesses: int64 (positions, TOP), the entries with the highest scores, best first.
        shares: fp32 (positions, TOP), their probabilities.
    """

    losses: torch.Tensor
    guesses: torch.Tensor
    shares: torch.Tensor


def positions_at_once(entries: int) -> int:
    """Positions whose scores over so many entries are held at once."""
    return max(1, SCORES_AT_ONCE // entries)


def score(
    logits_of: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, labels: torch.Tensor, step: int
) -> Scores:
    """Score some positions at a time.

    Args:
        logits_of: gives the logits (some, entries) of hidden states.
        hidden: (positions, width).
        labels: int64 (positions,).
        step: positions at once.
    """
    parts = []
    for some, wanted in zip(hidden.split(step), labels.split(step), strict=True):
        logits = logits_of(some).float()
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        best = logits.topk(min(TOP, logits.shape[-1]))
        parts.append((losses, best.indices, (best.values - logits.logsumexp(-1, keepdim=True)).exp()))
    return Scores(*map(torch.cat, zip(*parts, strict=True)))


class ChunkedCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's outputs, in nats; a gradient that nobody asks for is not computed.

    Inputs: hidden (positions, width), weight (entries, width), bias (entries,) or None, labels int64 (positions,), and
    how many positions are scored at once. The gradient is made on the way forward, while the scores are at hand: each
    chunk has one buffer (step, entries) in fp32, and in bf16 two more of half that size.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The loss, an fp32 scalar."""
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        wide = torch.float32  # in which sums over chunks are kept
        grad_hidden = torch.empty_like(hidden) if of_hidden else None
        grad_weight = torch.zeros_like(weight, dtype=wide) if of_weight else None
        grad_bias = torch.zeros_like(weight[:, 0], dtype=wide) if of_bias else None
        total = torch.zeros((), device=hidden.device, dtype=wide)
        for start in range(0, len(hidden), step):
            here = slice(start, start + step)
            scores = nn.functional.linear(hidden[here], weight, bias).float()
            wanted = labels[here, None]
            highest = scores.amax(-1, keepdim=True)
            scores.sub_(highest)
            total -= scores.gather(1, wanted).sum()
            scores.exp_()
            sums = scores.sum(-1, keepdim=True)
            total += sums.log().sum()
            # d loss / d score = (probability - 1 at the label) / positions
            scores.div_(sums).scatter_add_(1, wanted, torch.full_like(sums, -1.0)).div_(len(hidden))
            if grad_bias is not None:
                grad_bias += scores.sum(0)
            gradient = scores.to(hidden.dtype)
            if grad_hidden is not None:
                torch.mm(gradient, weight, out=grad_hidden[here])
            if grad_weight is not None:
                _add_product(grad_weight, gradient.T, hidden[here])
        # not `save_for_backward`, whose reference makes autograd copy what it could keep
        ctx.gradients = [
            None if found is None else found.to(hidden.dtype) for found in (grad_hidden, grad_weight, grad_bias)
        ]
        return total / len(hidden)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        (of_loss,) = gradients
        if ctx.gradients is None:
            raise RuntimeError("a second backward pass, but the gradient was made for one")
        made, ctx.gradients = ctx.gradients, None
        return (*(None if found is None else found.mul_(of_loss) for found in made), None, None)


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor) -> None:
    if total.dtype == left.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right

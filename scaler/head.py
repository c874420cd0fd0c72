"""The last layer of a masked LM: scores over the vocabulary, never more at once than memory should hold.

With 256,000 entries the scores of one batch take more memory than all else. So a wide head gives its loss, and the
gradient of it, some entries at a time, and where positions are ranked, some positions at a time. (torch's
`linear_cross_entropy` gives the same loss, but rounds it to bf16 in a bf16 model: steps of 0.03 at a loss of 5.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

SCORES_AT_ONCE = 1 << 22  # while training: in fp32 17 MB, and in bf16 half as much for products
SCORES_TO_RANK = 1 << 26  # in fp32 268 MB: 262 positions of 256,000 entries
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
    """Positions whose scores over so many entries are ranked at once."""
    return max(1, SCORES_TO_RANK // entries)


def entries_at_once(positions: int) -> int:
    """Entries that so many positions are scored over at once, while training."""
    return max(1, SCORES_AT_ONCE // positions)


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


class WideCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's outputs, in nats; a gradient that nobody asks for is not computed.

    Inputs: hidden (positions, width), weight (entries, width), bias (entries,) or None, labels int64 (positions,), and
    how many entries are scored at once. The gradients are made on the way forward. A first pass over the entries has
    the sums of exponentials, relative to the highest score so far, and with them what the hidden states get (as Milakov
    and Gimelshein 2018, "Online normalizer calculation for softmax"); where the weight trains, a second pass scores
    again, for a score's probability is known by then, and a block of the weight has its whole gradient in one product.
    Scores stand (entries, positions), the layout in which CPUs multiply them fastest with the hidden states.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The loss, an fp32 scalar."""
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        wide, positions = torch.float32, len(hidden)
        # in bf16 products are read from and written to a copy
        scores = hidden.new_empty(min(step, len(weight)), positions, dtype=wide)
        narrow = scores if hidden.dtype == wide else torch.empty_like(scores, dtype=hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=wide) if of_hidden else None
        grad_weight = torch.empty_like(weight) if of_weight else None
        grad_bias = torch.empty_like(weight[:, 0], dtype=wide) if of_bias else None
        highest = hidden.new_full((positions,), -torch.inf, dtype=wide)
        sums, at_labels = torch.zeros_like(highest), torch.zeros_like(highest)

        def scored(start: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
            here, products = weight[start : start + step], narrow[: len(weight) - start]
            torch.mm(here, hidden.T, out=products)
            found = scores[: len(here)]
            if found.dtype != products.dtype:
                found.copy_(products)
            if bias is not None:
                found.add_(bias[start : start + step, None])
            place = labels - start
            inside = ((place >= 0) & (place < len(here))).to(wide)
            return found, products, place.clamp(0, len(here) - 1)[None], inside[None]

        for start in range(0, len(weight), step):
            found, products, place, inside = scored(start)
            at_labels += (found.gather(0, place) * inside)[0]
            before, highest = highest, torch.maximum(highest, found.amax(0))
            shrunk = (before - highest).exp_()
            sums.mul_(shrunk).add_(found.sub_(highest).exp_().sum(0))
            if grad_hidden is not None:
                products.copy_(found)
                grad_hidden.mul_(shrunk[:, None]).add_(products.T @ weight[start : start + step])
        if grad_hidden is not None:
            grad_hidden.div_(sums[:, None]).sub_(weight[labels])
        totals = highest + sums.log()
        for start in range(0, len(weight), step) if of_weight or of_bias else ():
            found, products, place, inside = scored(start)
            # d loss / d score = probability - 1 at the label
            found.sub_(totals).exp_().scatter_add_(0, place, -inside)
            if grad_bias is not None:
                grad_bias[start : start + step] = found.sum(1)
            if grad_weight is not None:
                products.copy_(found)
                torch.mm(products, hidden, out=grad_weight[start : start + step])
        # not `save_for_backward`, whose reference makes autograd copy what it could keep
        ctx.gradients = grad_hidden, grad_weight, grad_bias
        ctx.positions, ctx.dtype = positions, hidden.dtype
        return (totals - at_labels).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        (of_loss,) = gradients
        if ctx.gradients is None:
            raise RuntimeError("a second backward pass, but the gradient was made for one")
        made, ctx.gradients = ctx.gradients, None
        share = of_loss / ctx.positions
        return (*(None if found is None else found.mul_(share).to(ctx.dtype) for found in made), None, None)

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
from torch._subclasses.fake_tensor import FakeTensor

SCORES_AT_ONCE = 1 << 22  # while training: in fp32 17 MB, and in bf16 half as much for products
ALIGNED = 64  # entries that a block is a multiple of, where it has so many; products of 3,392 are faster than of 3,404
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
    some = SCORES_AT_ONCE // positions
    return max(1, some // ALIGNED * ALIGNED or some)


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
    Scores stand (positions, entries) in the first pass and (entries, positions) in the second, so that the product
    with them needs no transpose: CPUs take up to twice as long for one that does.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The loss, an fp32 scalar."""
        of_hidden, of_weight, of_bias = ctx.needs_input_grad[:3]
        wide, positions = torch.float32, len(hidden)
        # in bf16 products are read from and written to a copy
        scores = hidden.new_empty(min(step, len(weight)) * positions, dtype=wide)
        narrow = scores if hidden.dtype == wide else torch.empty_like(scores, dtype=hidden.dtype)
        grad_hidden = torch.zeros_like(hidden, dtype=wide) if of_hidden else None
        grad_weight = torch.empty_like(weight) if of_weight else None
        grad_bias = torch.empty_like(weight[:, 0], dtype=wide) if of_bias else None
        highest = hidden.new_full((positions,), -torch.inf, dtype=wide)
        sums, at_labels = torch.zeros_like(highest), torch.zeros_like(highest)

        def scored(start: int, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Products of the rows of both, as they come out and in fp32."""
            size = len(left) * len(right)
            products, found = narrow[:size].view(len(left), -1), scores[:size].view(len(left), -1)
            torch.mm(left, right.T, out=products)
            if found.dtype != products.dtype:
                found.copy_(products)
            if bias is not None:
                some = bias[start : start + step]
                found.add_(some if left is hidden else some[:, None])
            return found, products

        def labelled(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
            """Each position's place among these entries, and whether it is there (1) or elsewhere (0)."""
            place = labels - start
            return place.clamp(0, count - 1), ((place >= 0) & (place < count)).to(wide)

        for start in range(0, len(weight), step):
            here = weight[start : start + step]
            found, products = scored(start, hidden, here)
            place, inside = labelled(start, len(here))
            at_labels += found.gather(1, place[:, None])[:, 0] * inside
            before, highest = highest, torch.maximum(highest, found.amax(1))
            shrunk = (before - highest).exp_()
            sums.mul_(shrunk).add_(found.sub_(highest[:, None]).exp_().sum(1))
            if grad_hidden is not None:
                products.copy_(found)
                grad_hidden.mul_(shrunk[:, None]).add_(products @ here)
        if grad_hidden is not None:
            grad_hidden.div_(sums[:, None]).sub_(weight[labels]).div_(positions)
        totals = highest + sums.log()
        for start in range(0, len(weight), step) if of_weight or of_bias else ():
            here = weight[start : start + step]
            found, products = scored(start, here, hidden)
            place, inside = labelled(start, len(here))
            # d loss / d score = (probability - 1 at the label) / positions
            found.sub_(totals).exp_().scatter_add_(0, place[None], -inside[None])
            if grad_bias is not None:
                grad_bias[start : start + step] = found.sum(1).div_(positions)
            if grad_weight is not None:
                products.copy_(found)
                some = grad_weight[start : start + step]
                torch.addmm(some, products, hidden, beta=0, alpha=1 / positions, out=some)
        # not `save_for_backward`, whose reference makes autograd copy what it could keep
        ctx.gradients = grad_hidden, grad_weight, grad_bias
        ctx.dtype = hidden.dtype
        return (totals - at_labels).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        (of_loss,) = gradients
        if ctx.gradients is None:
            raise RuntimeError("a second backward pass, but the gradient was made for one")
        made, ctx.gradients = ctx.gradients, None
        # to look would stop a GPU, and fake tensors have nothing to see
        as_made = of_loss.device.type == "cpu" and not isinstance(of_loss, FakeTensor) and of_loss == 1
        scaled = (found if found is None or as_made else found.mul_(of_loss) for found in made)
        return (*(None if found is None else found.to(ctx.dtype) for found in scaled), None, None)

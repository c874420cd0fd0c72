"""Compute the cross-entropy of a wide head in blocks, so that full scores never exist.

What: while the model runs, the forward of its last linear layer gives the loss instead of logits (masked_lm.py).
Why: with 256,000 entries the scores of one batch take more memory than all else. torch's `linear_cross_entropy` rounds
    the loss of a bf16 model to bf16, which has steps of 0.03 at a loss of 5.
Versions tried: torch 2.13, Transformers 5.23. Two tokens of every model show that the loss is the same.
Measured gain: 82 M parameters, 1,238 -> 1,784 tokens/s, peak 3.7 -> 3.6 GB (docs/results).
Upstream: nothing to send; a loss in fp32 from `linear_cross_entropy` belongs to torch.
Test: tests/model/test_head.py, tests/end_to_end/test_switches.py.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor

SCORES_AT_ONCE = 1 << 22  # while training: in fp32 17 MB, and in bf16 half as much for products
ALIGNED = 64  # entries that a block is a multiple of, where it has so many; products of 3,392 are faster than of 3,404


def entries_at_once(positions: int) -> int:
    """Entries that so many positions are scored over at once, while training."""
    some = SCORES_AT_ONCE // positions
    return max(1, some // ALIGNED * ALIGNED or some)


class WideCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's outputs, in nats; a gradient that nobody asks for is not computed.

    Inputs: hidden (positions, width), weight (entries, width), bias (entries,) or None, labels int64 (positions,), and
    how many entries are scored at once. The forward pass has the sums of exponentials, relative to the highest score so
    far, and with them what the hidden states get (as Milakov and Gimelshein 2018, "Online normalizer calculation for
    softmax"). The backward pass, where the weight trains, scores again, for a score's probability is known by then, and
    a block of the weight has its whole gradient in one product. Scores stand (positions, entries) in the first and
    (entries, positions) in the second, so that the product with them needs no transpose: CPUs take up to twice as long
    for one that does.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> torch.Tensor:
        """The loss, an fp32 scalar."""
        positions = len(hidden)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        highest = hidden.new_full((positions,), -torch.inf, dtype=torch.float32)
        sums, at_labels = torch.zeros_like(highest), torch.zeros_like(highest)
        blocks = _Blocks(hidden, weight, bias, labels, step)
        for start in range(0, len(weight), step):
            here, found, products = blocks.scored(start, entries_first=False)
            place, inside = blocks.labelled(start)
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
        ctx.step = step
        ctx.save_for_backward(hidden, weight, bias, labels, totals, grad_hidden)
        return (totals - at_labels).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradients of hidden, weight and bias."""
        (of_loss,) = gradients
        hidden, weight, bias, labels, totals, made = ctx.saved_tensors
        grad_hidden = None if made is None else (made * of_loss).to(hidden.dtype)
        _, of_weight, of_bias = ctx.needs_input_grad[:3]
        if not (of_weight or of_bias):
            return grad_hidden, None, None, None, None
        grad_weight = torch.empty_like(weight) if of_weight else None
        grad_bias = torch.empty_like(bias) if of_bias else None
        # d loss / d score = (probability - 1 at the label) * share
        share = of_loss / len(hidden)
        # as a factor of the product where it is known: to look would stop a GPU, and fake tensors have nothing to see
        known = of_loss.device.type == "cpu" and not isinstance(of_loss, FakeTensor)
        factor = share.item() if known else 1.0
        blocks = _Blocks(hidden, weight, bias, labels, ctx.step)
        for start in range(0, len(weight), ctx.step):
            _, found, products = blocks.scored(start, entries_first=True)
            place, inside = blocks.labelled(start)
            found.sub_(totals).exp_().scatter_add_(0, place[None], -inside[None])
            if grad_bias is not None:
                grad_bias[start : start + ctx.step] = found.sum(1).mul_(share)
            if grad_weight is not None:
                products.copy_(found)
                some = grad_weight[start : start + ctx.step]
                torch.addmm(some, products, hidden, beta=0, alpha=factor, out=some)
                if not known:
                    some.mul_(share)
        return grad_hidden, grad_weight, grad_bias, None, None


class _Blocks:
    """Scores of some entries at a time, each block in the memory of the one before."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> None:
        self.hidden, self.weight, self.bias, self.labels, self.step = hidden, weight, bias, labels, step
        self._scores = hidden.new_empty(min(step, len(weight)) * len(hidden), dtype=torch.float32)
        # in bf16 products are read from and written to a copy
        narrow = hidden.dtype != torch.float32
        self._narrow = torch.empty_like(self._scores, dtype=hidden.dtype) if narrow else self._scores

    def scored(self, start: int, entries_first: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The weights of some entries, and their scores: in fp32, and room for them as products take them."""
        here = self.weight[start : start + self.step]
        left, right = (here, self.hidden) if entries_first else (self.hidden, here)
        size = len(left) * len(right)
        products, found = self._narrow[:size].view(len(left), -1), self._scores[:size].view(len(left), -1)
        torch.mm(left, right.T, out=products)
        if found.dtype != products.dtype:
            found.copy_(products)
        if self.bias is not None:
            some = self.bias[start : start + self.step]
            found.add_(some[:, None] if entries_first else some)
        return here, found, products

    def labelled(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Each position's place among these entries, and whether it is there (1) or elsewhere (0)."""
        place, count = self.labels - start, min(self.step, len(self.weight) - start)
        return place.clamp(0, count - 1), ((place >= 0) & (place < count)).to(torch.float32)

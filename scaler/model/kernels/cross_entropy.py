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

SCORES_AT_ONCE = 1 << 22  # while training: 17 MB in fp32, and in bf16 half as much again for products
ALIGNED = 64  # a block is a multiple of so many entries: products of 3,392 are faster than of 3,404


def entries_at_once(positions: int) -> int:
    """Return over how many entries so many positions are scored at once while training."""
    some = SCORES_AT_ONCE // positions
    return max(1, some // ALIGNED * ALIGNED or some)


class WideCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of a linear layer's outputs in nats; only gradients that are needed are computed.

    Inputs: hidden (positions, width), weight (entries, width), bias (entries,) or None, labels int64 (positions,), and
    the number of entries scored at once.

    The forward pass sums exponentials relative to the highest score so far, and with them the gradient of the hidden
    states. (Milakov and Gimelshein 2018, "Online normalizer calculation for softmax".) Where the weight trains, the
    backward pass scores again: each score's probability is then known, so one product gives the whole gradient of a
    block of the weight. Scores are laid out (positions, entries) in the forward pass and (entries, positions) in the
    backward pass, so that products need no transpose. With one, CPUs take up to twice as long.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Return the loss, an fp32 scalar."""
        positions = len(hidden)
        grad_hidden = torch.zeros_like(hidden, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        highest = hidden.new_full((positions,), -torch.inf, dtype=torch.float32)
        sums, at_labels = torch.zeros_like(highest), torch.zeros_like(highest)
        blocks = _Blocks(hidden, weight, bias, labels, step)
        for start in range(0, len(weight), step):
            weights, found, products = blocks.scored(start, entries_first=False)
            place, inside = blocks.labelled(start)
            at_labels += found.gather(1, place[:, None])[:, 0] * inside
            before, highest = highest, torch.maximum(highest, found.amax(1))
            shrunk = (before - highest).exp_()
            sums.mul_(shrunk).add_(found.sub_(highest[:, None]).exp_().sum(1))
            if grad_hidden is not None:
                products.copy_(found)
                grad_hidden.mul_(shrunk[:, None]).add_(products @ weights)
        if grad_hidden is not None:
            grad_hidden.div_(sums[:, None]).sub_(weight[labels]).div_(positions)
        totals = highest + sums.log()
        ctx.step = step
        ctx.save_for_backward(hidden, weight, bias, labels, totals, grad_hidden)
        return (totals - at_labels).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of hidden, weight and bias."""
        (of_loss,) = gradients
        hidden, weight, bias, labels, totals, made = ctx.saved_tensors
        grad_hidden = None if made is None else (made * of_loss).to(hidden.dtype)
        _, of_weight, of_bias = ctx.needs_input_grad[:3]
        if not (of_weight or of_bias):
            return grad_hidden, None, None, None, None
        grad_weight = torch.empty_like(weight) if of_weight else None
        grad_bias = torch.empty_like(bias) if of_bias else None
        # d loss / d score = (probability - 1 at the label) * scale
        scale = of_loss / len(hidden)
        # a factor of the product where its value is at hand: reading it would stop a GPU, and fake tensors have none
        known = of_loss.device.type == "cpu" and not isinstance(of_loss, FakeTensor)
        factor = scale.item() if known else 1.0
        blocks = _Blocks(hidden, weight, bias, labels, ctx.step)
        for start in range(0, len(weight), ctx.step):
            _, found, products = blocks.scored(start, entries_first=True)
            place, inside = blocks.labelled(start)
            found.sub_(totals).exp_().scatter_add_(0, place[None], -inside[None])
            if grad_bias is not None:
                grad_bias[start : start + ctx.step] = found.sum(1).mul_(scale)
            if grad_weight is not None:
                products.copy_(found)
                some = grad_weight[start : start + ctx.step]
                torch.addmm(some, products, hidden, beta=0, alpha=factor, out=some)
                if not known:
                    some.mul_(scale)
        return grad_hidden, grad_weight, grad_bias, None, None


class _Blocks:
    """Scores in blocks of some entries, each block in the memory of the one before."""

    def __init__(
        self, hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, labels: torch.Tensor, step: int
    ) -> None:
        self.hidden, self.weight, self.bias, self.labels, self.step = hidden, weight, bias, labels, step
        self._scores = hidden.new_empty(min(step, len(weight)) * len(hidden), dtype=torch.float32)
        # in bf16 products are read from and written to a copy
        narrow = hidden.dtype != torch.float32
        self._narrow = torch.empty_like(self._scores, dtype=hidden.dtype) if narrow else self._scores

    def scored(self, start: int, entries_first: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return some entries' weights, their scores in fp32, and memory for scores in the precision of products."""
        weights = self.weight[start : start + self.step]
        left, right = (weights, self.hidden) if entries_first else (self.hidden, weights)
        size = len(left) * len(right)
        products, found = self._narrow[:size].view(len(left), -1), self._scores[:size].view(len(left), -1)
        torch.mm(left, right.T, out=products)
        if found.dtype != products.dtype:
            found.copy_(products)
        if self.bias is not None:
            some = self.bias[start : start + self.step]
            found.add_(some[:, None] if entries_first else some)
        return weights, found, products

    def labelled(self, start: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each label's place in this block of entries, and 1 where it is in the block, else 0."""
        place, count = self.labels - start, min(self.step, len(self.weight) - start)
        return place.clamp(0, count - 1), ((place >= 0) & (place < count)).to(torch.float32)

"""The wide head: loss and gradient some entries at a time, as torch gives them for all at once."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from scaler.model import masked_lm
from scaler.model.kernels import cross_entropy

POSITIONS, WIDTH, ENTRIES = 23, 16, 300


@pytest.fixture
def problem():
    torch.manual_seed(0)
    hidden, weight = torch.randn(POSITIONS, WIDTH), torch.randn(ENTRIES, WIDTH)
    return hidden, weight, torch.randn(ENTRIES), torch.randint(0, ENTRIES, (POSITIONS,))


def reference(hidden, weight, bias, labels):
    """Loss and gradients in float64."""
    leaves = [found.double().requires_grad_() for found in (hidden, weight, bias)]
    loss = nn.functional.cross_entropy(nn.functional.linear(*leaves), labels)
    return [loss.detach(), *torch.autograd.grad(loss * 3, leaves)]


def relative(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("step", [1, 7, 100, ENTRIES, 1000])
@pytest.mark.parametrize(
    ("dtype", "of_loss", "of_gradients"), [(torch.float32, 1e-6, 1e-6), (torch.bfloat16, 2e-3, 1e-2)]
)
def test_loss_and_gradients_are_those_of_all_scores_at_once(problem, dtype, of_loss, of_gradients, step):
    rounded = [found.to(dtype) for found in problem[:3]]
    leaves = [found.clone().requires_grad_() for found in rounded]
    loss = cross_entropy.WideCrossEntropy.apply(*leaves, problem[3], step)
    (loss * 3).backward()
    expected = reference(*rounded, problem[3])
    assert loss.dtype == torch.float32  # also of a bf16 model
    assert relative(loss.detach(), expected[0]) < of_loss
    for leaf, gradient in zip(leaves, expected[1:], strict=True):
        assert leaf.grad.dtype == dtype and relative(leaf.grad, gradient) < of_gradients


def test_scores_that_differ_by_thousands_overflow_nothing(problem):
    hidden, weight, bias, labels = problem
    leaves = [(hidden * 1e3).requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    loss = cross_entropy.WideCrossEntropy.apply(*leaves, labels, 5)
    loss.backward()
    expected = reference(*(leaf.detach() for leaf in leaves), labels)
    assert relative(loss.detach(), expected[0]) < 1e-6
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_a_frozen_weight_costs_no_second_pass_and_no_bias_is_needed(problem):
    hidden, weight, _, labels = problem
    hidden.requires_grad_()

    def products():
        with FlopCounterMode(display=False) as counted:
            cross_entropy.WideCrossEntropy.apply(hidden, weight, None, labels, 70).backward()
        return counted.get_total_flops() / (2 * POSITIONS * WIDTH * ENTRIES)

    assert products() == 2 and weight.grad is None
    expected = reference(hidden.detach(), weight, torch.zeros(ENTRIES), labels)[1] / 3
    assert relative(hidden.grad, expected) < 1e-6
    weight.requires_grad_()
    assert products() == 4 and weight.grad is not None


def test_a_second_backward_pass_gives_the_same(problem):
    hidden, weight, bias, labels = problem
    leaves = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    loss = cross_entropy.WideCrossEntropy.apply(*leaves, labels, 5)
    first = torch.autograd.grad(loss, leaves, retain_graph=True)
    assert all(torch.equal(*pair) for pair in zip(first, torch.autograd.grad(loss, leaves), strict=True))


def test_scores_in_pieces_are_those_of_all(problem):
    hidden, weight, bias, labels = problem

    def logits_of(some):
        return nn.functional.linear(some, weight, bias)

    logits = logits_of(hidden)
    for step in (1, 7, POSITIONS):
        found = masked_lm.score(logits_of, hidden, labels, step)
        assert torch.allclose(found.losses, nn.functional.cross_entropy(logits, labels, reduction="none"), rtol=1e-5)
        assert torch.equal(found.guesses, logits.topk(masked_lm.TOP).indices)
        assert torch.allclose(found.probabilities, logits.softmax(-1).topk(masked_lm.TOP).values, rtol=1e-4)


def test_wide_vocabularies_are_scored_a_few_positions_at_a_time():
    assert (
        masked_lm.positions_at_once(256_000) * 256_000
        <= masked_lm.SCORES_TO_RANK
        < (masked_lm.positions_at_once(256_000) + 1) * 256_000
    )
    assert masked_lm.positions_at_once(1 << 40) == 1
    some = cross_entropy.entries_at_once(1000)
    assert (
        some % cross_entropy.ALIGNED == 0
        and some * 1000 <= cross_entropy.SCORES_AT_ONCE < (some + cross_entropy.ALIGNED) * 1000
    )
    assert cross_entropy.entries_at_once(cross_entropy.SCORES_AT_ONCE // 3) == 3
    assert cross_entropy.entries_at_once(1 << 40) == 1

"""Attention and dropout on CPUs, beside torch's own."""

from __future__ import annotations

import pytest
import torch
from families import FAMILIES, SEQ_LEN, SMALL
from packed import VOCABULARY, make_documents, make_reader
from torch import nn

from scaler.model import build, masked_lm
from scaler.model.kernels import attention, dropout

ROWS, HEADS, SIZE = 3, 4, 8
# documents of one token, of the length of a row, and of lengths that are filled up
ROWS_OF_DOCUMENTS = {64: ([64], [1, 30, 33], [5, 5, 5, 49]), 50: ([50], [49, 1], [20, 30])}


def masks(seq_len: int) -> torch.Tensor:
    rows = [torch.repeat_interleave(torch.arange(len(row)), torch.tensor(row)) for row in ROWS_OF_DOCUMENTS[seq_len]]
    return masked_lm.document_mask(torch.stack(rows))


def states(seq_len: int, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Query, key and value as models have them: views of (rows, seq_len, heads, size)."""
    torch.manual_seed(0)
    return [torch.randn(ROWS, seq_len, HEADS, SIZE, dtype=dtype, requires_grad=True) for _ in range(3)]


def plain(given: list[torch.Tensor], mask: torch.Tensor, kept: torch.Tensor | None = None) -> torch.Tensor:
    query, key, value = (some.transpose(1, 2) for some in given)
    shares = (query @ key.transpose(2, 3) * SIZE**-0.5).masked_fill(~mask, -torch.inf).softmax(-1)
    if kept is not None:
        shares = shares * kept
    return (shares @ value).transpose(1, 2)


def ours(given: list[torch.Tensor], mask: torch.Tensor, **options: object) -> torch.Tensor:
    told, nothing = attention.forward(nn.Module(), *(some.transpose(1, 2) for some in given), mask, **options)
    assert nothing is None
    return told


def gradients(told: torch.Tensor, given: list[torch.Tensor]) -> list[torch.Tensor]:
    draws = torch.Generator().manual_seed(1)
    return [told, *torch.autograd.grad(told, given, torch.randn(told.shape, generator=draws).to(told.dtype))]


@pytest.mark.parametrize("seq_len", ROWS_OF_DOCUMENTS)
@pytest.mark.parametrize("at_once", [1, 1 << 22])
def test_gradients_are_those_of_plain_attention(seq_len, at_once, monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_ONCE", at_once)
    given, mask = states(seq_len), masks(seq_len)
    told = ours(given, mask)
    assert "_Attention" in type(told.grad_fn.next_functions[0][0]).__name__
    for found, expected in zip(gradients(told, given), gradients(plain(given, mask), given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_any_layout_of_the_states_will_do():
    mask = masks(64)
    given = [some.detach().transpose(1, 2).contiguous().requires_grad_() for some in states(64)]
    told, _ = attention.forward(nn.Module(), *given, mask)
    views = [some.transpose(1, 2) for some in given]
    for found, expected in zip(gradients(told, given), gradients(plain(views, mask), given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    dropped, _ = attention.forward(nn.Module(), *given, mask, dropout=0.5)
    assert dropped.shape == told.shape


def test_bf16_gradients_are_as_good_as_those_of_plain_attention():
    mask = masks(64)
    given = states(64, torch.bfloat16)
    wide = [some.detach().float().requires_grad_() for some in given]
    exact = gradients(plain(wide, mask), wide)

    def errors(found: list[torch.Tensor]) -> list[float]:
        return [((a - b).norm() / b.norm()).item() for a, b in zip(found, exact, strict=True)]

    found, expected = errors(gradients(ours(given, mask), given)), errors(gradients(plain(given, mask), given))
    assert all(one < 1.2 * other for one, other in zip(found, expected, strict=True)), (found, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_with_dropout_the_draws_of_both_passes_are_the_same(dtype, monkeypatch):
    # one document a row, in one group, so that the draws are in the order of the scores
    given, mask = states(64, dtype), torch.ones((ROWS, 1, 64, 64), dtype=torch.bool)
    monkeypatch.setattr(dropout, "seed", lambda: 7)
    kept = dropout.kept(torch.Size((ROWS, HEADS, 64, 64)), 0.25, dropout.draws(7))
    expected = gradients(plain(given, mask, kept.to(dtype) / 0.75), given)
    near = {"rtol": 1e-4, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0.1, "atol": 0.1}
    for found, right in zip(gradients(ours(given, mask, dropout=0.25), given), expected, strict=True):
        torch.testing.assert_close(found, right, **near)


def test_dropout_hangs_on_torchs_seed_and_on_nothing_else():
    given, mask = states(64), masks(64)
    torch.manual_seed(3)
    first, second = (ours(given, mask, dropout=0.5) for _ in range(2))
    torch.manual_seed(3)
    assert torch.equal(ours(given, mask, dropout=0.5), first) and not torch.equal(first, second)


def test_other_masks_and_no_gradients_are_torchs():
    given, mask = states(64), masks(64)
    near = mask & ((torch.arange(64).unsqueeze(1) - torch.arange(64)).abs() < 3)
    assert not attention.Documents(near).apart and attention.Documents(mask).apart
    torch.testing.assert_close(ours(given, near), plain(given, near))
    padding = mask[:, :, 2:3].expand(-1, -1, 64, -1)  # keys that all queries see
    torch.testing.assert_close(ours(given, padding), plain(given, padding))
    # one mask for all rows, and a bias on the scores
    torch.testing.assert_close(ours(given, mask[1:2]), plain(given, mask[1:2]))
    bias = torch.randn(1, HEADS, 64, 64)
    biased = ours(given, mask, position_bias=bias)
    added = torch.where(mask, bias, -torch.inf)
    query, key, value = (some.transpose(1, 2) for some in given)
    expected = ((query @ key.transpose(2, 3) * SIZE**-0.5 + added).softmax(-1) @ value).transpose(1, 2)
    torch.testing.assert_close(biased, expected)
    with torch.no_grad():
        torch.testing.assert_close(ours(given, mask), plain(given, mask))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_learns_the_same_with_and_without_it(family, tmp_path):
    settings = {"model_type": family, **SMALL, **FAMILIES[family]}
    config = build.configuration(settings, VOCABULARY, 400, SEQ_LEN)
    reader = make_reader(tmp_path, make_documents([9, 14, 12, 3, 30]), SEQ_LEN, 4, first=build.first_position(config))
    # without dropout
    networks = [masked_lm.MaskedLM(build.build(config, 0)).eval() for _ in range(2)]
    assert networks[0].model.config._attn_implementation == attention.NAME
    networks[1].model.set_attn_implementation(build.ATTENTION)
    for network in networks:
        network(reader.at(0, len(reader.rows)))[0].backward()
    for (name, found), right in zip(networks[0].named_parameters(), networks[1].parameters(), strict=True):
        assert found.grad is not None and right.grad is not None, name
        torch.testing.assert_close(found.grad, right.grad, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dropout_drops_its_share_and_keeps_the_mean(dtype):
    torch.manual_seed(0)
    numbers = torch.ones(1_000_001, dtype=dtype, requires_grad=True)  # not a multiple of four
    layer = dropout.Dropout(0.1)
    found = layer(numbers)
    (gradient,) = torch.autograd.grad(found, numbers, torch.ones_like(found))
    dropped = found.float() == 0
    assert 0.098 < dropped.float().mean() < 0.102
    # by chance 0.0003, and no two neighbours of a draw hang together
    assert 0.0085 < (dropped[:-1] & dropped[1:]).float().mean() < 0.0115
    torch.testing.assert_close(found[~dropped], torch.full_like(found[~dropped], 1 / 0.9))
    assert torch.equal(gradient, found)


def test_dropout_of_nearly_all_drops_nearly_all():
    assert (dropout.Dropout(1 - 1e-7)(torch.ones(100_000)) == 0).sum() > 99_900


def test_dropout_of_nothing_and_of_all_and_when_not_training():
    numbers = torch.ones(10)
    assert torch.equal(dropout.Dropout(0.0)(numbers), numbers)
    assert torch.equal(dropout.Dropout(1.0)(numbers), torch.zeros(10))
    assert torch.equal(dropout.Dropout(0.5).eval()(numbers), numbers)


def test_all_dropout_of_a_model_is_drawn_so():
    network = nn.Sequential(nn.Dropout(0.1), nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.3)), nn.Dropout1d(0.2))
    dropout.install(network.eval())
    assert [type(m) for m in (network[0], network[1][1], network[2])] == [
        dropout.Dropout,
        dropout.Dropout,
        nn.Dropout1d,
    ]
    assert network[1][1].p == 0.3 and not network[1][1].training

"""Dynamic masking: a fixed number of positions a row, never a special token, 80/10/10, and by row, not by batch."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.config.recipe import masked_per_row
from scaler.core.errors import ScalerError
from scaler.data.masking import choose_positions, mask_rows
from scaler.data.order import key

MASK, ORDINARY = 4, np.arange(5, 1005)


@st.composite
def rows_and_counts(draw):
    """Random rows of special and ordinary places, and a count that each of them can give."""
    seq_len = draw(st.integers(2, 300))
    maskable = np.random.default_rng(draw(st.integers(0, 1 << 32))).random((8, seq_len)) < draw(st.floats(0.1, 1.0))
    maskable[:, draw(st.integers(0, seq_len - 1))] = True
    return maskable, draw(st.integers(1, int(maskable.sum(1).min())))


@settings(deadline=None)
@given(rows_and_counts(), st.integers(0, 1 << 62))
def test_positions_are_as_many_as_asked_distinct_ascending_and_maskable(case, seed):
    maskable, count = case
    positions = choose_positions(maskable, count, key(seed, np.arange(8)))
    assert positions.shape == (8, count)
    assert (np.diff(positions, axis=1) > 0).all()
    assert np.take_along_axis(maskable, positions, axis=1).all()


def test_not_even_the_largest_hash_gives_way_to_a_special_token():
    # 14 bits of hash: of 131,072 maskable positions some draw the largest, and all are needed
    maskable = np.arange(1 << 18) % 2 == 1
    positions = choose_positions(maskable[None], maskable.sum(), key(0, np.arange(1)))
    assert np.array_equal(positions[0], np.flatnonzero(maskable))


def test_a_row_with_too_little_to_mask_gives_up_special_tokens_rather_than_fail():
    # a document may spell special tokens and nothing else
    maskable = np.zeros((1, 48), bool)
    maskable[0, [5, 40]] = True
    assert choose_positions(maskable, 4, key(0, np.arange(1))).tolist() == [[0, 1, 5, 40]]


def test_every_position_is_chosen_equally_often():
    rows, seq_len, count = 20_000, 33, 5
    positions = choose_positions(np.ones((rows, seq_len), bool), count, key(0, np.arange(rows)))
    share = count / seq_len
    deviations = (np.bincount(positions.ravel()) - rows * share) / np.sqrt(rows * share * (1 - share))
    assert np.abs(deviations).max() < 4.5
    # a count of 5 in each row ties the places together: one degree of freedom less
    assert (deviations**2).sum() * (seq_len - 1) / seq_len < (seq_len - 1) + 5 * np.sqrt(2 * (seq_len - 1))


def test_every_pair_of_positions_is_chosen_equally_often():
    rows, seq_len = 50_000, 9
    first, second = choose_positions(np.ones((rows, seq_len), bool), 2, key(1, np.arange(rows))).T
    counts = np.bincount(first * seq_len + second, minlength=seq_len**2).reshape(seq_len, seq_len)
    pairs = counts[np.triu_indices(seq_len, 1)]
    assert ((pairs - rows / 36) ** 2 / (rows / 36)).sum() < 35 + 5 * np.sqrt(2 * 35)


@pytest.fixture(scope="module")
def masked():
    """Many masked rows: the ids before, the ids after, positions and labels."""
    rows, seq_len = 4000, 64
    before = ORDINARY[np.random.default_rng(0).integers(0, len(ORDINARY), (rows, seq_len))]
    keys = key(7, np.arange(rows))
    positions = choose_positions(np.ones((rows, seq_len), bool), 16, keys)
    after = before.copy()
    labels = mask_rows(after, positions, keys, MASK, ORDINARY)
    return before, after, positions, labels


def test_labels_are_what_stood_there_and_the_rest_is_untouched(masked):
    before, after, positions, labels = masked
    elsewhere = np.ones(before.shape, bool)
    np.put_along_axis(elsewhere, positions, False, axis=1)
    assert np.array_equal(labels, np.take_along_axis(before, positions, axis=1))
    assert np.array_equal(after[elsewhere], before[elsewhere])


def test_eight_in_ten_are_masked_one_random_one_kept(masked):
    _, after, positions, labels = masked
    there = np.take_along_axis(after, positions, axis=1)
    n = there.size
    # one in a thousand random ids is the one that stood there
    for chosen, share in (
        (there == MASK, 0.8),
        (there == labels, 0.1001),
        ((there != MASK) & (there != labels), 0.0999),
    ):
        assert abs(chosen.sum() - n * share) < 4.5 * np.sqrt(n * share * (1 - share))


def test_random_ids_are_any_ordinary_ones_and_no_special(masked):
    _, after, positions, labels = masked
    there = np.take_along_axis(after, positions, axis=1)
    counts = np.bincount(there[(there != MASK) & (there != labels)], minlength=1005)
    expected = counts.sum() / len(ORDINARY)
    assert counts[:5].sum() == 0
    assert ((counts[5:] - expected) ** 2 / expected).sum() < 999 + 5 * np.sqrt(2 * 999)


def test_fate_and_position_are_independent(masked):
    _, after, positions, _ = masked
    is_mask = np.take_along_axis(after, positions, axis=1) == MASK
    by_place = np.bincount(positions.ravel(), weights=is_mask.ravel()) / np.bincount(positions.ravel())
    assert np.abs(by_place - 0.8).max() < 4.5 * np.sqrt(0.16 / 1000)


def test_another_epoch_masks_other_positions():
    maskable = np.ones((500, 64), bool)
    first, second = (choose_positions(maskable, 10, key(0, epoch, np.arange(500))) for epoch in (0, 1))
    shared = np.mean([len(np.intersect1d(a, b)) for a, b in zip(first, second, strict=True)])
    assert shared == pytest.approx(10 * 10 / 64, abs=0.25)


@pytest.mark.parametrize(
    "seq_len, probability, count", [(128, 0.15, 19), (512, 0.15, 77), (128, 0.3, 38), (8, 0.15, 1)]
)
def test_the_number_of_masked_positions_follows_from_the_probability(seq_len, probability, count):
    assert masked_per_row(seq_len, probability) == count


@pytest.mark.parametrize("probability", [0.01, 0.99])
def test_a_row_without_or_of_nothing_but_masks_is_refused(probability):
    with pytest.raises(ScalerError, match=f"objective.mask_probability={probability} masks"):
        masked_per_row(8, probability)


def test_the_masks_are_the_ones_they_always_were():
    keys = key(0, 0, np.arange(3))
    positions = choose_positions(np.ones((3, 16), bool), 4, keys)
    ids = np.tile(np.arange(100, 116), (3, 1))
    mask_rows(ids, positions, keys, MASK, ORDINARY)
    assert positions.tolist() == [[0, 1, 5, 8], [8, 12, 13, 14], [0, 2, 5, 13]]
    assert np.take_along_axis(ids, positions, axis=1).tolist() == [[4, 4, 4, 4], [4, 546, 113, 313], [4, 4, 105, 4]]

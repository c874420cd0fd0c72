"""Sample order: each epoch a permutation of its own, reachable at any point, and the same for ever."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.data.order import key, permute, rows_at


@settings(deadline=None)
@given(n=st.integers(1, 3000), seed=st.integers(0, (1 << 63) - 1))
def test_permute_reaches_every_place_once(n, seed):
    assert np.array_equal(np.sort(permute(np.arange(n), n, key(seed))), np.arange(n))


@pytest.mark.parametrize("n", [1 << 40, (1 << 40) + 15, 999_999_937])
def test_permute_is_one_to_one_on_sets_that_no_memory_holds(n):
    sent = permute(np.arange(20_000) * (n // 20_000), n, key(0))
    assert len(np.unique(sent)) == 20_000
    assert sent.min() >= 0 and sent.max() < n
    assert abs(sent.mean() / n - 0.5) < 0.01


def test_another_key_gives_another_order():
    orders = {permute(np.arange(50), 50, key(seed)).tobytes() for seed in range(200)}
    assert len(orders) == 200


def test_every_position_sees_every_row_equally_often():
    counts = np.zeros((10, 10))
    for seed in range(5000):
        counts[np.arange(10), permute(np.arange(10), 10, key(seed))] += 1
    # chi-square with 81 degrees of freedom: mean 81, deviation 13
    assert ((counts - 500) ** 2 / 500).sum() < 81 + 5 * 13


def test_keys_of_different_tuples_differ():
    keys = {int(key(*parts)) for a in range(20) for b in range(20) for parts in ((a,), (a, b), (a, b, 0))}
    assert len(keys) == 20 + 400 + 400


def test_an_array_of_parts_gives_the_keys_of_its_elements():
    assert key(3, np.arange(5), 7).tolist() == [int(key(3, part, 7)) for part in range(5)]


def test_every_epoch_visits_every_row_once_in_an_order_of_its_own():
    epochs, rows = rows_at(0, 4 * 37, 37, seed=1)
    orders = rows.reshape(4, 37)
    assert epochs.tolist() == [epoch for epoch in range(4) for _ in range(37)]
    assert np.array_equal(np.sort(orders), np.tile(np.arange(37), (4, 1)))
    assert len({order.tobytes() for order in orders}) == 4


@settings(deadline=None)
@given(n_rows=st.integers(1, 60), start=st.integers(0, 300), count=st.integers(0, 150), seed=st.integers(0, 1 << 32))
def test_jumping_to_a_place_equals_walking_there(n_rows, start, count, seed):
    walked = [rows_at(place, 1, n_rows, seed) for place in range(start, start + count)]
    epochs, rows = rows_at(start, count, n_rows, seed)
    assert epochs.tolist() == [int(epoch[0]) for epoch, _ in walked]
    assert rows.tolist() == [int(row[0]) for _, row in walked]


def test_the_order_is_the_one_it_always_was():
    assert int(key(1, 2, 3)) == 7702586659592502839
    assert permute(np.arange(10), 10, key(0)).tolist() == [7, 4, 1, 6, 8, 0, 5, 9, 2, 3]
    assert rows_at(5, 8, 7, seed=1)[1].tolist() == [4, 3, 6, 2, 4, 5, 1, 0]
    assert permute(np.arange(3), 1_000_003, key(42, 7)).tolist() == [534881, 429087, 607599]

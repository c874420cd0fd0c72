"""Compute the order of rows as a pure function of integers, (seed, epoch, position) -> row, in O(1) memory."""

from __future__ import annotations

import functools
import math

import numpy as np

BLOCK = 1024  # places in the order that are computed together: a few take as long as hundreds
ROUNDS = 6  # Luby and Rackoff 1988: four rounds make a strong pseudo-random permutation; two to spare


def mix64(value: np.ndarray) -> np.ndarray:
    """Hash 64-bit integers, elementwise, one to one (the finalizer of splitmix64: Steele, Lea and Flood 2014)."""
    value = np.asarray(value, dtype=np.uint64)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(value ^ (value >> np.uint64(31)))


def key(*parts: int | np.ndarray) -> np.ndarray:
    """Hash a tuple of integers, or of arrays of them, into 64-bit keys."""
    folded = np.zeros((), dtype=np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            folded = mix64(folded + np.uint64(0x9E3779B97F4A7C15) + np.asarray(part).astype(np.uint64))
    return folded


def permute(position: np.ndarray, n: int, order_key: np.ndarray) -> np.ndarray:
    """Map each position in [0, n) to its place in [0, n) by a seeded bijection.

    A Feistel network over pairs (left, right) in [0, a) x [0, b) with a * b just above n, walked along its cycle
    until the value falls below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). As a * b < n + a,
    hardly any value walks twice.

    Args:
        position: integers in [0, n), (count,).
        n: size of the set.
        order_key: one 64-bit key for each position, or one for all (broadcast).

    Returns: int64 (count,).
    """
    a = np.uint64(max(1, math.isqrt(n)))
    b = np.uint64(-(-n // int(a)))
    value = np.asarray(position).astype(np.uint64)
    keys = np.broadcast_to(np.asarray(order_key, dtype=np.uint64), value.shape)
    out = np.empty(value.shape, dtype=np.int64)
    where = np.arange(len(value))
    while len(value):
        left, right = np.divmod(value, b)
        with np.errstate(over="ignore"):
            for round_number in range(0, ROUNDS, 2):
                left = (left + (mix64(right + keys + np.uint64(round_number << 56)) >> np.uint64(1))) % a
                right = (right + (mix64(left + keys + np.uint64(round_number + 1 << 56)) >> np.uint64(1))) % b
        value = left * b + right
        inside = value < n
        out[where[inside]] = value[inside].astype(np.int64)
        value, keys, where = value[~inside], keys[~inside], where[~inside]
    return out


def rows_at(consumed_rows: int, count: int, n_rows: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return epoch and row, each int64 (count,), of the next rows of a run that has consumed `consumed_rows`.

    Every epoch visits each of the `n_rows` rows once, in an order of its own.
    """
    first, skipped = divmod(consumed_rows, BLOCK)
    blocks = range(first, -(-(consumed_rows + max(1, count)) // BLOCK))
    epochs, rows = np.concatenate([_block(number, n_rows, seed) for number in blocks], axis=1)
    return epochs[skipped : skipped + count], rows[skipped : skipped + count]


@functools.lru_cache(maxsize=8)
def _block(number: int, n_rows: int, seed: int) -> np.ndarray:
    """Return epochs and rows of one block of the order, int64 (2, BLOCK); the cache keeps it for later calls."""
    epoch, position = np.divmod(np.arange(number * BLOCK, (number + 1) * BLOCK, dtype=np.int64), n_rows)
    block = np.stack([epoch, permute(position, n_rows, key(seed, epoch))])
    return block

"""Mask tokens for the masked-LM objective, anew each epoch: keyed by (seed, epoch, row), never by rank or worker."""

from __future__ import annotations

import numpy as np

from scaler.data.order import mix64

# Devlin et al. 2019: of the chosen positions 80 % become <mask>, 10 % a random token, 10 % stay unchanged.
MASK_FRACTION, RANDOM_FRACTION = 0.8, 0.1


def _scramble32(value: np.ndarray) -> None:
    """Scramble uint32 values in place (lowbias32, the best two-round mixer of Wellons' 2018 search)."""
    shifted = value >> np.uint32(16)
    value ^= shifted
    value *= np.uint32(0x21F0AAAD)
    np.right_shift(value, np.uint32(15), out=shifted)
    value ^= shifted
    value *= np.uint32(0xD35A2D97)
    np.right_shift(value, np.uint32(15), out=shifted)
    value ^= shifted


def choose_positions(maskable: np.ndarray, count: int, row_keys: np.ndarray) -> np.ndarray:
    """Choose `count` maskable positions in each row, uniformly and without replacement.

    Each position draws a hash, and the `count` smallest are chosen. The low bits of the hash hold the position, so that
    one partition of a uint32 array finds them.

    Args:
        maskable: bool (rows, seq_len), at least `count` True in each row.
        count: masked positions in a row.
        row_keys: uint64 (rows,).

    Returns: int64 (rows, count), ascending in each row.
    """
    seq_len = maskable.shape[1]
    position_mask = np.uint32((1 << (seq_len - 1).bit_length()) - 1)
    positions = np.arange(seq_len, dtype=np.uint32)
    low, high = row_keys.astype(np.uint32)[:, None], (row_keys >> np.uint64(32)).astype(np.uint32)[:, None]
    draws = positions * np.uint32(0x9E3779B1) ^ low  # (rows, seq_len)
    _scramble32(draws)
    draws ^= high
    draws &= ~position_mask
    # the largest value is for positions that cannot be masked
    np.minimum(draws, ~position_mask - position_mask - np.uint32(1), out=draws)
    draws |= np.where(maskable, positions, positions | ~position_mask)
    draws.partition(count - 1, axis=1)
    chosen = draws[:, :count] & position_mask
    chosen.sort(axis=1)
    return chosen.astype(np.int64)


def mask_rows(
    input_ids: np.ndarray, positions: np.ndarray, row_keys: np.ndarray, mask_id: int, ordinary_ids: np.ndarray
) -> np.ndarray:
    """Mask the chosen positions of `input_ids` in place, 80/10/10; return the labels.

    Args:
        input_ids: int64 (rows, seq_len), contiguous.
        positions: int64 (rows, masked), the chosen positions.
        row_keys: uint64 (rows,).
        mask_id: id of the mask token.
        ordinary_ids: int64 (n,), the ids that random tokens are drawn from: all but special tokens.

    Returns: int64 (rows, masked), the ids before masking.
    """
    rows, seq_len = input_ids.shape
    flat_ids = input_ids.reshape(-1)  # a view: the array is contiguous
    flat_positions = positions + np.arange(0, rows * seq_len, seq_len)[:, None]
    labels = np.take(flat_ids, flat_positions)
    with np.errstate(over="ignore"):
        draws = mix64(row_keys[:, None] ^ (positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)))
    fate = (draws >> np.uint64(32)).astype(np.float64) / 2.0**32  # uniform in [0, 1), independent of the low half
    pick = (draws & np.uint64(0xFFFFFFFF)) * np.uint64(len(ordinary_ids)) >> np.uint64(32)
    random_ids = ordinary_ids[pick.astype(np.int64)]
    random_or_same = np.where(fate < MASK_FRACTION + RANDOM_FRACTION, random_ids, labels)
    flat_ids[flat_positions] = np.where(fate < MASK_FRACTION, mask_id, random_or_same)
    return labels

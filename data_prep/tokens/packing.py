"""Pack document chunks into rows of fixed length: a pure function of the documents' lengths.

Best-fit decreasing over the histogram of lengths, as in Krell et al. 2021 ("Efficient sequence packing without
cross-contamination"). All chunks of a length are placed at once, so the cost depends on `seq_len`, hardly on the
corpus.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np

SPECIAL_TOKENS = 2  # every chunk stands between a begin and an end token
MIN_FILL = 0.99  # fraction of real tokens below which documents are cut into smaller chunks
FINEST_CUT = 8  # chunks are never made shorter than an eighth of a row


@dataclass(frozen=True)
class RowTable:
    """The chunks that make up each row.

    Attributes:
        seq_len: tokens in a row, special and padding tokens included.
        chunk_offsets: (chunks,) int64, where each chunk begins in the dataset's token space.
        chunk_lengths: (chunks,) int64, its tokens, without special tokens.
        row_starts: (rows + 1,) int64; row r holds the chunks row_starts[r] to row_starts[r + 1].
        dropped_rows: rows left out because they hold too few tokens to mask.
    """

    seq_len: int
    chunk_offsets: np.ndarray
    chunk_lengths: np.ndarray
    row_starts: np.ndarray
    dropped_rows: int = 0

    @property
    def n_rows(self) -> int:
        """Return the number of rows."""
        return len(self.row_starts) - 1

    @property
    def real_fraction(self) -> float:
        """Return the fraction of all positions that are not padding; special tokens count as real."""
        real = self.chunk_lengths.sum() + SPECIAL_TOKENS * len(self.chunk_lengths)
        return float(real / max(1, self.n_rows * self.seq_len))


def cut(offsets: np.ndarray, lengths: np.ndarray, longest: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut documents into chunks of at most `longest` tokens: offsets and lengths, int64 (chunks,)."""
    pieces = -(-lengths // longest)  # (documents,), 0 for an empty one
    document = np.repeat(np.arange(len(lengths)), pieces)  # (chunks,)
    number = np.arange(len(document)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    chunk_lengths = np.minimum(longest, lengths[document] - number * longest)
    return offsets[document] + number * longest, chunk_lengths


def best_fit(histogram: dict[int, int], seq_len: int) -> Counter[tuple[int, ...]]:
    """Place `histogram[size]` items of each size into rows of `seq_len`; return how often each row pattern occurs."""
    open_rows: defaultdict[int, list[tuple[tuple[int, ...], int]]] = defaultdict(list)  # by space left
    spaces: list[int] = []  # keys of open_rows that hold something, ascending

    def put(space: int, pattern: tuple[int, ...], count: int) -> None:
        if count:
            if not open_rows[space]:
                bisect.insort(spaces, space)
            open_rows[space].append((pattern, count))

    for size in sorted(histogram, reverse=True):
        left = histogram[size]
        while left:
            at = bisect.bisect_left(spaces, size)
            if at == len(spaces):  # no open row has room: open new ones
                copies = seq_len // size
                put(seq_len - copies * size, (size,) * copies, left // copies)
                rest = left % copies
                put(seq_len - rest * size, (size,) * rest, 1 if rest else 0)
                break
            space = spaces[at]
            pattern, count = open_rows[space].pop()
            if not open_rows[space]:
                spaces.pop(at)
            taken = min(left, count)
            put(space - size, (*pattern, size), taken)
            put(space, pattern, count - taken)
            left -= taken
    patterns: Counter[tuple[int, ...]] = Counter()
    for groups in open_rows.values():
        for pattern, count in groups:
            patterns[pattern] += count
    return patterns


def pack(offsets: np.ndarray, lengths: np.ndarray, seq_len: int, min_tokens: int) -> RowTable:
    """Cut documents into chunks and pack these into rows.

    Where whole documents leave more than one percent of the positions empty, they are cut into halves, quarters or
    eighths of a row, which fill better, at the price of shorter contexts.

    Args:
        offsets, lengths: int64 (documents,), of each document in the dataset's token space.
        seq_len: tokens in a row.
        min_tokens: rows with fewer tokens that can be masked are left out.

    Returns: the rows, the same for the same arguments on every machine.
    """
    tables: list[RowTable] = []
    for parts in (1 << power for power in range(FINEST_CUT.bit_length())):
        if (longest := seq_len // parts - SPECIAL_TOKENS) < 1:
            break
        table = _pack_chunks(*cut(offsets, lengths, longest), seq_len, min_tokens)
        tables.append(table)
        needed = table.real_fraction * table.n_rows  # rows that its tokens would fill
        if table.n_rows + table.dropped_rows <= max(needed / MIN_FILL, math.ceil(needed) + 1):
            break
    # the last is the fullest but for odd lengths; of equals the first, which has the longest contexts
    return max(tables, key=lambda table: table.real_fraction * table.n_rows / max(1, table.n_rows + table.dropped_rows))


def _pack_chunks(offsets: np.ndarray, lengths: np.ndarray, seq_len: int, min_tokens: int) -> RowTable:
    sizes = (lengths + SPECIAL_TOKENS).astype(np.uint16 if seq_len < 1 << 16 else np.int64)
    by_size = np.argsort(sizes, kind="stable")
    counts = np.bincount(sizes, minlength=seq_len + 1)
    pool_starts = np.cumsum(counts) - counts
    pools = {
        int(size): by_size[pool_starts[size] : pool_starts[size] + counts[size]][_spread(int(counts[size]))]
        for size in np.flatnonzero(counts)
    }
    patterns = best_fit({size: len(pool) for size, pool in pools.items()}, seq_len)
    taken: Counter[int] = Counter()
    blocks, row_sizes = [], []
    dropped = 0
    for pattern, count in sorted(patterns.items(), reverse=True):
        columns = []
        for size in pattern:
            columns.append(pools[size][taken[size] : taken[size] + count])
            taken[size] += count
        if sum(pattern) - SPECIAL_TOKENS * len(pattern) < min_tokens:
            dropped += count
            continue
        blocks.append(np.stack(columns, axis=1).ravel())  # (count, chunks in the row) -> (count * chunks,)
        row_sizes.append(np.full(count, len(pattern), dtype=np.int64))
    chunks = np.concatenate(blocks) if blocks else np.empty(0, dtype=np.int64)
    row_starts = np.concatenate([np.zeros(1, np.int64), *([np.cumsum(np.concatenate(row_sizes))] if blocks else [])])
    return RowTable(seq_len, offsets[chunks], lengths[chunks], row_starts, dropped)


def _spread(n: int) -> np.ndarray:
    """Return a fixed order of [0, n) in which neighbours lie far apart, so that a row mixes distant documents.

    Multiples of the golden section modulo n (Knuth, The Art of Computer Programming 6.4), with a factor coprime to n.
    """
    factor = max(1, round(n * 0.6180339887498949))
    while math.gcd(factor, n) > 1:
        factor += 1
    return np.arange(n, dtype=np.int64) * factor % max(1, n)

"""Divide a global batch among ranks and micro-batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from scaler.core.errors import ScalerError


@dataclass(frozen=True)
class SolvedBatch:
    """A global batch divided: rows = micro_rows * accumulation * ranks."""

    rows: int
    micro_rows: int
    accumulation: int
    ranks: int


def solve_batch(rows: int, ranks: int, max_micro_rows: int) -> SolvedBatch:
    """Find the largest micro-batch that fits, and the accumulation that completes the batch.

    Args:
        rows: the recipe's global batch in rows.
        ranks: world size.
        max_micro_rows: the most rows that one rank takes at once.

    Raises: ScalerError with the nearest possible batches and world sizes when `ranks` does not divide `rows`.
    """
    if rows % ranks:
        below, above = rows - rows % ranks, rows + ranks - rows % ranks
        near = " or ".join(str(batch) for batch in (below, above) if batch)
        worlds = [n for n in range(1, rows + 1) if rows % n == 0]
        close = sorted(sorted(worlds, key=lambda n: abs(n - ranks))[:3])
        raise ScalerError(
            f"training.rows={rows} cannot be shared equally by {ranks} ranks; "
            f"use training.rows={near}, or one of {', '.join(map(str, close))} ranks"
        )
    return next(batch for batch in batches(rows, ranks) if batch.micro_rows <= max_micro_rows)


def batches(rows: int, ranks: int) -> Iterator[SolvedBatch]:
    """Yield all ways to divide a batch, the largest micro-batch first; none if the ranks cannot share it equally."""
    per_rank, rest = divmod(rows, ranks)
    if not rest:
        for micro_rows in range(per_rank, 0, -1):
            if per_rank % micro_rows == 0:
                yield SolvedBatch(rows, micro_rows, per_rank // micro_rows, ranks)


def most_that_share(rows: int, nodes: int, ranks_per_node: int = 1) -> list[int]:
    """Return, for each number of nodes from 0 to `nodes`, how many of them at most take equally many rows of a batch.

    >>> most_that_share(rows=6, nodes=7)
    [0, 1, 2, 3, 3, 3, 6, 6]
    """
    most = [0]
    for number in range(1, nodes + 1):
        most.append(most[-1] if rows % (number * ranks_per_node) else number)
    return most


def nodes_that_share(rows: int, nodes: int, ranks_per_node: int) -> int:
    """Return the largest number of nodes, up to `nodes`, whose ranks take equally many rows of a batch.

    >>> nodes_that_share(rows=64, nodes=7, ranks_per_node=8)
    4

    Raises: ScalerError if not even one node can.
    """
    if most := most_that_share(rows, nodes, ranks_per_node)[-1]:
        return most
    raise ScalerError(
        f"training.rows={rows} cannot be shared equally by the {ranks_per_node} ranks of a node; lower RANKS_PER_NODE "
        f"in slurm/env.sh, or take a multiple of {ranks_per_node} rows"
    )

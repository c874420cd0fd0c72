"""Collective decisions of all ranks: sums, values of every rank, and failures."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from scaler.core.errors import EXIT_BAD_INPUT, EXIT_TRY_AGAIN, ScalerError, TryAgain, one_line, status_of
from scaler.distributed import meeting
from scaler.distributed.world import World

Result = TypeVar("Result")


def total(value: torch.Tensor) -> torch.Tensor:
    """Return the sum of `value` over all ranks, the same on each. Collective."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_gather(value: Any, world: World) -> list[Any]:
    """Return every rank's value, by rank. Collective."""
    values = [value]
    if dist.is_initialized() and world.size > 1:
        values = [None] * world.size
        with meeting.waiting():
            dist.all_gather_object(values, value)
    return values


def agree_or_raise(problem: str | None, world: World, status: int = EXIT_BAD_INPUT) -> None:
    """End every rank when one has a `problem`, so that none waits for one that has given up. Collective.

    Raises: ScalerError with the first problem on rank 0, which prints it; SystemExit on the others.
    """
    for found, ends_with in all_gather((problem, status), world):
        if found is not None:
            kind = TryAgain if ends_with == EXIT_TRY_AGAIN else ScalerError
            raise kind(found) if world.is_first else SystemExit(ends_with)


def all_or_none(work: Callable[[], Result], world: World) -> Result:
    """Run `work` on each rank; if it fails on one, all ranks fail together. Collective.

    Where `work` has collectives of its own, it must fail on all ranks or on none.

    Raises: what `agree_or_raise` raises, if `work` raised a ScalerError or OSError on any rank.
    """
    problem, result, status = None, None, EXIT_BAD_INPUT
    try:
        result = work()
    except (ScalerError, OSError) as error:
        problem, status = one_line(error), status_of(error)
    agree_or_raise(problem, world, status)
    return cast(Result, result)


@contextlib.contextmanager
def explaining_errors(world: World, full_memory: str, lost_rank: str = "") -> Iterator[None]:
    """Turn a GPU's full memory and the loss of another rank, or its delay, into errors of one line.

    Args:
        world: this process among the ranks.
        full_memory: what the user can do about full memory.
        lost_rank: what the user can do after a rank was lost.

    Raises: ScalerError for full memory, TryAgain for a rank that was lost or is late.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        found = str(error).splitlines()[0][:160]
        raise ScalerError(f"rank {world.rank}: the GPU's memory is full ({found}); {full_memory}") from error
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        other = "nothing came from another rank in time" if is_late(error) else "another rank has gone"
        found = f"rank {world.rank}: {other} ({str(error).splitlines()[0][:200]})"
        raise TryAgain("; ".join(filter(None, (found, lost_rank)))) from error


def is_late(error: RuntimeError) -> bool:
    """Return True where a collective failed because its time was over: the other rank may live, and be slow."""
    text = str(error).lower()
    return "timed out" in text or "timeout" in text or "timing out" in text


def is_lost_connection(error: RuntimeError) -> bool:
    """Return True where a collective failed because another rank has gone, or is late."""
    text = str(error).lower()
    if "invalid usage" in text or "invalid argument" in text:  # NCCL's words for what no other start mends
        return False
    words = ("connection", "gloo", "nccl", "peer", "socket")
    return isinstance(error, dist.DistError) or any(word in text for word in words)

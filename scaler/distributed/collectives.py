"""Let all ranks agree: sums, values of every rank, and failures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from scaler.core.errors import EXIT_BAD_INPUT, EXIT_TRY_AGAIN, ScalerError, TryAgain, one_line, status_of
from scaler.distributed.world import World

Result = TypeVar("Result")


def total(value: torch.Tensor) -> torch.Tensor:
    """Sum `value` over all ranks; every rank must call it and gets the same answer."""
    if dist.is_initialized() and dist.get_world_size() > 1:
        value = value.clone()
        dist.all_reduce(value)
    return value


def all_gather(value: Any, world: World) -> list[Any]:
    """Every rank's value, by rank; every rank must call it."""
    values = [value]
    if dist.is_initialized() and world.size > 1:
        values = [None] * world.size
        dist.all_gather_object(values, value)
    return values


def agree_or_raise(problem: str | None, world: World, status: int = EXIT_BAD_INPUT) -> None:
    """End every rank when one has a `problem`, so that none waits for one that has given up.

    Raises: ScalerError with the first problem on rank 0, which says it; SystemExit on the others.
    """
    for found, ends_with in all_gather((problem, status), world):
        if found is not None:
            kind = TryAgain if ends_with == EXIT_TRY_AGAIN else ScalerError
            raise kind(found) if world.is_first else SystemExit(ends_with)


def all_or_none(work: Callable[[], Result], world: World) -> Result:
    """Do something that may fail on one rank alone, and let all ranks fail together.

    Where `work` has collectives of its own, it must fail on all ranks or on none.
    """
    problem, result, status = None, None, EXIT_BAD_INPUT
    try:
        result = work()
    except (ScalerError, OSError) as error:
        problem, status = one_line(error), status_of(error)
    agree_or_raise(problem, world, status)
    return cast(Result, result)

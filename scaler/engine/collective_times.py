"""Time each collective that DeepSpeed calls."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import deepspeed
import torch

# methods of DeepSpeed's backend that a training calls
COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all", "all_to_all_single", "barrier"),
    "reduce_to_owners",  # of patches/direct_collectives.py
)


@contextlib.contextmanager
def timed_collectives(device: torch.device) -> Iterator[list[float]]:
    """Append to the list the seconds of each collective that DeepSpeed calls inside `with`. Each call is waited for.

    DeepSpeed's own logger (0.19.8) cannot give them. It records for each call the sum of all calls so far, because it
    reads its timers with `reset=False`. On CPUs it does not wait for asynchronous ones, which stage 3 has.
    """
    backend = deepspeed.comm.comm.cdb
    found: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = now()
            handle = collective(*arguments, **options)
            if handle is not None and hasattr(handle, "wait"):
                handle.wait()
            found.append(now() - start)
            return handle

        return call

    own = dict(vars(backend))
    try:
        for name in filter(partial(hasattr, backend), COLLECTIVES):
            setattr(backend, name, timed(getattr(backend, name)))  # it hides the method of the object's class
        yield found
    finally:
        for name in COLLECTIVES:
            vars(backend).pop(name, None)
        vars(backend).update(own)

"""Measure what a rank computes by itself, and each collective that DeepSpeed calls.

Its own computing shows the slowest rank, although a step takes the same time on all.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import deepspeed
import torch

from scaler.distributed.devices import now

# methods of DeepSpeed's backend that a training calls
COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all", "all_to_all_single", "barrier"),
    "reduce_to_owners",  # of patches/direct_collectives.py
)


class ComputeClock:
    """A clock that runs inside `with`, where this rank's device computes and waits for no other rank."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[Any] = []  # on entering and leaving, in turn

    def __enter__(self) -> None:
        self._note()

    def __exit__(self, *_: object) -> None:
        self._note()

    def _note(self) -> None:
        if self._on_gpu:  # it computes asynchronously, so its own events are read later
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def read(self) -> float:
        """Return the seconds since the last reading."""
        pairs, self._marks = list(zip(self._marks[::2], self._marks[1::2], strict=True)), []
        if not self._on_gpu:
            return sum((stop - start for start, stop in pairs), 0.0)
        if pairs:
            pairs[-1][1].synchronize()
        return sum((start.elapsed_time(stop) for start, stop in pairs), 0.0) / 1000


@contextlib.contextmanager
def timed_collectives(device: torch.device) -> Iterator[list[float]]:
    """Append to the list the seconds of each collective that DeepSpeed calls inside `with`. Each call is waited for.

    DeepSpeed's own logger (0.19.8) cannot give them. It records for each call the sum of all calls so far, because it
    reads its timers with `reset=False`. On CPUs it does not wait for asynchronous ones, which stage 3 has.
    """
    backend = deepspeed.comm.comm.cdb
    found: list[float] = []

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = now(device)
            handle = collective(*arguments, **options)
            if hasattr(handle, "wait"):
                handle.wait()
            found.append(now(device) - start)
            return handle

        return call

    own = dict(vars(backend))
    methods = {name: timed(getattr(backend, name)) for name in COLLECTIVES if hasattr(backend, name)}
    try:
        vars(backend).update(methods)  # they hide those of the object's class
        yield found
    finally:
        for name in methods:
            del vars(backend)[name]
        vars(backend).update(own)

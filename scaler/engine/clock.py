"""Measure a rank's own computing, which shows the slowest rank although a step takes the same time on all."""

from __future__ import annotations

import time

import torch


class ComputeClock:
    """A clock that runs inside `with`, where this rank's device computes and waits for no other rank."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._seconds, self._start = 0.0, 0.0
        self._events: list[torch.cuda.Event] = []

    def __enter__(self) -> None:
        self._note()

    def __exit__(self, *_: object) -> None:
        self._note()

    def _note(self) -> None:
        if self._on_gpu:  # it computes asynchronously, so its own events are read later
            self._events.append(torch.cuda.Event(enable_timing=True))
            self._events[-1].record()
        else:
            now, start = time.perf_counter(), self._start
            self._start = 0.0 if start else now
            self._seconds += now - start if start else 0.0

    def read(self) -> float:
        """Return the seconds since the last reading."""
        if self._events:
            self._events[-1].synchronize()
            starts, stops = self._events[::2], self._events[1::2]
            self._seconds = sum(a.elapsed_time(b) for a, b in zip(starts, stops, strict=True)) / 1000
            self._events = []
        seconds, self._seconds = self._seconds, 0.0
        return seconds

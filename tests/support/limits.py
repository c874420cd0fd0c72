"""Limits of tests. Those of time only end what hangs, so they grow with how slow the machine is at the moment."""

import subprocess
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

QUIET_SECONDS = 0.06  # that `_work` takes on a quiet core of an Intel Xeon of 2023
MOST = 10.0
_slowest = 1.0


def _work() -> None:
    total = 0
    for number in range(1_000_000):
        total += number


def limit(seconds: float) -> float:
    """Return a limit of so many seconds on a quiet machine, times how much slower this one has been found to be."""
    global _slowest  # noqa: PLW0603  (a machine that was busy once may be so again)
    clock = time.perf_counter()
    _work()
    _slowest = min(MOST, max(_slowest, (time.perf_counter() - clock) / QUIET_SECONDS))
    return seconds * _slowest


def wait_until(holds: Callable[[], Any], process: subprocess.Popen | None = None, seconds: float = 400) -> Any:
    """Return what `holds` gives once it is true; fails after so many seconds, or where the process ends before."""
    end = time.monotonic() + limit(seconds)
    while not (found := holds()):
        assert process is None or process.poll() is None, f"ended with {process.returncode}"
        assert time.monotonic() < end, f"not within {seconds:g} s"
        time.sleep(0.002)
    return found


@contextmanager
def at_most(size: float) -> Iterator[None]:
    """Fails where Python and numpy have taken more than so many bytes at once."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < size

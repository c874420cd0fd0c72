"""Freed memory that glibc keeps for the next training step.

What: sets M_MMAP_THRESHOLD and M_TRIM_THRESHOLD of glibc's allocator to their maximum, by `mallopt`.
Why: by default glibc maps every tensor above 32 MB anew, and the kernel clears each of its pages at the first write.
    A process then holds up to a quarter more at its peak.
Versions tried: glibc 2.36; CPU only, because a GPU's tensors have an allocator of their own.
Measured gain: 82 M parameters, 1,784 -> 2,160 tokens/s, peak 3.6 -> 3.9 GB (docs/results).
Upstream: nothing to send; both are documented parameters of glibc.
Test: tests/engine/test_allocator.py, tests/end_to_end/test_switches.py.
"""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MOST = (1 << 31) - 1


def install() -> str | None:
    """Make this process keep freed memory, or return why it does not.

    One of glibc's own variables in the environment is a decision of the user, which is left as it is.
    """
    decided = [name for name in os.environ if name.startswith("MALLOC_") or name == "GLIBC_TUNABLES"]
    if decided:
        return f"{decided[0]} is set"
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not all(mallopt(what, MOST) == 1 for what in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD)):
        return "the C library is not glibc"
    return None

"""The C library's allocator, told that a training step takes the memory of the last one."""

from __future__ import annotations

import ctypes
import os

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
MOST = (1 << 31) - 1


def keep_freed_memory() -> bool:
    """Let glibc keep what is freed, instead of giving large blocks back to the kernel; whether it does now.

    By default it maps every tensor above 32 MB anew, and each of its pages is cleared and faulted in with its first
    write: a sixth of a step of 16 rows of 512 tokens (docs/performance.md). A process then holds up to a quarter more
    at its peak. Whoever sets one of glibc's own MALLOC_ variables has decided; other C libraries are left alone.
    """
    if any(name.startswith("MALLOC_") for name in os.environ) or "GLIBC_TUNABLES" in os.environ:
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all(mallopt(what, MOST) == 1 for what in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD))

"""The allocator keeps freed memory: measured in processes of their own."""

import os
import platform
import subprocess
import sys

import pytest

SIZE = 200 << 20
PROGRAM = f"""
import ctypes
from pathlib import Path
from scaler.engine.patches import allocator
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * {os.sysconf("SC_PAGE_SIZE")}

reason, before = allocator.install(), resident()
block = libc.malloc({SIZE})
ctypes.memset(block, 1, {SIZE})
libc.free(block)
print(reason, resident() - before > {SIZE} // 2)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize(
    ("decided", "said"),
    [({}, "None True"), ({"MALLOC_TRIM_THRESHOLD_": "65536"}, "MALLOC_TRIM_THRESHOLD_ is set False")],
)
def test_freed_memory_is_kept_unless_the_user_has_decided(decided, said):
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env={**plain, **decided}, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == said

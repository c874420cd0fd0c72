"""Choose the device of a rank, and measure its speed and memory."""

from __future__ import annotations

import contextlib
import platform
import time
from pathlib import Path

import psutil
import torch

from scaler.core.errors import ScalerError
from scaler.distributed.world import World


def bf16_is_native(device: torch.device) -> bool:
    """Return True where bf16 matrix products run in hardware; emulated on a CPU they are a hundred times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16"))


def device(world: World) -> torch.device:
    """Return the device on which this rank trains: its own GPU where there is one, else the CPU.

    Raises: ScalerError when there are fewer GPUs than ranks on this host.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 1:  # SLURM can show each of its tasks no more than its own
        return torch.device("cuda", 0)
    if world.local_rank >= visible:
        raise ScalerError(f"{world.local_size} ranks on {platform.node()}, but {visible} GPUs; start one rank a GPU")
    return torch.device("cuda", world.local_rank)


CEILING_SIZE = 1024  # rows and columns of the matrices whose product is timed


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Return the highest rate of floating-point operations a second that this rank reaches in square matrix products.

    All ranks should measure at the same time, because they share the machine.
    """
    size = CEILING_SIZE * (8 if device.type == "cuda" else 1)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def memory_bytes(device: torch.device) -> int:
    """Return this rank's memory in bytes: the peak allocated on its GPU, or the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def forget_peak(device: torch.device) -> None:
    """Reset the peak of this rank's memory, where the kernel allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # some containers forbid it; then the peak stays that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_bytes(device: torch.device) -> int:
    """Return the peak in bytes since `forget_peak`: allocated on the GPU, or the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:"))

"""Choose the device of a rank, and measure its speed and memory."""

from __future__ import annotations

import contextlib
import platform
import time
from pathlib import Path

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


def now(device: torch.device) -> float:
    """Return the clock in seconds, once the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Return the highest rate of floating-point operations a second that this rank reaches in square matrix products.

    All ranks should measure at the same time, because they share the machine.
    """
    size = 8192 if device.type == "cuda" else 1024
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        left @ right
        best = max(best, 2 * size**3 / (now(device) - start))
    return best


def memory_bytes(device: torch.device, peak: bool = False) -> int:
    """Return this rank's memory in bytes: the peak allocated on its GPU, or the process's resident set.

    Args:
        peak: of the resident set, too, the peak since `forget_peak`.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    status = Path("/proc/self/status").read_text(encoding="ascii")
    name = "VmHWM:" if peak else "VmRSS:"
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith(name))


def forget_peak(device: torch.device) -> None:
    """Reset the peak of this rank's memory, where the kernel allows it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # some containers forbid it; then the peak stays that of the whole process
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")

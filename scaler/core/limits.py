"""Find the memory, processors and open files that this process may use, in a container as outside of one.

A container is limited by the control groups of its processes, of version 1 or 2, and by all groups above them. The
kernel's cgroup-v1/memory.rst, sched-bwc.rst and cgroup-v2.rst describe the files that are read here.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from pathlib import Path

from scaler.core.errors import ScalerError

SPARE_FILES = 64  # beside those that are asked for: libraries, sockets, logs
ROOT = Path("/")  # below which /proc and the control groups are; another in tests


def cores() -> int:
    """Return how many cores this process may use: those that it may run on, and no more than its quota of time."""
    quotas = [quota for group in _groups("cpu") if (quota := _quota(group)) is not None]
    return max(1, int(min([len(os.sched_getaffinity(0)), *quotas])))


def total_memory() -> int:
    """Return the bytes of memory that this process and all others of its control groups may use together."""
    import psutil  # here, so that `make` can ask for cores without it

    return int(min([psutil.virtual_memory().total, *(limit for limit, _ in _memory_limits())]))


def available_memory() -> int:
    """Return the bytes of memory that are free, or hold what the kernel has cached of files."""
    import psutil

    return int(min([psutil.virtual_memory().available, *(max(0, limit - held) for limit, held in _memory_limits())]))


def allow_open_files(count: int, what: str) -> None:
    """Raise this process's limit so that it can have so many more files open.

    Raises: ScalerError where the system's own limit is lower.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + count + SPARE_FILES
    if resource.RLIM_INFINITY not in (soft, hard) and needed > hard:
        raise ScalerError(
            f"{what}: {count:,} files are open at a time, and this process may open {hard:,} in all; "
            f"raise the limit (`ulimit -n {needed}`), or prepare fewer and larger files (corpus.part_mib)"
        )
    if soft != resource.RLIM_INFINITY and needed > soft:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Yield the limit of each control group, and the bytes in it that the kernel cannot take back."""
    for group in _groups("memory"):
        for limit_file, usage_file, prefix in (
            ("memory.max", "memory.current", ""),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
        ):
            limit, usage = _number(group / limit_file), _number(group / usage_file)
            if limit is not None and usage is not None:
                statistics = dict(line.split()[:2] for line in _lines(group / "memory.stat"))
                cached = sum(int(statistics.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
                yield limit, max(0, usage - cached)


def _quota(group: Path) -> float | None:
    """Return the processors whose time a control group may use; None without a limit."""
    of_version_2 = " ".join(_lines(group / "cpu.max")).split()
    if len(of_version_2) == 2 and of_version_2[0].isdigit():
        return int(of_version_2[0]) / int(of_version_2[1])
    quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
    return quota / period if quota and period else None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's control groups that limit something, and of all groups above them."""
    paths: dict[str, str] = {}
    for line in _lines(ROOT / "proc/self/cgroup"):
        _, controllers, own = line.split(":", 2)
        paths.update(dict.fromkeys(controllers.split(","), own))  # "" names version 2, which has all of them
    for line in _lines(ROOT / "proc/self/mountinfo"):
        mounted, _, kind = line.partition(" - ")
        _, _, _, within, mount, *_ = mounted.split()
        filesystem, *_, options = kind.split()
        limits = filesystem == "cgroup2" or (filesystem == "cgroup" and controller in options.split(","))
        path = paths.get("" if filesystem == "cgroup2" else controller)
        if path is None or not limits:
            continue
        place = Path(mount.replace("\\040", " "))
        # what is mounted may be the container's own group, or begin at another; then its top is all that can be seen
        below = Path(path).is_relative_to(within) and ".." not in path
        inside = Path(path).relative_to(within) if below else Path()
        for group in (place / inside, *(place / inside).parents):
            if group.is_relative_to(place):
                yield ROOT / group.relative_to("/")


def _number(path: Path) -> int | None:
    """Return the number in a file of a control group; None where there is none, or none that limits ("max", -1)."""
    words = " ".join(_lines(path)).split()
    return int(words[0]) if words and words[0].isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []

"""Name the versions and the commit that a result was made with."""

from __future__ import annotations

import platform
import subprocess
from importlib import metadata
from pathlib import Path

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "safetensors", "scaler")
_SOURCE = Path(__file__).resolve().parent.parent


def versions() -> dict[str, str | None]:
    """Return installed versions of the packages that affect results; None if a package has no metadata."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def processor() -> str:
    """Return the name of the CPU as the kernel gives it; may be empty."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def commit() -> str | None:
    """Return the commit of this program's source, with "+changes" where files differ from it; None without git."""
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=_SOURCE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()

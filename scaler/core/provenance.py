"""Name the versions and the commit that a result was made with, and those that wrote the folder of a run."""

from __future__ import annotations

import contextlib
import platform
import subprocess
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from scaler.core.errors import ScalerError
from scaler.core.files import read_json

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "safetensors", "scaler")
ENVIRONMENT = "environment.json"  # in the folder of a run: versions and commit of each start
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
            encoding="utf-8",
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return described.stdout.strip()


def attempts(folder: Path) -> list[dict[str, Any]]:
    """Return all starts of the run in a folder, the oldest first."""
    path = folder / ENVIRONMENT
    return list(read_json(path).get("attempts", [])) if path.is_file() else []


@contextlib.contextmanager
def explaining_versions(folder: Path) -> Iterator[None]:
    """Add to an error which version wrote the folder of a run and which one reads it, if they differ.

    Raises: ScalerError, as the block raised it or with both versions.
    """
    try:
        yield
    except ScalerError as error:
        last: dict[str, Any] = {}
        with contextlib.suppress(ScalerError, OSError, IndexError):  # no reason to hide this error
            last = attempts(folder)[-1]
        ours = (versions()["scaler"], commit())
        theirs = (last.get("packages", {}).get("scaler"), last.get("commit"))
        if "packages" not in last or theirs == ours:
            raise
        written, reading = (f"scaler {version}, commit {made_of or '?'}" for version, made_of in (theirs, ours))
        raise ScalerError(
            f"{folder} was written by {written}, and this is {reading}: {error}; use the version that wrote it, or "
            "begin a new run"
        ) from error

"""Python environments of other programs, with packages of their own; PyTorch alone is shared, because it is large."""

from __future__ import annotations

import shutil
import subprocess
import sys
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement


def python_of(folder: Path, *requirements: str) -> Path:
    """Return the interpreter of an environment below `folder` with these packages, which is made once.

    Skips the test where pip cannot install them.
    """
    environment = folder / "_".join(requirements).replace("==", "-")
    python, made = environment / "bin" / "python", environment / "made"
    wanted = f"{sys.version}\n{metadata.version('torch')}\n"
    if not made.is_file() or made.read_text() != wanted:
        shutil.rmtree(environment, ignore_errors=True)
        venv.create(environment, with_pip=True)
        # outside of the environment, so that pip removes nothing of it
        shared = folder / f"torch-{metadata.version('torch')}"
        shared.mkdir(exist_ok=True)
        share("torch", shared)
        (site,) = environment.glob("lib/python*/site-packages")
        (site / "shared.pth").write_text(f"{shared}\n")
        install = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements]
        done = subprocess.run(install, capture_output=True, text=True, check=False)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            pytest.skip(f"pip cannot install {' '.join(requirements)}: {lines[-1]}")
        made.write_text(wanted)
    return python


def share(package: str, into: Path) -> None:
    """Link an installed package, and those that it needs, into a folder."""
    installed = metadata.distribution(package)
    for name in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
        if not (into / name).exists():
            (into / name).symlink_to(installed.locate_file(name))
    for needed in map(Requirement, installed.requires or ()):
        if needed.marker is None or needed.marker.evaluate({"extra": ""}):
            share(needed.name, into)

"""A stage's output folder: it appears whole, with a manifest of what it was made from, or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from scaler.errors import ScalerError, naming_full_disk
from scaler.token_shards import MANIFEST, MANIFEST_FORMAT, checksum

ADOPTED = {"adopted": True}  # what the shards were made from that `data_prep.adopt` took over


def read_manifest(folder: Path, kind: str) -> dict[str, Any]:
    """The manifest of a folder of some kind ("corpus", "tokenizer", "shards"). Raises ScalerError if it is not one."""
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScalerError(f"{folder}: no {kind} here (no readable {MANIFEST}); prepare it first") from error
    if not isinstance(content, dict) or content.get("kind") != kind or content.get("format") != MANIFEST_FORMAT:
        raise ScalerError(f"{folder}: this is no {kind} folder of format {MANIFEST_FORMAT}")
    return content


def is_current(folder: Path, kind: str, made_from: dict[str, Any]) -> bool:
    """True when the folder was made from exactly these inputs and settings."""
    try:
        return bool(read_manifest(folder, kind)["made_from"] == json.loads(json.dumps(made_from)))
    except (ScalerError, KeyError):
        return False


def checksum_of_manifest(folder: Path, kind: str) -> str:
    """Checksum of a folder's manifest, which names the checksums of all its files."""
    read_manifest(folder, kind)
    return checksum(folder / MANIFEST)


def _may_replace(folder: Path, kind: str) -> bool:
    if not folder.exists():
        return all(above.is_dir() for above in folder.parents if above.exists())
    if not folder.is_dir():
        return False
    try:
        return not any(folder.iterdir()) or json.loads((folder / MANIFEST).read_text(encoding="utf-8"))["kind"] == kind
    except (OSError, ValueError, KeyError, TypeError):
        return False


@contextmanager
def staged(folder: Path, kind: str) -> Iterator[Path]:
    """Give a folder to write into that takes the place of `folder` on success, and vanishes on failure.

    Raises: ScalerError when `folder` holds something else than this kind of output, or the disk is full.
    """
    if not _may_replace(folder, kind):
        raise ScalerError(f"{folder}: holds something other than prepared {kind} files; name another folder")
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    with naming_full_disk(folder):
        for leftover in (partial, old):  # of a run that was killed
            if leftover.exists():
                shutil.rmtree(leftover)
        try:
            partial.mkdir(parents=True)
            yield partial
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise
        shutil.rmtree(old, ignore_errors=True)

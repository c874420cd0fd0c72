"""Write a stage's output folder, which appears complete, with a manifest of its inputs, or not at all.

Until it is whole it is NAME.partial, which keeps the tasks that are done, so that a run that was stopped goes on.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from data_prep.pipeline import accounts, card
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import FORMAT, MANIFEST, checksum, read_manifest, write_json
from scaler.core.folders import try_lock

ADOPTED = {"adopted": True}  # `made_from` of shards that `data_prep.adopt` adopted
TASKS = "tasks"  # below NAME.partial: a record of each task that is done
STARTED_FROM = "made_from.json"
LOCK = "lock"


def is_current(folder: Path, kind: str, made_from: dict[str, Any]) -> bool:
    """Return True when the folder was made from exactly these inputs and settings."""
    try:
        return bool(read_manifest(folder, kind)["made_from"] == as_json(made_from))
    except (ScalerError, KeyError):
        return False


def as_json(content: Any) -> Any:
    """Return `content` as it would be read back from JSON: tuples become lists."""
    return json.loads(json.dumps(content))


def checksum_of_manifest(folder: Path, kind: str) -> str:
    """Return the checksum of a folder's manifest, which holds the checksums of all its files."""
    read_manifest(folder, kind)
    return checksum(folder / MANIFEST)


def write_manifest(folder: Path, kind: str, made_from: dict[str, Any], **content: Any) -> None:
    """Write the manifest, which makes a folder a complete output, and a README with the same facts.

    Raises: ScalerError when documents are not accounted for, which no input can cause.
    """
    if lost := accounts.problems(kind, content):
        raise ScalerError(f"{folder}: {'; '.join(lost)}; report this error, and do not use the data")
    # errors: names of files may hold bytes that are not UTF-8
    (folder / "README.md").write_text(card.render(kind, content), encoding="utf-8", errors="backslashreplace")
    write_json(folder / MANIFEST, {"format": FORMAT, "kind": kind, "made_from": made_from, **content})


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
def staged(folder: Path, kind: str, made_from: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder to write into that replaces `folder` on success.

    On failure the tasks that are done stay (see `workers.WorkerPool.run`), and the next run with the same `made_from`
    goes on from there; where none is done, nothing stays.

    Raises: ScalerError when `folder` holds something else than this kind of output, another run is writing it, or the
    disk is full.
    """
    if not _may_replace(folder, kind):
        raise ScalerError(f"{folder}: holds something other than prepared {kind} files; name another folder")
    partial, old = folder.with_name(folder.name + ".partial"), folder.with_name(folder.name + ".old")
    begun = as_json({"format": FORMAT, "kind": kind, "made_from": made_from})
    with explain_disk_errors(folder):
        if old.exists():  # of a run that was killed
            shutil.rmtree(old)
        lock = _locked(partial)
        try:
            if _read(partial / STARTED_FROM) != begun or not _any_done(partial):
                _empty(partial)
                write_json(partial / STARTED_FROM, begun)
            (partial / TASKS).mkdir(exist_ok=True)
            yield partial
            shutil.rmtree(partial / TASKS)
            (partial / STARTED_FROM).unlink()
            if folder.exists():
                folder.rename(old)
            partial.rename(folder)
            (folder / LOCK).unlink()  # not before, or another run could begin and empty what is moved
        except BaseException:
            if not _any_done(partial):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        shutil.rmtree(old, ignore_errors=True)


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _any_done(partial: Path) -> bool:
    return any((partial / TASKS).glob("*.json"))


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path)
        elif path.name != LOCK:
            path.unlink()


def _locked(partial: Path) -> int:
    """Make the folder and take its lock, which the operating system gives back however this process ends."""
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT)
    # a run that just ended may have moved the folder on
    if not (try_lock(lock, partial) and path.exists() and os.path.samestat(os.fstat(lock), path.stat())):
        os.close(lock)
        raise ScalerError(f"{partial}: another run is writing here; wait for it to end, or name another folder")
    return lock

"""Write a stage's output folder, which appears complete, with a manifest of its inputs, or not at all.

Until it is whole it is NAME.partial, which keeps the tasks that are done, so that a run that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.pipeline import accounts, card
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import FORMAT, MANIFEST, checksum, read_json, read_manifest, write_json, write_whole
from scaler.core.folders import remove, try_lock

ADOPTED = {"adopted": True}  # `made_from` of shards that `data_prep.adopt` adopted
TASKS = "tasks"  # below NAME.partial: a record of each task that is done
STARTED_FROM = "made_from.json"
LOCK = "lock"
REPLACED = "replaced"  # the output that was there before, until the new one has its place
OF_A_RUN = {LOCK, STARTED_FROM, f"{STARTED_FROM}.partial"}


def is_current(folder: Path, kind: str, made_from: dict[str, Any]) -> bool:
    """Return True when the folder was made from exactly these inputs and settings."""
    try:
        current = bool(read_manifest(folder, kind).get("made_from") == as_json(made_from))
    except ScalerError:
        return False
    if current and (folder / LOCK).is_file():
        _clear_after_a_kill(folder)
    return current


def as_json(content: Any) -> Any:
    """Return `content` as it would be read back from JSON: tuples become lists."""
    return json.loads(json.dumps(content))


def checksum_of_manifest(folder: Path, kind: str) -> str:
    """Return the checksum of a folder's manifest, which holds the checksums of all its files."""
    read_manifest(folder, kind)
    return checksum(folder / MANIFEST)


def write_manifest(
    folder: Path, kind: str, made_from: dict[str, Any], readme: str | None = None, **content: Any
) -> None:
    """Write the manifest, which makes a folder a complete output and names its files, and a README of the same facts.

    Args:
        readme: the README's text; by default it is rendered from the manifest.

    Raises: ScalerError when documents are not accounted for, which no input can cause.
    """
    if lost := accounts.problems(kind, content):
        raise ScalerError(f"{folder}: {'; '.join(lost)}; report this error, and do not use the data")
    write_whole(folder / "README.md", card.render(kind, content) if readme is None else readme)
    files = sorted({*_files(folder), MANIFEST})
    write_json(folder / MANIFEST, {"format": FORMAT, "kind": kind, "made_from": made_from, **content, "files": files})


def _files(folder: Path) -> Iterator[str]:
    """Yield the files and links below a folder, without those of a run that is at work in it."""

    def fail(error: OSError) -> None:
        raise error

    for above, names, found in os.walk(folder, onerror=fail):
        if Path(above) == folder:
            names[:] = set(names) - {TASKS, REPLACED}
        for name in (*found, *(name for name in names if (Path(above) / name).is_symlink())):
            if name not in OF_A_RUN:
                yield (Path(above) / name).relative_to(folder).as_posix()


def _check_replaceable(folder: Path, kind: str) -> None:
    """Raise ScalerError where the folder is a link, or holds what data preparation did not write."""
    if folder.is_symlink():
        raise ScalerError(f"{folder}: is a link, which is not replaced; remove the link, or name another folder")
    if not folder.exists() and all(above.is_dir() for above in folder.parents if above.exists()):
        return
    content = _read(folder / MANIFEST) if folder.is_dir() else {}
    if not folder.is_dir() or (any(folder.iterdir()) and content.get("kind") != kind):
        raise ScalerError(f"{folder}: holds something other than prepared {kind} files; name another folder")
    written = content.get("files")  # which manifests of before do not say
    foreign = sorted({*_files(folder)} - {*map(str, written)}) if isinstance(written, list) else []
    if foreign:
        raise ScalerError(
            f"{folder}: is to be made anew and holds {foreign[0]}, which data preparation did not write; move it "
            "elsewhere, and run again"
        )


@contextlib.contextmanager
def staged(folder: Path, kind: str, made_from: dict[str, Any]) -> Iterator[Path]:
    """Yield a folder to write into that replaces `folder` on success.

    On failure the tasks that are done stay (see `workers.WorkerPool.run`), and the next run with the same `made_from`
    goes on from there; where none is done, nothing stays. Nothing is removed but what data preparation has written,
    and what links point to stays.

    Raises: ScalerError when `folder` holds something else than this kind of output, NAME.partial is somebody else's,
    another run is writing it, or the disk is full.
    """
    _check_replaceable(folder, kind)
    partial = folder.with_name(folder.name + ".partial")
    begun = as_json({"format": FORMAT, "kind": kind, "made_from": made_from})
    with explain_disk_errors(folder):
        lock = _locked(partial)
        try:
            _put_back(partial, folder)
            if _read(partial / STARTED_FROM) != begun or not _any_done(partial):
                _empty(partial)
                write_json(partial / STARTED_FROM, begun)
            (partial / TASKS).mkdir(exist_ok=True)
            yield partial
            if folder.exists():
                folder.rename(partial / REPLACED)
            partial.rename(folder)
        except BaseException:
            _put_back(partial, folder)
            if not _any_done(partial):
                shutil.rmtree(partial, ignore_errors=True)
            raise
        else:
            _clear(folder)
        finally:
            os.close(lock)


def _put_back(partial: Path, folder: Path) -> None:
    """Give an output its place again that was moved out of it, and not replaced: a run was killed in between."""
    if (partial / REPLACED).exists() and not folder.exists():
        (partial / REPLACED).rename(folder)


def _clear(folder: Path) -> None:
    """Remove what the run that has made the folder needed, its lock last: another run could begin after that."""
    with contextlib.suppress(OSError):  # the output is whole all the same
        for name in (REPLACED, TASKS, STARTED_FROM, LOCK):
            remove(folder / name)


def _clear_after_a_kill(folder: Path) -> None:
    with contextlib.suppress(OSError), (folder / LOCK).open("rb") as lock:
        if try_lock(lock.fileno(), folder):
            _clear(folder)


def _read(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; an empty one where there is none."""
    try:
        return read_json(path)
    except ScalerError:
        return {}


def _any_done(partial: Path) -> bool:
    return any((partial / TASKS).glob("*.json"))


def _empty(partial: Path) -> None:
    for path in partial.iterdir():
        if path.name not in (LOCK, STARTED_FROM):  # the second shows whose the folder is
            remove(path)


def _locked(partial: Path) -> int:
    """Make the folder and take its lock, which the operating system gives back however this process ends."""
    if partial.is_symlink() or (partial.is_dir() and not _is_own(partial)):
        raise ScalerError(
            f"{partial}: data preparation would write there, and did not make it; rename it, or name another folder"
        )
    partial.mkdir(parents=True, exist_ok=True)
    path = partial / LOCK
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    # a run that just ended may have moved the folder on
    if not (try_lock(lock, partial) and path.exists() and os.path.samestat(os.fstat(lock), path.stat())):
        os.close(lock)
        raise ScalerError(f"{partial}: another run is writing here; wait for it to end, or name another folder")
    return lock


def _is_own(partial: Path) -> bool:
    """Return whether a run has begun here, or was killed before it wrote down what it makes."""
    names = {path.name for path in partial.iterdir()}
    return STARTED_FROM in names or names <= OF_A_RUN

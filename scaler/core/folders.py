"""Claim and lock an output folder."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

from scaler.core import slurm
from scaler.core.errors import ScalerError, explain_disk_errors

logger = logging.getLogger(__name__)
LOCK = ".lock"
TRIES, TRY_SECONDS = 3, 0.1  # for a lock, because `is_held` takes it for a moment


def claim(
    folder: Path, markers: Collection[str], what: str, first_written: Collection[str] = (), option: str = ""
) -> None:
    """Check that an output folder is new, or already holds the kind of output that is to go there.

    Args:
        markers: names of the files and folders that the folder of such an output has.
        what: that output with its article, such as "a run".
        first_written: names that a start writes, beside its lock, before the markers are complete. A folder with
            nothing else in it was left by a start that was killed, and counts as new.
        option: the command-line option that named the folder; the error message repeats it.

    Raises: ScalerError for a folder with anything else in it, and for a file.
    """
    if not folder.exists() or all((folder / name).exists() for name in markers):
        return
    begun = {LOCK, *first_written, *(f"{name}.partial" for name in (*markers, *first_written))}
    if not (folder.is_dir() and {path.name for path in folder.iterdir()} <= begun):
        given = f"{option} {folder}".strip()
        raise ScalerError(f"{given}: is neither new nor {what} (no {' and '.join(markers)}); name another folder")


def remove(path: Path) -> None:
    """Remove a file, a folder with all that is in it, or a link, whose target stays; nothing where there is none."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Wait until no other process is in such a block on the same folder. A disk without locks lets all in at once."""
    with _open_lock(folder) as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def try_lock(file: IO[str] | int, folder: Path) -> bool:
    """Lock an open file without waiting; return False when another process holds it.

    The operating system gives the lock back however the process ends. On a disk without locks it warns and
    returns True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError as error:  # some disks of clusters have no locks
        logger.warning(f"{folder}: cannot be locked ({error.strerror}); let no second start work in it")
    return True


def _open_lock(folder: Path) -> IO[str]:
    # a link of that name might have been planted, so that another file is written
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW
    return os.fdopen(os.open(folder / LOCK, flags, 0o666), "a+", encoding="utf-8")


def lock(folder: Path) -> IO[str]:
    """Make the folder and hold it for this process, until the returned file is closed.

    Raises: ScalerError when another run is at work in it.
    """
    for left in reversed(range(TRIES)):
        with explain_disk_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            file = _open_lock(folder)
        free = try_lock(file, folder)
        if not left or (free and _is_at(file, folder / LOCK)):
            break
        file.close()
        time.sleep(TRY_SECONDS)
    job = slurm.job_facts()
    mine = f"job {job['id']}, start {job.get('requeued', 0)}, " if job else ""
    file.seek(0)
    holder = file.read().strip()
    other = re.match(r"job (\d+), start \d+, ", holder)
    if other and job and other[1] == job["id"] and other[0] != mine:
        free = True  # held by an earlier start of this very job, on a node that died; the disk still keeps its lock
    elif other and not (job and other[1] == job["id"]) and slurm.is_running(other[1]):
        free = False  # on disks where each node has locks of its own
    if not free:
        who = _holder(file, holder)
        file.close()
        raise ScalerError(f"{folder}: another run is at work in it ({who}); stop it, or name another folder")
    file.truncate(0)
    file.write(f"{mine}process {os.getpid()} on {slurm.node_name()}\n")
    file.flush()
    return file


def _holder(file: IO[str], written: str) -> str:
    """Return who holds a lock: what is written in its file, unless the system sees it held by others here.

    The file has the pid of an earlier start until the new one has written its own; and a process that was started by
    the one that is written may have outlived it.
    """
    here, pids = os.fstat(file.fileno()), []
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # a process of another user, or one that has ended
            info = link.parent.parent / "fdinfo" / link.name
            pid = int(link.parent.parent.name)
            if pid != os.getpid() and os.path.samestat(here, link.stat()):
                pids += [pid] * ("\nlock:" in info.read_text(encoding="utf-8"))
    if not pids or any(re.search(rf"\bprocess {pid} on ", written) for pid in pids):
        return written
    return f"process {', '.join(map(str, sorted(set(pids))))} on {slurm.node_name()}"


def _is_at(file: IO[str], path: Path) -> bool:
    """Return whether an open file still is the one at a path; a start that was refused removes its lock and folder."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def is_held(folder: Path) -> bool | None:
    """Return whether a process holds a folder by `lock`; None where that cannot be known on this machine."""
    try:
        with (folder / LOCK).open(encoding="utf-8", errors="replace") as file:
            holder = file.read().strip()
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                return True
    except FileNotFoundError:
        return False
    except OSError:  # a disk without locks, or a file that is not ours to read
        return None
    if not holder or holder.endswith(f" on {slurm.node_name()}"):
        return False
    job = re.match(r"job (\d+), ", holder)  # on another node, where locks may be the node's own
    return slurm.is_running(job[1]) if job else None


def numbered(path: Path) -> Iterator[Path]:
    """Yield PATH, PATH-2, PATH-3 ..."""
    yield path
    for number in itertools.count(2):
        yield path.with_name(f"{path.name}-{number}")


def set_aside(path: Path) -> Path:
    """Rename a file or folder that is damaged, so that nothing in it is lost; return its new path."""
    aside = next(free for free in numbered(path.with_name(f"{path.name}.damaged")) if not os.path.lexists(free))
    path.rename(aside)
    return aside

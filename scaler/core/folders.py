"""Claim and lock an output folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from scaler.core import slurm
from scaler.core.errors import ScalerError, explain_disk_errors

LOCK = ".lock"


def names_in(folder: Path) -> set[str]:
    """Return the names of the files and folders directly in a folder."""
    return {path.name for path in folder.iterdir()}


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Keep other processes out of such blocks on the same folder; on a disk without locks it keeps nobody out."""
    with (folder / LOCK).open("a") as file:
        with contextlib.suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def lock(folder: Path) -> IO[str]:
    """Make the folder and hold it for this process, until the returned file is closed.

    On a disk without locks it only says so.

    Raises: ScalerError when another run is at work in it.
    """
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+", encoding="utf-8")
    job = slurm.job_facts()
    mine = f"job {job['id']}, start {job.get('requeued', 0)}, " if job else ""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        free = True
    except BlockingIOError:
        free = False
    except OSError as error:  # some disks of clusters have no locks
        free = True
        print(f"{folder}: cannot be locked ({error.strerror}); let no second start work in it", flush=True)
    file.seek(0)
    holder = file.read().strip()
    other = re.match(r"job (\d+), start \d+, ", holder)
    if other and job and other[1] == job["id"] and other[0] != mine:
        free = (
            True  # of an earlier start of this very job, on a node that has died, and whose lock the disk still keeps
        )
    elif other and not (job and other[1] == job["id"]) and slurm.is_running(other[1]):
        free = False  # where locks are each node's own
    if not free:
        file.close()
        raise ScalerError(f"{folder}: another run is at work in it ({holder}); stop it, or name another folder")
    file.truncate(0)
    file.write(f"{mine}process {os.getpid()} on {slurm.node_name()}\n")
    file.flush()
    return file

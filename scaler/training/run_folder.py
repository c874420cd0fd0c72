"""The folder of a run: who may work in it, what it began with, what ran when, and how it stands."""

from __future__ import annotations

import contextlib
import fcntl
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import IO, Any

import psutil
import torch

from scaler.config import command_line
from scaler.core import slurm
from scaler.core.errors import ScalerError, naming_full_disk
from scaler.core.files import read_json, write_json
from scaler.distributed.world import World

RECIPE = command_line.RECIPE_FILE
DS_CONFIG, ENVIRONMENT, STATE = "ds_config.json", "environment.json", "state.json"
LOCK = ".lock"
FIRST_WRITTEN = (STATE, ENVIRONMENT, DS_CONFIG, RECIPE)  # in this order
LOGS, PREFLIGHT = "logs", "preflight"  # of starts that a job scheduler makes
BEFORE_THE_RECIPE = {LOGS, PREFLIGHT, LOCK, *FIRST_WRITTEN[:-1], *(name + ".partial" for name in FIRST_WRITTEN)}
PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "safetensors", "scaler")
_SOURCE = Path(__file__).resolve().parent.parent


def choose(asked: Path | None, name: str) -> Path:
    """The folder to work in: the one asked for, new or a run's, or the first free of runs/NAME, runs/NAME-2 ...

    Raises: ScalerError where it can be no run folder.
    """
    if asked is not None:
        in_the_way = next((above for above in asked.parents if above.exists()), Path())
        if not in_the_way.is_dir():
            raise ScalerError(f"--run_dir {asked}: {in_the_way} is a file; name another folder")
        # a start that was killed at once leaves no more than what is written before the recipe
        if asked.exists() and not is_run(asked) and not (asked.is_dir() and _names(asked) <= BEFORE_THE_RECIPE):
            raise ScalerError(f"--run_dir {asked}: is neither new nor a run (no {RECIPE}); name another")
        return asked
    candidate, number = Path("runs") / name, 1
    while candidate.exists():
        number += 1
        candidate = Path("runs") / f"{name}-{number}"
    return candidate


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def is_run(folder: Path | None) -> bool:
    """A run has begun here."""
    return command_line.run_recipe(folder) is not None


def lock(folder: Path) -> IO[str]:
    """Make the folder and hold it for this process, until the returned file is closed.

    On a disk without locks it only says so.

    Raises: ScalerError when another run is at work in it.
    """
    with naming_full_disk(folder):
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


def versions() -> dict[str, str | None]:
    """Of the packages that results hang on; None where one is not installed as a package, as in some containers."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    return found


def facts(world: World, hosts: Sequence[str]) -> dict[str, Any]:
    """What a result may hang on and no recipe says: versions, commit, and the hosts of all ranks."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "cuda": torch.version.cuda,
        "ranks": world.size,
        "launcher": world.launcher,
        "slurm": slurm.job_facts(),
        "hosts": {host: hosts.count(host) for host in sorted(set(hosts))},
        "system": platform.platform(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_bytes": psutil.virtual_memory().total,
        "cores": len(os.sched_getaffinity(0)),
        "threads_a_rank": torch.get_num_threads(),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def commit() -> str | None:
    """The commit of this program's source, "+changes" behind it where the files are others; None without git."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],
            cwd=_SOURCE,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return said.stdout.strip()


def add_attempt(folder: Path, attempt: dict[str, Any]) -> None:
    """Write a start of the run into environment.json, behind the earlier ones."""
    write_json(folder / ENVIRONMENT, {"attempts": [*attempts(folder), attempt]})


def attempts(folder: Path) -> list[dict[str, Any]]:
    """All starts of the run."""
    path = folder / ENVIRONMENT
    return list(read_json(path).get("attempts", [])) if path.is_file() else []


def set_state(folder: Path, state: str, **more: Any) -> None:
    """Say how the run stands: "running", "stopped" (goes on when started again), "finished" or "failed"."""
    with naming_full_disk(folder):
        write_json(folder / STATE, {"state": state, **more, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


@contextlib.contextmanager
def telling_failure(folder: Path | None) -> Iterator[None]:
    """Write down that the run failed, and why, when it does. None: another rank writes."""
    try:
        yield
    except ScalerError as error:
        if folder is not None:
            with contextlib.suppress(OSError, ScalerError):
                set_state(folder, "failed", why=str(error))
        raise


def state(folder: Path) -> dict[str, Any]:
    """How the run stands; empty before its first word."""
    path = folder / STATE
    return read_json(path) if path.is_file() else {}

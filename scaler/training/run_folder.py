"""Keep the folder of a run: choose it, and record each start and how the run stands. Needs no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaler.config import command_line
from scaler.core.errors import ScalerError, explain_disk_errors, one_line
from scaler.core.files import read_json, write_json
from scaler.core.folders import LOCK, claim, lock, numbered
from scaler.core.provenance import ENVIRONMENT, attempts

RECIPE = command_line.RECIPE_FILE
DS_CONFIG, STATE = "ds_config.json", "state.json"
FIRST_WRITTEN = (STATE, ENVIRONMENT, DS_CONFIG, RECIPE)  # in this order
HUNG = "hung"  # reports of ranks that made no progress
LOGS, PREFLIGHT = "logs", "preflight"  # of starts by a job scheduler


def choose(asked: Path | None, name: str) -> Path:
    """Choose the folder to work in: the one asked for, new or a run's, or the first free of runs/NAME, runs/NAME-2 ...

    Raises: ScalerError where it can be no run folder.
    """
    if asked is not None:
        in_the_way = next((above for above in asked.parents if above.exists()), Path())
        if not in_the_way.is_dir():
            raise ScalerError(f"--run_dir {asked}: {in_the_way} is a file; name another folder")
        claim(asked, (RECIPE,), "a run", (LOGS, PREFLIGHT, *FIRST_WRITTEN), "--run_dir")
        return asked
    return next(path for path in numbered(Path("runs") / name) if not path.exists())


@contextlib.contextmanager
def hold(asked: Path | None, name: str) -> Iterator[Path]:
    """Hold the folder of a run, and yield it: the one asked for, or a new one, so that no two starts take one name.

    Where the start is refused before it writes anything, a new folder is removed again.

    Raises: ScalerError when another run is at work in it.
    """
    wanted = asked or Path("runs") / name
    new = asked is None or not asked.exists()
    made = [path for path in wanted.parents if not path.exists()]
    folder = asked or _make_new(wanted)
    with lock(folder):
        try:
            yield folder
        finally:
            with contextlib.suppress(OSError):
                if new and [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    for path in (folder, *made):
                        path.rmdir()


def _make_new(path: Path) -> Path:
    with explain_disk_errors(path):
        for free in numbered(path):
            with contextlib.suppress(FileExistsError):
                free.mkdir(parents=True)
                return free
    raise AssertionError("numbers do not end")


def is_run(folder: Path | None) -> bool:
    """Return whether a run has begun in this folder."""
    return command_line.run_recipe(folder) is not None


def add_attempt(folder: Path, attempt: dict[str, Any]) -> None:
    """Write a start of the run into environment.json, after the earlier ones."""
    write_json(folder / ENVIRONMENT, {"attempts": [*attempts(folder), attempt]})


def set_state(folder: Path, state: str, **more: Any) -> None:
    """Record how the run stands: "running", "stopped" (goes on when started again), "finished" or "failed".

    A run that is killed leaves "running" behind; `status.state_of` tells.
    """
    with explain_disk_errors(folder):
        write_json(folder / STATE, {"state": state, **more, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


@contextlib.contextmanager
def recording_failure(folder: Path | None) -> Iterator[None]:
    """Record that the run failed, and why, when it does; None where another rank records it.

    A run that has finished stays so, whatever fails afterwards.
    """
    try:
        yield
    except Exception as error:
        if folder is not None:
            kind = "" if isinstance(error, ScalerError | OSError) else f"{type(error).__name__}: "
            with contextlib.suppress(OSError, ScalerError):
                if state(folder).get("state") != "finished":
                    set_state(folder, "failed", why=kind + one_line(error))
        raise


def state(folder: Path) -> dict[str, Any]:
    """Return how the run stands; empty before it was first recorded."""
    path = folder / STATE
    return read_json(path) if path.is_file() else {}

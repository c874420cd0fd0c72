"""Keep the folder of a run: choose it, and record each start and how the run stands. Needs no torch."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from scaler.config import command_line
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import read_json, write_json
from scaler.core.folders import claim
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
    candidate, number = Path("runs") / name, 1
    while candidate.exists():
        number += 1
        candidate = Path("runs") / f"{name}-{number}"
    return candidate


def is_run(folder: Path | None) -> bool:
    """Return whether a run has begun in this folder."""
    return command_line.run_recipe(folder) is not None


def add_attempt(folder: Path, attempt: dict[str, Any]) -> None:
    """Write a start of the run into environment.json, after the earlier ones."""
    write_json(folder / ENVIRONMENT, {"attempts": [*attempts(folder), attempt]})


def set_state(folder: Path, state: str, **more: Any) -> None:
    """Record how the run stands: "running", "stopped" (goes on when started again), "finished" or "failed"."""
    with explain_disk_errors(folder):
        write_json(folder / STATE, {"state": state, **more, "written": time.strftime("%Y-%m-%dT%H:%M:%S%z")})


@contextlib.contextmanager
def recording_failure(folder: Path | None) -> Iterator[None]:
    """Record that the run failed, and why, when it does; None where another rank records it."""
    try:
        yield
    except ScalerError as error:
        if folder is not None:
            with contextlib.suppress(OSError, ScalerError):
                set_state(folder, "failed", why=str(error))
        raise


def state(folder: Path) -> dict[str, Any]:
    """Return how the run stands; empty before it was first recorded."""
    path = folder / STATE
    return read_json(path) if path.is_file() else {}

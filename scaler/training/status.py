"""Read from its folder alone how a run stands."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from scaler.checkpoint.folder import found as checkpoints
from scaler.checkpoint.folder import step_of
from scaler.config.command_line import load_run_recipe
from scaler.core.errors import ScalerError, one_line
from scaler.core.files import FAULTS, METRICS, records
from scaler.core.folders import is_held
from scaler.core.provenance import attempts
from scaler.core.text import duration, quantity, table
from scaler.model import folder as model_folder
from scaler.training import run_folder

SILENT_SECONDS = 900  # after which a run that says it is running may be dead


def status(folder: Path) -> dict[str, Any]:
    """Read how a run stands.

    Returns: state, step and steps; the newest loss, held-out loss and speed; seconds left, and since the last word;
    starts, the ranks and hosts of the last one; faults, the last of them, and reports of a hung rank; None where
    nothing is known.

    Raises: ScalerError where there is no run, or its files cannot be read.
    """
    if not run_folder.is_run(folder):
        raise ScalerError(f"{folder}: no run (no {run_folder.RECIPE}); name a folder such as runs/quickstart")
    state, why = state_of(folder)
    saved = next((step_of(path) for path in checkpoints(folder / "checkpoints")), None)
    measured: dict[str, Any] = {}
    for record in records(folder / METRICS):
        measured |= record
    starts = attempts(folder)
    faults = records(folder / FAULTS)
    words = [path.stat().st_mtime for name in (METRICS, run_folder.STATE) if (path := folder / name).is_file()]
    last = starts[-1] if starts else {}
    steps: int | None = None
    recipe_problem: str | None = None
    try:
        steps = load_run_recipe(folder).training.steps
    except (ScalerError, OSError) as error:  # the rest is still known
        recipe_problem = one_line(error)
    return {
        "run": str(folder),
        "state": state,
        "why": why,
        "step": max(saved or 0, int(measured.get("step", 0))),
        "steps": steps,
        "recipe_problem": recipe_problem,
        "saved_step": saved,
        "train_loss": measured.get("train_loss"),
        "heldout_loss": measured.get("heldout_loss"),
        "tokens_per_second": measured.get("speed_tokens_per_second"),
        "seconds_left": measured.get("speed_seconds_left") if state == "running" else None,
        "slowest_rank": measured.get("speed_slowest_rank"),
        "slowest_rank_to_median": measured.get("speed_slowest_rank_to_median"),
        "seconds_since_last_word": time.time() - max(words) if words else None,
        "starts": len(starts),
        "ranks": last.get("ranks"),
        "hosts": last.get("hosts"),
        "slurm": last.get("slurm"),
        "faults": len(faults),
        "last_fault": faults[-1] if faults else None,
        "hung": sorted(path.name for path in (folder / run_folder.HUNG).glob("rank_?????.txt")),
    }


def state_of(folder: Path) -> tuple[str | None, str | None]:
    """Return the state of a run, and why it is so, if that is known.

    A run is running while a process holds its folder, and finished where its export opens, whatever state.json says.
    """
    stored = run_folder.state(folder)
    state, why = stored.get("state"), stored.get("why") or stored.get("by")
    if state == "running":
        held = is_held(folder)
        if held is None:
            why = "it says; its lock cannot be seen from this machine"
        elif not held:
            state, why = "interrupted", "no process is at work in it; the same command with --run_dir goes on"
    elif state == "finished":
        try:
            why = model_folder.problem(folder / model_folder.EXPORT, {})
        except OSError as error:
            why = one_line(error)
    return state, why


def render(found: dict[str, Any]) -> str:
    """Render the status of a run as text."""
    state = str(found["state"])
    silent = found["seconds_since_last_word"]
    if found["why"]:
        state += f" ({found['why']})"
    if found["state"] == "running" and silent is not None and silent > SILENT_SECONDS:
        state += f"; its last word is {duration(silent)} old: look whether it still is"
    saved = "nothing saved" if found["saved_step"] is None else f"saved at {found['saved_step']:,}"
    steps = "?" if found["steps"] is None else f"{found['steps']:,}"
    lines = [("state", state), ("step", f"{found['step']:,} of {steps}, {saved}")]
    losses = {"training": found["train_loss"], "held-out": found["heldout_loss"]}
    lines.append(("loss", ", ".join(f"{name} {loss:.3f}" for name, loss in losses.items() if loss is not None) or "-"))
    if found["tokens_per_second"] is not None:
        speed = f"{found['tokens_per_second']:,.0f} tokens/s"
        left = found["seconds_left"]
        lines.append(("speed", speed if left is None else f"{speed}, {duration(left)} left"))
    if found["slowest_rank"] is not None:
        slower = f"{found['slowest_rank_to_median']:.2f} times the median's time for its own work"
        lines.append(("slowest", f"rank {found['slowest_rank']}, {slower}"))
    hosts = ", ".join(f"{host} ({count})" for host, count in (found["hosts"] or {}).items())
    job = f", SLURM job {found['slurm']['id']}" if found["slurm"] else ""
    lines.append(
        ("starts", f"{found['starts']}; the last one: {quantity(found['ranks'] or 0, 'rank')} on {hosts}{job}")
    )
    if found["last_fault"]:
        fault = found["last_fault"]
        lines.append(("faults", f"{found['faults']}; the last at step {fault['step']:,}: {fault['verdict']}"))
    if found["recipe_problem"]:
        lines.append(("recipe", found["recipe_problem"]))
    if found["hung"]:
        lines.append(("hung", f"reports in {run_folder.HUNG}/: {', '.join(found['hung'])}"))
    return "\n".join([found["run"], *(f"  {name:<8} {value}" for name, value in lines)])


def runs_in(folder: Path) -> list[Path]:
    """Return the folders of runs in a folder, by name; fine-tunings and sweeps are none."""
    return sorted(path for path in folder.glob("*") if run_folder.is_run(path))


def status_or_problem(folder: Path) -> dict[str, Any]:
    """Read how a run stands; where its files cannot be read, the problem is its state, so that others are listed."""
    try:
        return status(folder)
    except (ScalerError, OSError) as error:
        fields = ("step", "steps", "heldout_loss", "seconds_since_last_word")
        return {"run": str(folder), "state": f"unreadable: {one_line(error)}", **dict.fromkeys(fields)}


def listing(found: Sequence[dict[str, Any]]) -> str:
    """Render the status of several runs, a line each: state, step, held-out loss, and the age of the last record."""
    lines = []
    for run in found:
        steps = "?" if run["steps"] is None else f"{run['steps']:,}"
        loss, age = run["heldout_loss"], run["seconds_since_last_word"]
        lines.append(
            [
                *(run["run"], str(run["state"]), "-" if run["step"] is None else f"{run['step']:,} of {steps}"),
                *("-" if loss is None else f"{loss:.3f}", "-" if age is None else f"{duration(age)} ago"),
            ]
        )
    return "\n".join(table(lines, ["run", "state", "step", "held-out loss", "last record"]))

"""Begin or continue a hyperparameter sweep, and start its trials."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from scaler.config import recipe, typed
from scaler.core import folders, limits
from scaler.core.cli import progress_beside
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import read_json, write_json, write_whole
from scaler.distributed.world import World, forget_launch
from scaler.sweeps import report as sweep_report
from scaler.sweeps import space as sweep_space
from scaler.sweeps import trial as sweep_trial
from scaler.sweeps.report import BASE, SETTINGS
from scaler.sweeps.trial import Trial
from scaler.training import job, run_folder, stop

POLL_SECONDS = 1.0
TRAIN = Path(__file__).resolve().parent.parent / "train.py"
# overrides of every trial: halving replaces patience, and one checkpoint is enough to continue
OF_A_TRIAL = ["training.patience=null", "checkpoint.keep_last=1", "checkpoint.keep_every=null"]


def resolved(arguments: argparse.Namespace, more: list[str]) -> job.Job:
    """Return a trial's job, checked against data and engine before anything starts."""
    not_asked = {"run_dir": None, "allow_changes": False}
    given = {**vars(arguments), **not_asked, "overrides": [*arguments.overrides, *more]}
    return job.resolve(argparse.Namespace(**given), World(size=arguments.ranks, local_size=arguments.ranks))


def begin(arguments: argparse.Namespace, base: job.Job, space: tuple[sweep_space.Parameter, ...]) -> None:
    """Make the folder, or check that it is this sweep's.

    Raises: ScalerError for a folder of another sweep or of something else.
    """
    folder, training = arguments.folder, base.recipe.training
    if training.steps % training.evaluate_every:
        raise ScalerError(
            f"training.steps={training.steps} is no multiple of training.evaluate_every={training.evaluate_every}, and "
            "trials are compared at evaluations; set training.evaluate_every to a divisor of it"
        )
    folders.claim(folder, (SETTINGS,), "a sweep")
    content: dict[str, Any] = {
        "kind": "sweep",
        "recipe": base.recipe.to_plain(),
        "ds_config": base.ds_config_given,
        "rows_xxh3": base.data.manifest.xxh3("train"),
        "space": [asdict(one) for one in space],
    }
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with folders.exclusive(folder):
            if not (folder / SETTINGS).is_file():
                write_json(folder / SETTINGS, content)
            before = read_json(folder / SETTINGS)
            before, now = ({**one, "recipe": recipe.compared(one.get("recipe", {}))} for one in (before, content))
            typed.refuse_differences(f"{folder}: was begun with", before, now)
            # copies, because a sweep is long and the user's files may change meanwhile
            write_whole(folder / BASE, base.recipe.to_yaml())
            write_json(folder / run_folder.DS_CONFIG, base.ds_config_given)


def take(arguments: argparse.Namespace, base: recipe.Recipe, space: Any, slot: int) -> Trial | None:
    """Take the first trial that is neither over nor run by another process, new or abandoned; None without any."""
    folder = arguments.folder
    for number in range(arguments.trials):
        if sweep_trial.is_over(folder, number):
            continue
        with explain_disk_errors(folder):
            logs = sweep_trial.run_dir(folder, number) / run_folder.LOGS
            logs.mkdir(parents=True, exist_ok=True)
        try:
            lock = folders.lock(logs)
        except ScalerError:
            continue
        if sweep_trial.is_over(folder, number):
            lock.close()
            continue
        path = sweep_trial.record_file(folder, number)
        again = path.is_file()
        record = read_json(path) if again else _new_record(arguments, base, space, number)
        trial = Trial(folder, lock, record, _command(arguments, record), _environ(arguments, slot))
        trial.write()
        what = " ".join(record["overrides"]) or "the recipe as it is"
        print(f"trial {number} {'goes on' if again else 'begins'}: {what}", flush=True)
        return trial
    return None


def _new_record(arguments: argparse.Namespace, base: recipe.Recipe, space: Any, number: int) -> dict[str, Any]:
    """Return the record of a new trial."""
    if number == 0:
        parameters, overrides = {one.key: sweep_space.value_of(base, one.key) for one in space}, []
    else:
        parameters = sweep_space.propose(space, sweep_trial.records(arguments.folder), base.seed, number)
        overrides = sweep_space.overrides(parameters, base)
    training = recipe.load(str(arguments.folder / BASE), overrides).training
    return {
        **{"trial": number, "state": "running", "parameters": parameters, "overrides": overrides},
        **{"rows": training.rows, "of_steps": training.steps, "evaluate_every": training.evaluate_every},
        **{"steps": 0, "seconds": 0.0, "losses": {}},
    }


def _command(arguments: argparse.Namespace, record: dict[str, Any]) -> list[str]:
    """Return the command of a trial's training, as one would start it by hand."""
    folder, ranks = arguments.folder, str(arguments.ranks)
    # the deepspeed launcher would take the first GPUs of the machine, whatever CUDA_VISIBLE_DEVICES says
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks]
    start = [sys.executable, *(launcher if arguments.ranks > 1 else []), str(TRAIN)]
    run = ["--run_dir", str(sweep_trial.run_dir(folder, record["trial"])), "--ranks", ranks]
    run += ["--allow_untested_ds_keys"] * arguments.allow_untested_ds_keys
    run += ["--recipe", str(folder / BASE), "--deepspeed_config", str(folder / run_folder.DS_CONFIG)]
    return [*start, *run, *record["overrides"], *OF_A_TRIAL]


def _environ(arguments: argparse.Namespace, slot: int) -> dict[str, str]:
    """Return the environment of a trial in a slot of this process, with its part of the cores and GPUs."""
    cores, given = limits.cores(), os.environ.get("OMP_NUM_THREADS", "")
    threads = max(1, cores // (arguments.workers * arguments.ranks))
    environ = {**os.environ, "OMP_NUM_THREADS": str(min(threads, int(given)) if given.isdigit() else threads)}
    forget_launch(environ)
    if count := torch.cuda.device_count():
        visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(count)))
        devices = [visible.split(",")[(slot * arguments.ranks + rank) % count] for rank in range(arguments.ranks)]
        environ["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(devices))
    return environ


def describe(record: dict[str, Any]) -> str:
    """Describe the state of a trial that this process has done with."""
    state = "stopped" if record["state"] == "running" else record["state"]
    where = f"{state} after {record['steps']:,} of {record['of_steps']:,} steps"
    return f"{where}, {record.get('error') or f'held-out loss {sweep_trial.last_loss(record):.3f}'}"


def run(arguments: argparse.Namespace) -> None:
    """Run the trials of a sweep until none is left or it is stopped, and write its report."""
    base = resolved(arguments, [])
    space = sweep_space.parse(arguments.space, lambda more: resolved(arguments, more).recipe)
    begin(arguments, base, space)
    with progress_beside(arguments.json):
        asked = work(arguments, base.recipe, space)
        with folders.exclusive(arguments.folder):
            content = sweep_report.write(arguments.folder)
    print(json.dumps(content, indent=2) if arguments.json else sweep_report.render(content, arguments.folder))
    if asked:
        print(f"stopped by {asked}; the same command goes on", file=sys.stderr if arguments.json else sys.stdout)


def work(arguments: argparse.Namespace, base: recipe.Recipe, space: Any) -> str | None:
    """Run trials until none is left or the sweep is stopped. Return what has stopped it, if anything."""
    slots: list[Trial | None] = [None] * arguments.workers
    more = True
    with stop.StopRequests(arguments.folder) as requests:
        while True:
            asked = stop.reason(requests.flags())
            for slot, trial in enumerate(slots):
                if trial is None and more and not asked:
                    slots[slot] = take(arguments, base, space, slot)
                    more = slots[slot] is not None
                elif trial is not None and trial.follow(asked is not None):
                    slots[slot], more = None, True
                    print(f"trial {trial.record['trial']}: {describe(trial.record)}", flush=True)
            if not any(slots) and (asked or not more):
                break
            time.sleep(POLL_SECONDS)
        requests.honoured()
    return asked

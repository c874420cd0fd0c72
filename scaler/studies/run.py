"""Measure the points of a scaling study on this machine, one after another."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from scaler.core import limits
from scaler.core.cli import progress_beside
from scaler.core.errors import EXIT_TRY_AGAIN, ScalerError
from scaler.core.text import duration, quantity
from scaler.distributed import local_ranks
from scaler.studies import folder as study_folder
from scaler.studies import point
from scaler.studies.folder import Entry
from scaler.studies.grid import begin

# imported once for all points; DeepSpeed imports the last one at every start, which loads a compiler
PRELOAD = ["scaler.studies.point", "scaler.engine.engine", "deepspeed.runtime.zero.muon.muon_optimizer"]
SCRIPT = "sbatch slurm/scaling_study.sh, with the same arguments"
ATTEMPTS = 3  # per point, over all starts


def open_points(entries: Sequence[Entry]) -> list[Entry]:
    """Return the points that are not measured yet and may be tried again."""
    return [entry for entry in entries if entry.measured is None and len(entry.failures) < ATTEMPTS]


def threads(study: Path, entries: Sequence[Entry]) -> int:
    """Return the threads of each rank, the same for all points so that they are comparable.

    They are those of OMP_NUM_THREADS, or the cores divided by the largest number of ranks.

    Raises: ScalerError where points were measured with another number.
    """
    cores, most = limits.cores(), max(entry.point.ranks for entry in entries)
    given = os.environ.get("OMP_NUM_THREADS", "")
    count = int(given) if given.isdigit() and int(given) else max(1, cores // most)
    for entry in entries:
        before = entry.measured.threads if entry.measured else 0
        if before not in (0, count):
            raise ScalerError(
                f"{study}: {entry.point.name} was measured with {before} threads a rank, and now there would be "
                f"{count}; set OMP_NUM_THREADS={before}, or name another folder"
            )
    if most > cores and not torch.cuda.is_available():
        print(f"note: {most} ranks share {cores} cores, so they are slower than on a core each", flush=True)
    return count


def measure(arguments: argparse.Namespace) -> None:
    """Measure the points that this machine can run, each until it is measured or has failed ATTEMPTS times."""
    study: Path = arguments.folder
    most = torch.cuda.device_count() or math.inf
    entries = [entry for entry in study_folder.read(study) if entry.point.nodes == 1 and entry.point.ranks <= most]
    os.environ["OMP_NUM_THREADS"] = str(threads(study, entries))
    (study / study_folder.LOGS).mkdir(exist_ok=True)
    to_do, done, began = open_points(entries), 0, time.monotonic()
    for entry in to_do * ATTEMPTS:  # points that failed come again after the others
        folder = study_folder.folder_of(study, entry.point)
        tried = len(study_folder.failures(folder))
        if study_folder.read_measured(folder) is not None or tried == ATTEMPTS:
            continue
        log = study / study_folder.LOGS / f"{entry.point.name}-{tried + 1}.txt"
        log.unlink(missing_ok=True)  # left by a start that was stopped
        options = [str(study), entry.point.name, f"--steps={arguments.steps}", f"--warmup={arguments.warmup}"]
        status = local_ranks.start(entry.point.ranks, point.main, options, log, PRELOAD)
        measured = study_folder.read_measured(folder)
        if measured is None:
            reason = local_ranks.reason_of(log, status)
            study_folder.note_failure(study, entry.point, reason)
            outcome = f"failed: {reason}"
        else:
            outcome = f"{study_folder.step_seconds(measured):.4g} s a step"
        done += measured is not None or tried + 1 == ATTEMPTS
        left = (time.monotonic() - began) / max(done, 1) * (len(to_do) - done)
        print(f"{done}/{len(to_do)} {entry.point.name}: {outcome}; {duration(left)} left", flush=True)


def entry_as_json(entry: Entry) -> dict[str, Any]:
    """Return a point, what was measured of it (null if nothing yet), and why attempts at it failed."""
    measured = entry.measured
    return {
        "name": entry.point.name,
        **dataclasses.asdict(entry.point),
        "step_seconds": None if measured is None else study_folder.step_seconds(measured),
        "peak_bytes": None if measured is None else max(measured.peak_bytes),
        "failures": list(entry.failures),
    }


def run(arguments: argparse.Namespace) -> None:
    """Write the study's folder, and measure its points here, or name those that SLURM's nodes are to measure.

    Raises: SystemExit with status 75 where points have failed for good.
    """
    gpus = torch.cuda.device_count()
    arguments.ranks_per_node = arguments.ranks_per_node or (gpus or 1,)
    on_this_machine = not arguments.write_only and max(arguments.nodes) == 1
    if on_this_machine and 0 < gpus < max(arguments.ranks_per_node):
        raise ScalerError(f"--ranks_per_node {max(arguments.ranks_per_node)}: this machine has {gpus} GPUs, one a rank")
    lock, left_out = begin(arguments)
    with closing(lock):
        for what, why in left_out.items():
            print(f"left out: {what}: {why}", file=sys.stderr, flush=True)
        with progress_beside(arguments.json):
            if on_this_machine:
                measure(arguments)
            entries = study_folder.read(arguments.folder)
            to_do = open_points(entries)
            failed = [entry for entry in entries if entry.measured is None and len(entry.failures) >= ATTEMPTS]
            if on_this_machine:
                for entry in failed:
                    print(f"failed: {entry.point.name}: {entry.failures[-1]}", flush=True)
                measured = len(entries) - len(failed) - len(to_do)
                print(f"{arguments.folder}: {measured} measured, {len(failed)} failed, {len(to_do)} left", flush=True)
            else:
                count = quantity(len(to_do), "point")
                print(f"{arguments.folder}: {count} to measure; on nodes of SLURM: {SCRIPT}", file=sys.stderr)
        if arguments.json:
            print(json.dumps([entry_as_json(entry) for entry in entries], indent=2))
        elif not on_this_machine:
            for entry in to_do:
                print(entry.point.name)
        if on_this_machine and failed:
            raise SystemExit(EXIT_TRY_AGAIN)

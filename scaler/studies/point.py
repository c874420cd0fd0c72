"""Measure a point of a study, on as many ranks as it needs: `srun python -m scaler.studies.point FOLDER POINT`.

Any launcher may start the ranks, as for scaler/train.py; `scaler study` starts those of one machine. Recipe, data,
model, engine and steps are those of a training. There is no run folder, evaluation, log or checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import statistics
import time
import traceback
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

from scaler.config import deepspeed as ds_config
from scaler.config import recipe
from scaler.core import folders, log, provenance, slurm
from scaler.core.cli import Parser, command
from scaler.core.errors import EXIT_BAD_INPUT, ScalerError
from scaler.core.text import quantity
from scaler.distributed import collectives, devices
from scaler.distributed.world import World, detect_world
from scaler.model.masked_lm import MaskedLM
from scaler.studies import folder as study_folder
from scaler.studies.folder import Measured, Point
from scaler.training import loop
from scaler.training.job import Job, resolve, starting_point
from scaler.training.progress import Progress

COMMUNICATION_STEPS = 5  # after the measured ones; they are slower, because each collective is waited for


def parser() -> Parser:
    """Return the parser of the program that each rank of a point runs."""
    made = Parser("study point", __doc__)
    made.prog = "python -m scaler.studies.point"
    made.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the study")
    made.add_argument("point", metavar="POINT", help="name of its folder in FOLDER/points")
    study_folder.add_steps(made)
    made.add_local_rank()
    return made


def check_ranks(point: Point, world: World) -> None:
    """Check that as many ranks were started as the point needs.

    Raises: ScalerError on the first rank if not; the other ranks exit.
    """
    if (world.size, world.local_size) != (point.ranks, point.ranks_per_node):
        if not world.is_first:
            raise SystemExit(EXIT_BAD_INPUT)
        raise ScalerError(
            f"{point.name}: needs {quantity(point.nodes, 'node')} x {quantity(point.ranks_per_node, 'rank')}, but "
            f"{world.launcher} started {quantity(world.size, 'rank')}, {world.local_size} of them on this node; start "
            "as many as it needs"
        )


def resolved(study: Path, point: Point, world: World) -> Job:
    """Return the point as a training. Raises ScalerError where recipe, configuration and data do not agree."""
    arguments = argparse.Namespace(
        recipe=str(study / study_folder.RECIPE),
        overrides=[f"training.rows={point.rows}", f"training.max_micro_rows={point.micro_rows}"],
        deepspeed_config=study_folder.folder_of(study, point) / study_folder.DS_CONFIG,
        run_dir=None,
        ranks=None,
        allow_changes=False,
        allow_untested_ds_keys=True,  # the study has refused what it was not allowed to measure
    )
    return resolve(arguments, world)


def with_masks(job: Job, probability: float) -> Job:
    """Return the same job with this mask probability at every step."""
    objective = dataclasses.replace(job.recipe.objective, mask_probability=probability, final_mask_probability=None)
    return dataclasses.replace(job, recipe=dataclasses.replace(job.recipe, objective=objective))


def measure(job: Job, world: World, steps: int, warmup: int) -> Measured:
    """Train for the warm-up, the measured steps, and some in which communication is timed. Every rank calls it.

    All steps have the mean mask probability, except one that has the largest, because it needs the most memory.
    """
    from scaler.engine import engine
    from scaler.engine.clock import timed_collectives

    started, device = time.strftime("%Y-%m-%dT%H:%M:%S%z"), devices.device(world)
    collectives.all_or_none(lambda: engine.check(job.ds_config, job.ds_config_file), world)
    unigram_counts = collectives.all_or_none(job.data.manifest.unigram_counts, world)
    base = 0 if device.type == "cuda" else devices.memory_bytes(device)
    network = collectives.all_or_none(lambda: starting_point(job, unigram_counts), world)
    running = collectives.all_or_none(
        lambda: engine.Engine(MaskedLM(network), job.recipe.optimizer, job.ds_config), world
    )
    running.train(True)
    progress, objective = Progress(), job.recipe.objective
    mean = with_masks(job, objective.at(0.5))

    def step(job_of_step: Job = mean) -> float:
        clock = time.perf_counter()
        _, norm = loop.train_batch(running, job_of_step, progress, world)
        seconds = devices.now(device) - clock
        progress.step += 1
        progress.consumed_rows += job.batch.rows
        if not math.isfinite(norm):  # on all ranks; also where the loss is not finite
            problem = f"step {progress.step}: the gradient norm is {norm}; lower optimizer.learning_rate"
            collectives.agree_or_raise(problem, world)
        return seconds

    for _ in range(warmup):
        step()
    devices.forget_peak(device)
    times = [step() for _ in range(steps)]
    step(with_masks(job, max(objective.at(0.0), objective.at(1.0))))
    peak = devices.memory_bytes(device, peak=True) - base
    own, waited = [], []
    with timed_collectives(device) as calls:
        for _ in range(COMMUNICATION_STEPS):
            calls.clear()
            seconds = step()
            waited.append(sum(calls))
            own.append(max(0.0, seconds - waited[-1]))
    running.close()
    of_rank = (slurm.node_name(), times, own, statistics.median(waited), peak)
    hosts, step_seconds, own_seconds, communication, peaks = zip(*collectives.all_gather(of_rank, world), strict=True)
    manifest = job.data.manifest
    return Measured(
        hosts=hosts,
        warmup=warmup,
        step_seconds=step_seconds,
        own_seconds=own_seconds,
        communication_seconds=communication,
        peak_bytes=peaks,
        tokens_per_row=manifest.count("train", "tokens") / manifest.count("train", "rows"),
        precision=ds_config.precision_of(job.ds_config),
        versions={name: version for name, version in provenance.versions().items() if version is not None},
        commit=provenance.commit(),
        started=started,
        device=device.type,
        threads=torch.get_num_threads(),
    )


def run(arguments: argparse.Namespace, point: Point, world: World) -> None:
    """Measure the point, and write the measurements into the study."""
    from scaler.engine import process_group

    study: Path = arguments.folder
    process_group.join(world, recipe.load(str(study / study_folder.RECIPE)).faults.hang_seconds)
    folder = study_folder.folder_of(study, point)
    held: AbstractContextManager[Any] = collectives.all_or_none(
        lambda: folders.lock(folder) if world.is_first else nullcontext(), world
    )
    with held:
        job = collectives.all_or_none(lambda: resolved(study, point, world), world)
        measured = measure(job, world, arguments.steps, arguments.warmup)
        collectives.all_or_none(
            lambda: study_folder.write_measured(study, point, measured) if world.is_first else None, world
        )
        if world.is_first:
            print(f"{point.name}: {study_folder.step_seconds(measured):.4g} s a step", flush=True)


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    world = detect_world()
    log.set_up(arguments.verbosity, world.rank)
    point = study_folder.read_point(arguments.folder / study_folder.POINTS / arguments.point)
    check_ranks(point, world)
    from scaler.engine import process_group  # seconds for DeepSpeed

    try:
        with collectives.explaining_errors(world, "take fewer micro_rows, or another stage"):
            run(arguments, point, world)
    except ScalerError:
        raise
    except Exception as error:  # the reason of a failed point is a line, for which the study looks in its log
        traceback.print_exc()
        raise ScalerError(f"rank {world.rank}: {type(error).__name__}: {error}") from error
    finally:
        process_group.leave()


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

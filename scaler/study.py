"""Measure how a training scales: `python -m scaler.study FOLDER --recipe NAME --ranks_per_node 1,2 --stages 0,2`.

A point is a number of ranks, a ZeRO stage and the rest of a setting; the grid of all that are asked for is measured one
after another on this machine, or on many nodes by slurm/scaling_study.sh. Stopped or killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import itertools
import math
import os
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

import torch

from scaler.config import command_line
from scaler.config import deepspeed as ds_config
from scaler.config import typed as settings
from scaler.config.recipe import Recipe
from scaler.config.recipe import load as load_recipe
from scaler.core.errors import EXIT_TRY_AGAIN, ScalerError, command, naming_full_disk
from scaler.core.files import read_json, write_whole
from scaler.data import prepared
from scaler.distributed import world
from scaler.planning.workload import settings_of
from scaler.studies import folder as study_folder
from scaler.studies import local_ranks
from scaler.studies import point as study_point
from scaler.studies.folder import SERIES, Entry, Point
from scaler.training import metrics, run_folder
from scaler.training.job import DEFAULT_DS_CONFIG

SCRIPT = "sbatch slurm/scaling_study.sh, with the same arguments"
ATTEMPTS = 3  # at a point, over all starts
FIRST_WRITTEN = {run_folder.LOCK, study_folder.RECIPE, f"{study_folder.RECIPE}.partial"}  # before there are points
OFFLOAD = {"no": (False,), "yes": (True,), "both": (False, True)}


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, each once: "1,2,4" or "5e7,5e8". Raises ScalerError for anything else."""
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = [0.5]
    if not all(number.is_integer() for number in found):
        raise ScalerError(f"{text!r}, but whole numbers with commas between are needed, such as 1,2,4")
    return tuple(dict.fromkeys(map(int, found)))


def words(text: str) -> tuple[str, ...]:
    """The same with words."""
    return tuple(dict.fromkeys(text.split(",")))


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scaler.study", description=__doc__, formatter_class=style)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the study, new or to go on with")
    parser.add_argument("--recipe", help="name or YAML file (the study's, or quickstart)")
    parser.add_argument(
        "--deepspeed_config", type=Path, default=DEFAULT_DS_CONFIG, help="what all points share (ds_configs/zero2.json)"
    )
    grid = parser.add_argument_group("the grid, each with commas between")
    grid.add_argument("--nodes", type=numbers, default=(1,), help="(1); more are only defined here, for SLURM")
    grid.add_argument("--ranks_per_node", type=numbers, help="(the GPUs of this machine, or 1)")
    grid.add_argument("--stages", type=numbers, default=(0, 1, 2, 3), help="of ZeRO (0,1,2,3)")
    grid.add_argument("--offload", choices=OFFLOAD, default="no", help="of the optimizer's state to the CPU (no)")
    grid.add_argument(
        "--series",
        type=words,
        default=("strong",),
        help="strong: the recipe's batch on all sizes; weak: "
        "it is that of the smallest, and grows with the ranks (strong)",
    )
    grid.add_argument("--micro_rows", type=numbers, help="rows of a micro-batch (the most up to max_micro_rows)")
    grid.add_argument("--buckets", type=numbers, help="numbers in a reduce_bucket_size (that of the configuration)")
    study_point.add_steps(parser)
    parser.add_argument("--define_only", action="store_true", help="make the folder, and print what is to be measured")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    check(parsed)
    return parsed


def check(arguments: argparse.Namespace) -> None:
    """Raises ScalerError for what no study can be made of."""
    for name in ("nodes", "ranks_per_node", "micro_rows", "buckets"):
        for value in getattr(arguments, name) or ():
            if value < 1:
                raise ScalerError(f"--{name} {value}: 1 is the least")
    for stage in arguments.stages:
        if stage not in range(4):
            raise ScalerError(f"--stages {stage}: ZeRO has the stages 0, 1, 2 and 3")
    for series in arguments.series:
        if series not in SERIES:
            raise ScalerError(f"--series {series}: known are {' and '.join(SERIES)}")
    study_point.check_steps(arguments)


# ---- what to measure


def kinds(arguments: argparse.Namespace, bucket: int, left_out: dict[str, str]) -> list[tuple[int, bool, int]]:
    """Stages, offloads and buckets that go together; what does not is added to `left_out` with the reason."""
    found = []
    buckets = arguments.buckets or (bucket,)
    for stage, offload, size in itertools.product(arguments.stages, OFFLOAD[arguments.offload], buckets):
        if stage == 0 and offload:
            left_out["stage 0 with offload"] = "there is no sharded state to put on the CPU; use stage 1, 2 or 3"
        elif stage == 0 and size != buckets[0]:
            left_out[f"stage 0 with a bucket of {size:,}"] = "stage 0 does not read reduce_bucket_size; one is enough"
        else:
            found.append((stage, offload, size))
    return found


def grid(
    arguments: argparse.Namespace, recipe: Recipe, bucket: int, there: Sequence[Point]
) -> tuple[list[Point], dict[str, str]]:
    """All points that are asked for and possible, and what was left out with the reason.

    Args:
        bucket: of the DeepSpeed configuration.
        there: points of the study so far. Where some are weak, a rank's share of the batch is theirs.
    """
    left_out: dict[str, str] = {}
    of_stages = kinds(arguments, bucket, left_out)
    sizes = list(itertools.product(arguments.nodes, arguments.ranks_per_node))
    share = Fraction(recipe.training.rows, min(nodes * ranks for nodes, ranks in sizes))
    share = next((Fraction(point.rows, point.ranks) for point in there if point.series == "weak"), share)
    points = []
    for series, (nodes, ranks) in itertools.product(arguments.series, sizes):
        rows = recipe.training.rows if series == "strong" else share * nodes * ranks
        for micro_rows in arguments.micro_rows or (None,):
            size = f"{series} on {nodes} x {ranks} ranks" + (
                "" if micro_rows is None else f", micro-batch {micro_rows}"
            )
            try:
                if rows != int(rows):
                    raise ScalerError(f"{float(share):g} rows a rank make no whole batch; change training.rows")
                solved = ds_config.solve_batch(int(rows), nodes * ranks, micro_rows or recipe.training.max_micro_rows)
                points += [
                    Point(series, nodes, ranks, *kind, int(rows), micro_rows or solved.micro_rows) for kind in of_stages
                ]
            except ScalerError as error:
                left_out[size] = str(error)
    if not points:
        raise ScalerError("no point is possible: " + "; ".join(f"{what}: {why}" for what, why in left_out.items()))
    return points, left_out


def configuration_of(content: dict[str, Any], point: Point) -> dict[str, Any]:
    """The user's DeepSpeed configuration with the point's stage, offload and bucket, and batches left to be solved."""
    zero = dict(content.get("zero_optimization", {}))
    zero |= {"stage": point.stage, "reduce_bucket_size": point.bucket}
    if point.offload:
        zero["offload_optimizer"] = {**(zero.get("offload_optimizer") or {}), "device": "cpu"}
    else:
        zero.pop("offload_optimizer", None)
    if not (point.offload and point.stage == 3):
        zero.pop("offload_param", None)
    batches = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
    return {**content, **dict.fromkeys(batches, "auto"), "zero_optimization": zero}


def begin(arguments: argparse.Namespace) -> tuple[IO[str], dict[str, str]]:
    """Make the folder, or go on in it, and add the points asked for; hold it until the returned file is closed.

    Returns: the lock, and what was left out.
    Raises: ScalerError for settings that make no sense, a folder of something else or of another recipe or
        configuration, and one that another process works in.
    """
    study: Path = arguments.folder
    path, points_folder = study / study_folder.RECIPE, study / study_folder.POINTS
    began = path.is_file() and points_folder.is_dir()
    if study.exists() and not began and not (study.is_dir() and _names(study) <= FIRST_WRITTEN):
        raise ScalerError(
            f"{study}: is neither new nor a study (no {path.name} and {points_folder.name}/); name another"
        )
    began_with = command_line.run_recipe(study)
    recipe = command_line.chosen_recipe(argparse.Namespace(**vars(arguments), run_dir=study))[1]
    if began_with is not None:
        _refuse_mixed(study, "recipe", load_recipe(str(began_with)).to_plain(), recipe.to_plain())
    prepared.open_prepared(recipe)
    content = ds_config.read(arguments.deepspeed_config)
    there = [entry.point for entry in study_folder.read(study)] if began else []
    for point in there:
        before = read_json(study_folder.folder_of(study, point) / study_folder.DS_CONFIG)
        _refuse_mixed(study, "DeepSpeed configuration", before, configuration_of(content, point))
    points, left_out = grid(arguments, recipe, settings_of(content, "fp32").bucket, there)
    native = ds_config.bf16_is_native(world.device(world.World()))
    for point in points:  # so that what the recipe refuses is said once, and now
        batch = ds_config.SolvedBatch(point.rows, point.micro_rows, point.accumulation, point.ranks)
        ds_config.resolve(configuration_of(content, point), arguments.deepspeed_config, recipe, batch, native)
    lock = run_folder.lock(study)
    try:
        with naming_full_disk(study):
            if began_with is None:
                write_whole(path, recipe.to_yaml())
            points_folder.mkdir(exist_ok=True)
            for point in points:
                study_folder.write_point(study, point, configuration_of(content, point))
    except BaseException:
        lock.close()
        raise
    return lock, left_out


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def _refuse_mixed(study: Path, what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    for name, (old, new) in settings.differences(before, now).items():
        raise ScalerError(
            f"{study}: its {what} has {name}={old!r}, and not {new!r}; give the same, or name another folder"
        )


# ---- on this machine


def open_points(entries: Sequence[Entry]) -> list[Entry]:
    """Those that are to be measured yet, and may be tried again."""
    return [entry for entry in entries if entry.measured is None and len(entry.failures) < ATTEMPTS]


def threads(study: Path, entries: Sequence[Entry]) -> int:
    """Of each rank of each point, so that points compare: those of OMP_NUM_THREADS, or what the most ranks leave.

    Raises: ScalerError where points were measured with others.
    """
    cores, most = len(os.sched_getaffinity(0)), max(entry.point.ranks for entry in entries)
    given = os.environ.get("OMP_NUM_THREADS", "")
    found = int(given) if given.isdigit() and int(given) else max(1, cores // most)
    for entry in entries:
        before = entry.measured.threads if entry.measured else 0
        if before not in (0, found):
            raise ScalerError(
                f"{study}: {entry.point.name} was measured with {before} threads a rank, and now there would be "
                f"{found}; set OMP_NUM_THREADS={before}, or name another folder"
            )
    if most > cores and not torch.cuda.is_available():
        print(f"note: {most} ranks share {cores} cores, so they are slower than on a core each", flush=True)
    return found


def measure(arguments: argparse.Namespace) -> None:
    """Measure what this machine can, each point until it is measured or has failed too often; say how it went."""
    study: Path = arguments.folder
    most = torch.cuda.device_count() or math.inf
    entries = [entry for entry in study_folder.read(study) if entry.point.nodes == 1 and entry.point.ranks <= most]
    os.environ["OMP_NUM_THREADS"] = str(threads(study, entries))
    (study / study_folder.LOGS).mkdir(exist_ok=True)
    to_do, done, began = open_points(entries), 0, time.monotonic()
    for entry in to_do * ATTEMPTS:  # what has failed comes again after the others
        folder = study_folder.folder_of(study, entry.point)
        tried = len(study_folder.failures(folder))
        if study_folder.read_measured(folder) is not None or tried == ATTEMPTS:
            continue
        log = study / study_folder.LOGS / f"{entry.point.name}-{tried + 1}.txt"
        log.unlink(missing_ok=True)  # of a start that was stopped
        words = [str(study), entry.point.name, f"--steps={arguments.steps}", f"--warmup={arguments.warmup}"]
        status = local_ranks.start(entry.point.ranks, words, log)
        found = study_folder.read_measured(folder)
        if found is None:
            study_folder.note_failure(study, entry.point, local_ranks.reason_of(log, status))
        done += found is not None or tried + 1 == ATTEMPTS
        left = (time.monotonic() - began) / max(done, 1) * (len(to_do) - done)
        came = (
            f"{study_folder.step_seconds(found):.4g} s a step"
            if found
            else f"failed: {local_ranks.reason_of(log, status)}"
        )
        print(f"{done}/{len(to_do)} {entry.point.name}: {came}; {metrics.duration(left)} left", flush=True)
    conclude(study)


def conclude(study: Path) -> None:
    """Say how many points are measured, and which have failed; status 75 if some have."""
    entries = study_folder.read(study)
    failed = [entry for entry in entries if entry.measured is None and len(entry.failures) >= ATTEMPTS]
    measured = sum(entry.measured is not None for entry in entries)
    for entry in failed:
        print(f"failed: {entry.point.name}: {entry.failures[-1]}", flush=True)
    print(f"{study}: {measured} measured, {len(failed)} failed, {len(open_points(entries))} left", flush=True)
    if failed:
        raise SystemExit(EXIT_TRY_AGAIN)


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    gpus = torch.cuda.device_count()
    arguments.ranks_per_node = arguments.ranks_per_node or (gpus or 1,)
    here = not arguments.define_only and max(arguments.nodes) == 1
    if here and 0 < gpus < max(arguments.ranks_per_node):
        raise ScalerError(f"--ranks_per_node {max(arguments.ranks_per_node)}: this machine has {gpus} GPUs, one a rank")
    lock, left_out = begin(arguments)
    with closing(lock):
        for what, why in left_out.items():
            print(f"left out: {what}: {why}", file=sys.stderr, flush=True)
        if here:
            measure(arguments)
            return
        to_do = open_points(study_folder.read(arguments.folder))
        print(f"{arguments.folder}: {len(to_do)} points to measure; on nodes of SLURM: {SCRIPT}", file=sys.stderr)
        for entry in to_do:
            print(entry.point.name)


if __name__ == "__main__":
    main()

"""Choose the points of a scaling study and write them into its folder."""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import IO, Any

from scaler.config import command_line, typed
from scaler.config import deepspeed as ds_config
from scaler.config import recipe as recipes
from scaler.config.batch import SolvedBatch, solve_batch
from scaler.config.recipe import Recipe
from scaler.core import folders
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import read_json, write_whole
from scaler.core.text import quantity
from scaler.data import prepared
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.planning.memory import Sharding
from scaler.studies import folder as study_folder
from scaler.studies.folder import Point

OFFLOAD = {"no": (False,), "yes": (True,), "both": (False, True)}


def grid(
    arguments: argparse.Namespace, recipe: Recipe, bucket: int, existing: Sequence[Point]
) -> tuple[list[Point], dict[str, str]]:
    """Return all possible points of the requested grid, and what was left out with the reason.

    Args:
        bucket: reduce_bucket_size of the DeepSpeed configuration, in elements.
        existing: points of the study so far. New weak points have as many rows per rank as existing ones.
    """
    left_out: dict[str, str] = {}
    kinds, buckets = [], arguments.buckets or (bucket,)
    for stage, offload, elements in itertools.product(arguments.stages, OFFLOAD[arguments.offload], buckets):
        if stage == 0 and offload:
            left_out["stage 0 with offload"] = "there is no sharded state to put on the CPU; use stage 1, 2 or 3"
        elif stage == 0 and elements != buckets[0]:
            left_out[f"stage 0 with a bucket of {elements:,}"] = (
                "stage 0 does not read reduce_bucket_size; one is enough"
            )
        else:
            kinds.append((stage, offload, elements))
    sizes = list(itertools.product(arguments.nodes, arguments.ranks_per_node))
    per_rank = Fraction(recipe.training.rows, min(nodes * ranks for nodes, ranks in sizes))
    per_rank = next((Fraction(point.rows, point.ranks) for point in existing if point.series == "weak"), per_rank)
    points = []
    for series, (nodes, ranks) in itertools.product(arguments.series, sizes):
        rows = recipe.training.rows if series == "strong" else per_rank * nodes * ranks
        for micro_rows in arguments.micro_rows or (None,):
            size = f"{series} on {nodes} x {quantity(ranks, 'rank')}"
            size += "" if micro_rows is None else f", micro-batch {micro_rows}"
            try:
                if rows != int(rows):
                    raise ScalerError(f"{float(per_rank):g} rows per rank make no whole batch; change training.rows")
                solved = solve_batch(int(rows), nodes * ranks, micro_rows or recipe.training.max_micro_rows)
                points += [
                    Point(series, nodes, ranks, *kind, int(rows), micro_rows or solved.micro_rows) for kind in kinds
                ]
            except ScalerError as error:
                left_out[size] = str(error)
    if not points:
        raise ScalerError("no point is possible: " + "; ".join(f"{what}: {why}" for what, why in left_out.items()))
    return points, left_out


def configuration_of(content: dict[str, Any], point: Point) -> dict[str, Any]:
    """Return the user's DeepSpeed configuration with stage, offload and bucket of the point, and batches "auto"."""
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
    """Make the folder or continue in it, add the requested points, and hold it until the returned file is closed.

    Returns: the lock, and what was left out.

    Raises: ScalerError for impossible settings, for a folder of something else or of another recipe or configuration,
        and for one that another process works in.
    """
    study: Path = arguments.folder
    path, points_folder = study / study_folder.RECIPE, study / study_folder.POINTS
    began = path.is_file() and points_folder.is_dir()
    folders.claim(study, (path.name, points_folder.name), "a study", (path.name,))
    began_with = command_line.run_recipe(study)
    recipe = command_line.chosen_recipe(argparse.Namespace(**vars(arguments), run_dir=study))[1]
    if began_with is not None:
        before = recipes.load(str(began_with)).to_plain()
        _refuse_mixed(study, "recipe", recipes.compared(before), recipes.compared(recipe.to_plain()))
    prepared.open_prepared(recipe)
    content = ds_config.read(arguments.deepspeed_config)
    existing = [entry.point for entry in study_folder.read(study)] if began else []
    for point in existing:
        before = read_json(study_folder.folder_of(study, point) / study_folder.DS_CONFIG)
        _refuse_mixed(study, "DeepSpeed configuration", before, configuration_of(content, point))
    points, left_out = grid(arguments, recipe, Sharding.from_ds_config(content, "fp32").bucket, existing)
    native = devices.bf16_is_native(devices.device(World()))
    for point in points:  # so that invalid combinations are refused once, and now
        batch = SolvedBatch(point.rows, point.micro_rows, point.accumulation, point.ranks)
        wanted, untested = configuration_of(content, point), arguments.allow_untested_ds_keys
        ds_config.resolve(wanted, arguments.deepspeed_config, recipe, batch, native, untested)
    lock = folders.lock(study)
    try:
        with explain_disk_errors(study):
            if began_with is None:
                write_whole(path, recipe.to_yaml())
            points_folder.mkdir(exist_ok=True)
            for point in points:
                study_folder.write_point(study, point, configuration_of(content, point))
    except BaseException:
        lock.close()
        raise
    return lock, left_out


def _refuse_mixed(study: Path, what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    typed.refuse_differences(f"{study}: its {what} has", before, now, "give the same, or name another folder")

"""Studies whose answers are known: points with measurements that are made up."""

import contextlib
import dataclasses
from pathlib import Path

import pytest
from small_data import write_recipe

from scaler.planning import workload as planning_workload
from scaler.planning.hardware import Hardware
from scaler.studies import folder as study_folder
from scaler.studies.folder import Measured, Point

ROWS, BUCKET, TOKENS = 64, 1_000_000, 30.0
ON = Hardware(
    *("a test", 8, 1e12, {"fp32": 1e10}, 1e10, 1e9, 1e8),
    micro_batch_overhead_seconds=1e-3,
    measured=("flops", "inside"),
)
TRAINING = 12 * 12 * TOKENS  # tokens of the recipe's steps


@contextlib.contextmanager
def workload_once():
    """All these studies have one recipe in fp32, whose activations take seconds to measure."""
    real, made = planning_workload.workload, []

    def workload(recipe, width, on_cpu):
        assert width == 4
        if not made:
            made.append(real(recipe, width, on_cpu))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning_workload, "workload", workload)
        yield


def new_study(folder: Path) -> Path:
    """A study without points."""
    (folder / "points").mkdir(parents=True)
    write_recipe(folder, "text.txt", file="recipe.yaml", name="tiny")
    return folder


def ask(study, ranks=1, stage=2, series="strong", micro=8, nodes=None, rows=None, bucket=BUCKET) -> Point:
    """A point with a rank on each node."""
    nodes = ranks if nodes is None else nodes
    rows = rows or (ROWS if series == "strong" else 8 * ranks)
    point = Point(series, nodes, ranks // nodes, stage, False, bucket, rows, micro)
    config = {"zero_optimization": {"stage": stage, "reduce_bucket_size": bucket, "overlap_comm": False}}
    study_folder.write_point(study, point, config)
    return point


def measure(study, own, communication=0.0, other=0.0, slow=None, peak=1_000_000, changes=None, **where) -> Point:
    """A point whose every step is own work, waiting for the slowest rank, communication and the rest.

    `slow`: the rank whose own work takes so many times as long.
    """
    point = ask(study, **where)
    times = [own * ((slow or {}).get(rank, 1.0)) for rank in range(point.ranks)]
    wait = [max(times) - time for time in times]
    seconds = max(times) + communication + other
    hosts = tuple(f"n{rank // point.ranks_per_node}" for rank in range(point.ranks))
    measured = Measured(
        hosts,
        2,
        (tuple(share * seconds for share in (0.9, 0.95, 1.0, 1.2, 1.5)),) * point.ranks,
        tuple((time,) * 5 for time in times),
        tuple(communication + waited for waited in wait),
        tuple(peak + rank for rank in range(point.ranks)),
        TOKENS,
        "fp32",
        {"torch": "2.13.0+cpu", "deepspeed": "0.19.8"},
        "c0ffee",
        "2026-01-02T03:04:05+0000",
        "cpu",
        1,
    )
    study_folder.write_measured(study, point, dataclasses.replace(measured, **(changes or {})))
    return point


def fail(study, reason, **where) -> Point:
    point = ask(study, **where)
    study_folder.note_failure(study, point, reason)
    return point

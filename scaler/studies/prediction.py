"""Predict the points of a scaling study from what one node is known to do."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler.config.batch import SolvedBatch
from scaler.config.deepspeed import WEIGHT_BYTES
from scaler.config.recipe import Recipe
from scaler.core.files import read_json
from scaler.planning import step_time
from scaler.planning.hardware import Hardware
from scaler.planning.memory import Sharding
from scaler.planning.step_time import Workload
from scaler.studies import folder as study_folder
from scaler.studies.folder import Entry, Measured, Point


@dataclass(frozen=True)
class Prediction:
    """The predicted points of a study, and what they were predicted with.

    Attributes:
        hardware: as given; the number of devices of a node is each point's own.
        works: the training by precision.
        points: the points that can be predicted.
        problems: a sentence for each reason why others cannot.
    """

    hardware: Hardware
    works: dict[str, Workload]
    points: dict[Point, step_time.PredictedPoint]
    problems: tuple[str, ...]


def predict(study: Path, entries: Sequence[Entry], recipe: Recipe, hardware: Hardware) -> Prediction:
    """Predict all points whose precision the hardware has a figure for.

    Points without measurements take the precision and the device that most measured points have.

    Raises: ScalerError for a DeepSpeed configuration that cannot be read.
    """
    from scaler.planning.workload import workload  # seconds for torch, which counts the model's parameters

    known = [entry.measured for entry in entries if entry.measured]
    works: dict[str, Workload] = {}
    points: dict[Point, step_time.PredictedPoint] = {}
    missing: set[str] = set()
    for entry in entries:
        point = entry.point
        precision = entry.measured.precision if entry.measured else most_common(known, "precision")
        if precision not in hardware.flops:
            missing.add(precision)
            continue
        on_cpu = (entry.measured.device if entry.measured else most_common(known, "device")) == "cpu"
        if precision not in works:
            works[precision] = workload(recipe, WEIGHT_BYTES[precision], on_cpu)
        content = read_json(study_folder.folder_of(study, point) / study_folder.DS_CONFIG)
        sharding = dataclasses.replace(
            Sharding.from_ds_config(content, precision),
            stage=point.stage,
            offload=point.offload,
            bucket=point.bucket,
            on_cpu=on_cpu,
        )
        batch = SolvedBatch(point.rows, point.micro_rows, point.accumulation, point.ranks)
        nodes = node_of_point(hardware, point)
        points[point] = step_time.predict(works[precision], sharding, batch, point.nodes, nodes)
    figures = ", ".join(hardware.flops) or "none"
    problems = [f"hardware {hardware.name} has no figure for {name}, only {figures}" for name in sorted(missing)]
    return Prediction(hardware, works, points, tuple(problems))


def node_of_point(hardware: Hardware, point: Point) -> Hardware:
    """Return the same node with as many devices as the point has ranks on each."""
    return dataclasses.replace(hardware, devices=point.ranks_per_node)


def most_common(known: Sequence[Measured], name: str) -> Any:
    """Return the value of a field that most measurements have."""
    values = [getattr(measured, name) for measured in known]
    return max(values, key=values.count)

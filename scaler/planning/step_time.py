"""Predict time and memory of a training on any number of nodes, from the speed of one node. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scaler.config.batch import SolvedBatch
from scaler.config.deepspeed import FP32_BYTES
from scaler.planning.communication import collectives_of_step, gathers_of_weights
from scaler.planning.communication import seconds as collective_seconds
from scaler.planning.hardware import Hardware
from scaler.planning.memory import Activations, Footprint, Layout, Sharding, memory_of_step

# Bytes that AdamW moves for a weight: weight, gradient and both moments read, all but the gradient written, in fp32.
OPTIMIZER_TRAFFIC = 28
BACKWARD_FRACTION = 2 / 3  # of the computation (Kaplan et al. 2020, section 2.1), beside which gradients can travel
# Efficiency below which the plan advises against more nodes. Our choice: a fifth of the node-hours is lost there.
MIN_EFFICIENCY = 0.8
PARTS = {  # of a step, by the name in `StepTime`, as a reason why efficiency falls
    "compute": "too little computation for each rank",
    "micro_batches": "the fixed overhead of each micro-batch",
    "network": "communication between ranks",
    "optimizer": "the update of the weights, which more ranks do not speed up",
    "stragglers": "waiting for the slowest rank",
}


@dataclass(frozen=True)
class Workload:
    """A training, independent of the hardware.

    Attributes:
        layout: the parameters.
        activations: bytes of a micro-batch, by its rows.
        flops_per_row: operations of a row's forward and backward pass.
        seq_len: tokens of a row.
        rows, steps: rows of the global batch; steps of the training.
        states: fp32 numbers that the optimizer keeps for a weight.
    """

    layout: Layout
    activations: Callable[[int], Activations]
    flops_per_row: float
    seq_len: int
    rows: int
    steps: int
    states: int = 2


@dataclass(frozen=True)
class StepTime:
    """Seconds of an optimizer step, by part.

    Attributes:
        compute: matrix multiplications and the operations between them.
        micro_batches: the fixed overhead of all micro-batches.
        network: communication that the computation waits for.
        optimizer: the update of the weights.
        stragglers: waiting for the slowest rank.
    """

    compute: float
    micro_batches: float
    network: float
    optimizer: float
    stragglers: float

    @property
    def seconds(self) -> float:
        """Return the seconds of the whole step."""
        return self.compute + self.micro_batches + self.network + self.optimizer + self.stragglers

    def as_measured(self) -> dict[str, float]:
        """Return the seconds by part, under the names that the parts of a measured step have."""
        return {
            "own work": self.compute,
            "micro-batches": self.micro_batches,
            "optimizer": self.optimizer,
            "stragglers": self.stragglers,
            "communication": self.network,
        }


@dataclass(frozen=True)
class PredictedPoint:
    """A prediction of a training on some number of nodes.

    Attributes:
        batch: the global batch, divided among ranks and micro-batches.
        sharding: how the engine runs it.
        step: seconds of a step.
        memory: bytes of a rank.
        fits: whether the memory of a device holds it.
    """

    nodes: int
    batch: SolvedBatch
    sharding: Sharding
    step: StepTime
    memory: Footprint
    fits: bool

    @property
    def rows_per_second(self) -> float:
        """Return the rows that all ranks train in a second."""
        return self.batch.rows / self.step.seconds


def time_of_step(work: Workload, sharding: Sharding, batch: SolvedBatch, nodes: int, hardware: Hardware) -> StepTime:
    """Predict the seconds of an optimizer step.

    Computation, communication and update follow each other, as in DeepSpeed. With overlap_comm the gradients of
    stages 2 and 3 travel during the backward pass, and only what outlasts it is waited for. The slowest of n ranks is
    late by sigma * sqrt(2 ln n), an upper bound of the expected maximum of n normal variables.
    """
    sharding = sharding.of_batch(batch, work.states)
    flops = hardware.flops[sharding.precision]
    compute = batch.micro_rows * batch.accumulation * work.flops_per_row / flops
    bandwidth = hardware.bandwidth(nodes)
    hidden = network = 0.0
    for collective in collectives_of_step(work.layout, sharding):
        took = collective_seconds(collective, sharding.ranks, bandwidth, hardware.latency, sharding.on_cpu)
        hidden, network = (hidden + took, network) if collective.hidden else (hidden, network + took)
    network += max(0.0, hidden - BACKWARD_FRACTION * compute)
    updated = work.layout.trained / (sharding.ranks if sharding.stage else 1)
    optimizer = updated * (OPTIMIZER_TRAFFIC + sharding.width) / hardware.memory_bandwidth
    if sharding.stage == 3 and sharding.offload_weights and not sharding.on_cpu:
        passes = batch.accumulation * gathers_of_weights(work.layout)
        network += passes * sharding.width * work.layout.all / sharding.ranks / hardware.host_link
    if sharding.offload and not sharding.on_cpu:
        optimizer += updated * (FP32_BYTES + sharding.width) / hardware.host_link
    late = hardware.spread * math.sqrt(2 * math.log(sharding.ranks)) * compute
    return StepTime(compute, batch.accumulation * hardware.micro_batch_overhead_seconds, network, optimizer, late)


def predict(work: Workload, sharding: Sharding, batch: SolvedBatch, nodes: int, hardware: Hardware) -> PredictedPoint:
    """Predict time and memory of a training on `nodes` nodes."""
    sharding = sharding.of_batch(batch, work.states)
    memory = memory_of_step(work.layout, work.activations(batch.micro_rows), sharding)
    step = time_of_step(work, sharding, batch, nodes, hardware)
    return PredictedPoint(nodes, batch, sharding, step, memory, memory.peak <= hardware.memory_bytes)


def fastest(points: Iterable[PredictedPoint]) -> PredictedPoint | None:
    """Return the fastest point that fits, None if none does; of equals the one with the fewest micro-batches."""
    return min(
        (p for p in points if p.fits), key=lambda p: (round(p.step.seconds, 9), p.batch.accumulation), default=None
    )


def knee(points: list[PredictedPoint]) -> tuple[PredictedPoint, str] | None:
    """Return the first point whose efficiency is below `MIN_EFFICIENCY`, and the part of the step that costs most.

    Efficiency is rows a second and node, relative to those of the first point. None if it never falls below.
    """
    first = points[0]
    for point in points[1:]:
        if point.rows_per_second / point.nodes < MIN_EFFICIENCY * first.rows_per_second / first.nodes:
            scale = first.nodes / point.nodes * point.batch.rows / first.batch.rows
            lost = {part: getattr(point.step, part) - scale * getattr(first.step, part) for part in PARTS}
            return point, max(lost, key=lambda part: lost[part])
    return None

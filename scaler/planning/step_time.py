"""Time and memory of a training on any number of nodes, from what one node is known to do. Needs no DeepSpeed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from scaler.config import deepspeed as ds_config
from scaler.config.batch import SolvedBatch
from scaler.planning import communication
from scaler.planning import memory as footprint
from scaler.planning.hardware import Hardware
from scaler.planning.memory import Activations, Footprint, Layout, Sharding

# Bytes that AdamW moves for a weight: weight, gradient and both moments read, all but the gradient written, in fp32.
OPTIMIZER_TRAFFIC = 28
BACKWARD_SHARE = 2 / 3  # of the computation (Kaplan et al. 2020, section 2.1), beside which gradients can travel
PAYS = 0.8  # efficiency under which more nodes do not pay


@dataclass(frozen=True)
class Workload:
    """A training, whatever it runs on.

    Attributes:
        layout: of the parameters.
        activations: of a micro-batch, by its rows.
        flops_per_row: of a row's forward and backward pass.
        seq_len: tokens of a row.
        rows, steps: of the global batch; of the training.
        states: numbers that the optimizer keeps for a weight.
    """

    layout: Layout
    activations: Callable[[int], Activations]
    flops_per_row: float
    seq_len: int
    rows: int
    steps: int
    states: int = 2


@dataclass(frozen=True)
class Settings:
    """How the engine runs it.

    Attributes:
        stage, offload, offload_weights: of ZeRO; what of the optimizer, and of stage 3's weights, the host keeps.
        precision: "bf16" or "fp32".
        bucket, overlap: reduce_bucket_size in numbers; overlap_comm.
        on_cpu: the ranks are processes on CPUs.
        to_owners: not use_multi_rank_bucket_allreduce.
        reduce_scatter: DeepSpeed's.
    """

    stage: int
    offload: bool
    precision: str
    bucket: int
    overlap: bool
    on_cpu: bool = False
    to_owners: bool = False
    offload_weights: bool = False
    reduce_scatter: bool = True

    def sharding(self, batch: SolvedBatch, states: int) -> Sharding:
        """The same for one world size."""
        width = ds_config.WEIGHT_BYTES[self.precision]
        buckets = 2 if self.overlap else 1
        return Sharding(
            self.stage,
            batch.ranks,
            batch.accumulation,
            width,
            self.bucket,
            buckets,
            self.offload,
            self.offload_weights and self.stage == 3,
            states,
            self.on_cpu,
            self.to_owners,
            self.reduce_scatter,
        )


@dataclass(frozen=True)
class Step:
    """Seconds of an optimizer step by part.

    Attributes:
        compute: matrix multiplications and all that goes with them.
        micro_batches: what each micro-batch costs however small it is.
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
        """Of the whole step."""
        return self.compute + self.micro_batches + self.network + self.optimizer + self.stragglers


@dataclass(frozen=True)
class Point:
    """A training on so many nodes.

    Attributes:
        batch: as taken apart.
        settings: of the engine.
        step: how long it takes.
        memory: of a rank.
        fits: the memory of its device holds it.
    """

    nodes: int
    batch: SolvedBatch
    settings: Settings
    step: Step
    memory: Footprint
    fits: bool

    @property
    def rows_per_second(self) -> float:
        """Of all ranks."""
        return self.batch.rows / self.step.seconds


def step_of(work: Workload, settings: Settings, batch: SolvedBatch, nodes: int, hardware: Hardware) -> Step:
    """Predict an optimizer step.

    Computation, communication and update come one after the other, as DeepSpeed does them, unless overlap_comm lets
    gradients of stages 2 and 3 travel during the backward pass; then only what outlasts that is waited for. The slowest
    of n ranks is late by sigma * sqrt(2 ln n) (the expected maximum of n normal variables, from above).
    """
    how = settings.sharding(batch, work.states)
    flops = hardware.flops[settings.precision]
    compute = batch.micro_rows * batch.accumulation * work.flops_per_row / flops
    bandwidth = hardware.bandwidth(nodes)
    hidden = network = 0.0
    for collective in communication.of_step(work.layout, how):
        took = communication.seconds(collective, how.ranks, bandwidth, hardware.latency, settings.on_cpu)
        hidden, network = (hidden + took, network) if collective.hidden else (hidden, network + took)
    network += max(0.0, hidden - BACKWARD_SHARE * compute)
    updated = work.layout.trained / (how.ranks if settings.stage else 1)
    optimizer = updated * (OPTIMIZER_TRAFFIC + how.width) / hardware.memory_bandwidth
    if how.offload_weights and not settings.on_cpu:
        passes = batch.accumulation * communication.gathers_of_weights(work.layout)
        network += passes * how.width * work.layout.all / how.ranks / hardware.host_link
    if settings.offload and not settings.on_cpu:
        optimizer += updated * (ds_config.FP32_BYTES + how.width) / hardware.host_link
    late = hardware.spread * math.sqrt(2 * math.log(how.ranks)) * compute
    return Step(compute, batch.accumulation * hardware.micro_batch_overhead_seconds, network, optimizer, late)


def point(work: Workload, settings: Settings, batch: SolvedBatch, nodes: int, hardware: Hardware) -> Point:
    """Predict a training on so many nodes with these settings."""
    memory = footprint.of_step(work.layout, work.activations(batch.micro_rows), settings.sharding(batch, work.states))
    fits = memory.peak <= hardware.memory_bytes
    return Point(nodes, batch, settings, step_of(work, settings, batch, nodes, hardware), memory, fits)


def best(points: Iterable[Point]) -> Point | None:
    """The fastest that fits; of equals the one with the fewest micro-batches."""
    return min(
        (p for p in points if p.fits), key=lambda p: (round(p.step.seconds, 9), p.batch.accumulation), default=None
    )


def knee(points: list[Point]) -> tuple[Point, str] | None:
    """The first number of nodes that does not pay any more, and the part of the step that takes most of the loss.

    It does not pay where rows a second and node fall below `PAYS` of those on the fewest nodes.
    """
    first = points[0]
    for here in points[1:]:
        if here.rows_per_second / here.nodes < PAYS * first.rows_per_second / first.nodes:
            scale = first.nodes / here.nodes * here.batch.rows / first.batch.rows
            lost = {part: getattr(here.step, part) - scale * getattr(first.step, part) for part in vars(here.step)}
            return here, max(lost, key=lambda part: lost[part])
    return None

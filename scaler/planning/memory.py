"""Predict the memory that one rank needs for a step, part by part, as DeepSpeed 0.19 takes it. Needs no torch.

ZeRO's paper (Rajbhandari et al. 2020, section 3) gives the shards of weights, gradients and optimizer state. The rest
was read in DeepSpeed's source and measured (docs/design/cost-model.md). From stage 1 on there is an fp32 copy of
all trained weights, even in fp32. At stage 2 a rank keeps the gradients of every parameter that its shard touches. At
stage 3 the whole weights are there from the first layer's forward pass to the last layer's backward pass.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

from scaler.config.batch import SolvedBatch
from scaler.config.deepspeed import (
    BUCKET,
    FP32_BYTES,
    FP64_BYTES,
    GATHERED_AT_ONCE,
    PERSISTENT,
    WEIGHT_BYTES,
    straight_to_owners,
    zero_stage,
)


@dataclass(frozen=True)
class Layout:
    """The parameters as DeepSpeed groups them.

    Attributes:
        groups: the sizes of the parameters in each group of the optimizer, in order.
        frozen: numbers that are not trained.
    """

    groups: tuple[tuple[int, ...], ...]
    frozen: int = 0

    @property
    def trained(self) -> int:
        """Return how many numbers are trained."""
        return sum(map(sum, self.groups))

    @property
    def all(self) -> int:
        """Return how many numbers there are, trained and frozen."""
        return self.trained + self.frozen

    @property
    def largest(self) -> int:
        """Return the size of the largest parameter that is trained."""
        return max(map(max, filter(None, self.groups)), default=0)

    def padded(self, ranks: int) -> int:
        """Return the size of all groups when each is padded to equal shards of an even size."""
        return sum(_even_shard(group, ranks) * ranks for group in self.groups)

    def largest_touched(self, ranks: int) -> int:
        """Return the total size of the parameters that a rank's shards touch, of the rank with the most."""
        touched = [0] * ranks
        for group in self.groups:
            part, begin = _even_shard(group, ranks), 0
            for size in group:
                for rank in range(begin // part, (begin + size - 1) // part + 1):
                    touched[rank] += size
                begin += size
        return max(touched)

    def largest_slice(self, ranks: int) -> int:
        """Return how much of the largest parameter one rank's shard holds at most."""
        return max((min(max(group), _even_shard(group, ranks)) for group in self.groups if group), default=0)

    def largest_group_part(self, ranks: int) -> int:
        """Return the size of a rank's part of the largest group."""
        return max(ceil(sum(group) / ranks) for group in self.groups)

    def persistent(self) -> int:
        """Return the numbers that stay whole on every rank at stage 3; frozen parameters count as large."""
        return sum(size for group in self.groups for size in group if size <= PERSISTENT)

    def checkpoint_bytes(self, states: int) -> int:
        """Return the bytes of a checkpoint: fp32 weights, and `states` fp32 numbers for each that is trained."""
        return FP32_BYTES * (self.all + states * self.trained)


def _even_shard(group: Sequence[int], ranks: int) -> int:
    return ceil(sum(group) / (2 * ranks)) * 2


@dataclass(frozen=True)
class Activations:
    """Bytes of a forward and backward pass beside the weights, as plain PyTorch takes them for one micro-batch.

    Attributes:
        forward: at the end of the forward pass, with all that is saved for the backward pass.
        with_gradients: at the peak, with the gradients made so far.
        without_gradients: at the peak, if each gradient were freed as soon as it is complete.
    """

    forward: int
    with_gradients: int
    without_gradients: int


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed runs an optimizer step and shards it among ranks.

    Attributes:
        stage: the stage of ZeRO.
        precision: "bf16" or "fp32", of weights and gradients.
        bucket: reduce_bucket_size, in numbers.
        overlap: overlap_comm: gradients travel during the backward pass.
        offload: the optimizer's state is in the host's memory.
        offload_weights: at stage 3, a rank's shard of the weights is there as well.
        to_owners: use_multi_rank_bucket_allreduce is false: each gradient is reduced to the rank that updates its
            weight.
        reduce_scatter: DeepSpeed's key; false asks for all-reduces at stages 1 and 2.
        on_cpu: the ranks are processes on CPUs, connected by gloo, whose memory counts once it is written to.
        ranks, accumulation: world size; micro-batches of a step.
        states: fp32 numbers that the optimizer keeps for each weight.
    """

    stage: int
    precision: str
    bucket: int = BUCKET
    overlap: bool = False
    offload: bool = False
    offload_weights: bool = False
    to_owners: bool = False
    reduce_scatter: bool = True
    on_cpu: bool = False
    ranks: int = 1
    accumulation: int = 1
    states: int = 2

    @classmethod
    def from_ds_config(cls, content: dict[str, Any], precision: str) -> Sharding:
        """Return what a DeepSpeed configuration asks for, with the defaults of DeepSpeed for "auto"."""
        zero = content.get("zero_optimization", {})
        bucket, overlap = zero.get("reduce_bucket_size", "auto"), zero.get("overlap_comm")
        stage, scatter = zero_stage(content), bool(zero.get("reduce_scatter", True))
        return cls(
            stage,
            precision,
            bucket=BUCKET if bucket == "auto" else int(bucket),
            overlap=stage == 3 if overlap is None else bool(overlap),
            offload=(zero.get("offload_optimizer") or {}).get("device") == "cpu",
            offload_weights=(zero.get("offload_param") or {}).get("device") == "cpu",
            to_owners=scatter and zero.get("use_multi_rank_bucket_allreduce", True) is False,
            reduce_scatter=scatter,
        )

    def of_batch(self, batch: SolvedBatch, states: int) -> Sharding:
        """Return the same for a batch's ranks and accumulation, and an optimizer's states."""
        return dataclasses.replace(self, ranks=batch.ranks, accumulation=batch.accumulation, states=states)

    @property
    def width(self) -> int:
        """Return the bytes of a weight and of a gradient."""
        return WEIGHT_BYTES[self.precision]

    @property
    def copy_width(self) -> int:
        """Return the bytes of a number's copy in fp32; 0 where it is fp32 already."""
        return FP32_BYTES if self.width < FP32_BYTES else 0

    def bucket_bytes(self, trained: int) -> int:
        """Return the bytes of a bucket of the gradients of `trained` weights; a CPU's is no larger than those."""
        return self.width * (min(self.bucket, trained) if self.on_cpu else self.bucket)

    def sends_directly(self, trained: int) -> bool:
        """Return whether our direct collectives send the gradients of `trained` weights to their owners."""
        return self.on_cpu and self.reduce_scatter and straight_to_owners(self.ranks, trained, self.bucket)


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank.

    Attributes:
        kept: what is there all the time, by part.
        backward: beside that, at the peak of the backward pass.
        step: beside that, at the peak of the optimizer step.
        host: what is in the host's memory for a rank whose device has its own, by part.
    """

    kept: dict[str, int]
    backward: int
    step: int
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """Return the bytes on the device at the peak."""
        return sum(self.kept.values()) + max(self.backward, self.step)


def memory_of_step(layout: Layout, activations: Activations, sharding: Sharding) -> Footprint:
    """Return the memory of a rank after the first steps, when all buffers exist."""
    of_stage = (_replicated, _stage_1_or_2, _stage_1_or_2, _stage_3)[sharding.stage]
    return of_stage(layout, activations, sharding)


def _replicated(layout: Layout, activations: Activations, sharding: Sharding) -> Footprint:
    width, trained = sharding.width, layout.trained
    kept = {"weights": width * layout.all, "optimizer": FP32_BYTES * sharding.states * trained}
    if sharding.copy_width:
        kept["fp32 weights"] = FP32_BYTES * trained
    gradients = width * trained
    laid_out = gradients + width * min(trained, GATHERED_AT_ONCE)
    # in the later micro-batches the gradients so far are there from the beginning
    later = gradients + activations.without_gradients if sharding.accumulation > 1 else 0
    backward = max(activations.with_gradients, later, laid_out)
    return Footprint(kept, backward, gradients + sharding.copy_width * trained, {})


def _stage_1_or_2(layout: Layout, activations: Activations, sharding: Sharding) -> Footprint:
    width, ranks, accumulated = sharding.width, sharding.ranks, sharding.accumulation > 1
    trained, padded, part = layout.trained, layout.padded(ranks), layout.largest_slice(ranks)
    state = {"fp32 weights": FP32_BYTES * padded // ranks, "optimizer": FP32_BYTES * sharding.states * padded // ranks}
    kept = {"weights": width * (padded + layout.frozen)}
    host: dict[str, int] = {}
    mine = width * layout.largest_touched(ranks)
    bucket = sharding.bucket_bytes(trained) * (2 if sharding.overlap else 1)
    # a bucket's sum is a copy of it; gradients sent directly to their owners need room for the other ranks' parts
    copied = (ranks - 1) * min(sharding.bucket, part) if sharding.sends_directly(trained) else sharding.bucket
    reduced = width * min(copied + part, trained)
    largest = width * layout.largest
    if sharding.offload:
        host = {
            **state,
            "fp32 gradients": FP32_BYTES * padded // ranks,
            "weights on their way": width * padded // ranks + largest,
            "gradients": mine if accumulated and sharding.stage == 2 else 0,
        }
        kept["weights on their way"] = largest
        if sharding.on_cpu:  # all in the same memory
            kept = {**host, "weights": kept["weights"], "weights on their way": host["weights on their way"] + largest}
            host = {}
        before, step = 0, 0
        backward = bucket + max(reduced, (FP32_BYTES + FP64_BYTES) * part)
    else:
        kept |= state
        before = mine if accumulated else 0
        backward = before + bucket + max(reduced, mine)
        step = mine + (width + sharding.copy_width) * layout.largest_group_part(ranks)
    if sharding.stage == 1 and accumulated:  # nothing is reduced before the last micro-batch
        before = width * trained
        backward = max(backward, before + (bucket if not sharding.on_cpu else 0) + reduced)
        during = before + activations.without_gradients
    else:
        during = before + activations.with_gradients
    return Footprint(kept, max(during, backward), step, host)


def _stage_3(layout: Layout, activations: Activations, sharding: Sharding) -> Footprint:
    width, ranks, trained = sharding.width, sharding.ranks, layout.trained
    part = ceil(trained / ranks)
    kept = {"small weights": width * layout.persistent(), "bucket": sharding.bucket_bytes(trained)}
    weights = {"weights": width * ceil(layout.all / ranks)}
    state = {"gradients": width * part, "fp32 weights": FP32_BYTES * part}
    state["optimizer"] = FP32_BYTES * sharding.states * part
    if sharding.offload:
        state["fp32 gradients"] = FP32_BYTES * part
    host: dict[str, int] = {}
    for parts, moved in ((weights, sharding.offload_weights), (state, sharding.offload)):
        (host if moved and not sharding.on_cpu else kept).update(parts)
    gathered = width * (layout.all - layout.persistent())
    # a gradient moves to the bucket once it is complete, so the peak is at the beginning of the backward pass, or at
    # its end, when tied embeddings have a gradient of each use; a reduce-scatter also copies its input
    copied = width * min(sharding.bucket, trained) if ranks > 1 else 0
    backward = max(gathered + activations.forward, 3 * width * layout.largest) + copied
    updated = (width + sharding.copy_width) * layout.largest_group_part(ranks)
    step = max(FP64_BYTES * layout.largest_slice(ranks), updated)
    return Footprint(kept, backward, step, host)


def interpolate(rows: int, *measured: tuple[int, Activations]) -> Activations:
    """Return the activations of a micro-batch of `rows` rows, on the line through two that were measured."""
    (few, least), (many, most) = measured
    fraction = (rows - few) / (many - few)
    pairs = zip(vars(least).values(), vars(most).values(), strict=True)
    return Activations(*(round(low + fraction * (high - low)) for low, high in pairs))

"""Memory that one rank needs for a step, part by part, as DeepSpeed 0.19 really takes it. Pure.

ZeRO's paper (Rajbhandari et al. 2020, section 3) has the shares of weights, gradients and optimizer state. What is more
was read in DeepSpeed's source and measured (docs/design/cost-model.md): from stage 1 on an fp32 copy of what trains
also in fp32; at stage 2 the gradients of whole parameters that a rank's part begins or ends in; at stage 3 the whole
weights from the first layer's forward to the last one's backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from scaler.config.deepspeed import FP32_BYTES, FP64_BYTES, GATHERED_AT_ONCE, PERSISTENT, straight_to_owners


@dataclass(frozen=True)
class Layout:
    """The parameters as DeepSpeed sees them.

    Attributes:
        groups: of the optimizer; each the sizes of its parameters, in order.
        frozen: numbers that do not train.
    """

    groups: tuple[tuple[int, ...], ...]
    frozen: int = 0

    @property
    def trained(self) -> int:
        """Numbers that train."""
        return sum(map(sum, self.groups))

    @property
    def all(self) -> int:
        """All numbers."""
        return self.trained + self.frozen

    def padded(self, ranks: int) -> int:
        """What the groups have when each is cut into equal parts, whose size is even."""
        return sum(ceil(sum(group) / (2 * ranks)) * 2 * ranks for group in self.groups)

    def whole_of_parts(self, ranks: int) -> int:
        """Numbers of all parameters that a rank's parts touch, of the rank that has most."""
        touched = [0] * ranks
        for group in self.groups:
            part, begin = ceil(sum(group) / (2 * ranks)) * 2, 0
            for size in group:
                for rank in range(begin // part, (begin + size - 1) // part + 1):
                    touched[rank] += size
                begin += size
        return max(touched)

    def largest_slice(self, ranks: int) -> int:
        """Of the largest parameter, what one rank's part holds at most."""
        largest = (min(max(group), ceil(sum(group) / (2 * ranks)) * 2) for group in self.groups if group)
        return max(largest, default=0)

    def persistent(self) -> int:
        """What stays whole on every rank at stage 3; frozen parameters are taken as large."""
        return sum(size for group in self.groups for size in group if size <= PERSISTENT)


@dataclass(frozen=True)
class Activations:
    """Bytes of a forward and backward pass beside weights, as plain PyTorch takes them for one micro-batch.

    Attributes:
        forward: at the end of the forward pass, all saved for the backward pass.
        with_gradients: at the peak, with the gradients made so far.
        without_gradients: at the peak, if each gradient went away as soon as it is whole.
    """

    forward: int
    with_gradients: int
    without_gradients: int


@dataclass(frozen=True)
class Sharding:
    """How DeepSpeed shares a step among ranks.

    Attributes:
        stage: of ZeRO.
        ranks, accumulation: world size, micro-batches of a step.
        width: bytes of a weight and of a gradient: 2 in bf16, 4 in fp32.
        bucket: gradients that are reduced at once, in numbers.
        buckets: that exist at a time: 2 where communication overlaps.
        offload: optimizer state is in the host's memory.
        offload_weights: at stage 3, a rank's share of the weights as well.
        states: fp32 numbers that the optimizer keeps for each weight.
        on_cpu: gloo, and memory that counts once it is written to.
        to_owners: at stages 1 and 2 each gradient is summed for the rank alone that updates its weight.
        reduce_scatter: DeepSpeed's; false asks for all-reduces at stages 1 and 2.
    """

    stage: int
    ranks: int
    accumulation: int
    width: int
    bucket: int
    buckets: int = 1
    offload: bool = False
    offload_weights: bool = False
    states: int = 2
    on_cpu: bool = False
    to_owners: bool = False
    reduce_scatter: bool = True

    def straight(self, trained: int) -> bool:
        """At stages 1 and 2 `exchange` sends the gradients of so many weights to their owners."""
        return self.on_cpu and self.reduce_scatter and straight_to_owners(self.ranks, trained, self.bucket)


@dataclass(frozen=True)
class Footprint:
    """Bytes on one rank.

    Attributes:
        kept: by part, all the time.
        backward, step: beside that, at the peak of the backward pass, and of the optimizer step.
        host: by part, in the host's memory, for a rank whose device has its own.
    """

    kept: dict[str, int]
    backward: int
    step: int
    host: dict[str, int]

    @property
    def peak(self) -> int:
        """On the device."""
        return sum(self.kept.values()) + max(self.backward, self.step)


def of_step(layout: Layout, activations: Activations, how: Sharding) -> Footprint:
    """The memory of a rank whose steps have begun to repeat themselves."""
    by_stage = {0: _replicated, 1: _stage_1_or_2, 2: _stage_1_or_2, 3: _stage_3}
    return by_stage[how.stage](layout, activations, how)


def _replicated(layout: Layout, activations: Activations, how: Sharding) -> Footprint:
    width, trained = how.width, layout.trained
    kept = {"weights": width * layout.all, "optimizer": FP32_BYTES * how.states * trained}
    if width < FP32_BYTES:
        kept["fp32 weights"] = FP32_BYTES * trained
    gradients = width * trained
    laid_out = gradients + width * min(trained, GATHERED_AT_ONCE)
    # in the later micro-batches the gradients so far are there from the beginning
    later = gradients + activations.without_gradients if how.accumulation > 1 else 0
    step = gradients + (FP32_BYTES * trained if width < FP32_BYTES else 0)
    return Footprint(kept, max(activations.with_gradients, later, laid_out), step, {})


def _stage_1_or_2(layout: Layout, activations: Activations, how: Sharding) -> Footprint:
    width, ranks, accumulated = how.width, how.ranks, how.accumulation > 1
    trained, padded, part = layout.trained, layout.padded(ranks), layout.largest_slice(ranks)
    state = {"fp32 weights": FP32_BYTES * padded // ranks, "optimizer": FP32_BYTES * how.states * padded // ranks}
    kept = {"weights": width * (padded + layout.frozen)}
    host: dict[str, int] = {}
    mine = width * layout.whole_of_parts(ranks)
    bucket = width * how.buckets * (min(how.bucket, trained) if how.on_cpu else how.bucket)
    # a bucket's sum is a copy of it; sums that go straight to their owners need room for the others' parts
    copied = (ranks - 1) * min(how.bucket, part) if how.straight(trained) else how.bucket
    reduced = width * min(copied + part, trained)
    largest = width * max(map(max, filter(None, layout.groups)), default=0)
    if how.offload:
        host = {
            **state,
            "fp32 gradients": FP32_BYTES * padded // ranks,
            "weights on their way": width * padded // ranks + largest,
            "gradients": mine if accumulated and how.stage == 2 else 0,
        }
        kept["weights on their way"] = largest
        if how.on_cpu:  # all in the same memory
            kept = {**host, "weights": kept["weights"], "weights on their way": host["weights on their way"] + largest}
            host = {}
        before, step = 0, 0
        backward = bucket + max(reduced, (FP32_BYTES + FP64_BYTES) * part)
    else:
        kept |= state
        before = mine if accumulated else 0
        backward = before + bucket + max(reduced, mine)
        groups_part = max(ceil(sum(group) / ranks) for group in layout.groups)
        step = mine + width * groups_part + (FP32_BYTES * groups_part if width < FP32_BYTES else 0)
    if how.stage == 1 and accumulated:  # nothing is reduced before the last micro-batch is done
        before = width * trained
        backward = max(backward, before + (bucket if not how.on_cpu else 0) + reduced)
    during = before + (activations.without_gradients if how.stage == 1 and accumulated else activations.with_gradients)
    return Footprint(kept, max(during, backward), step, host)


def _stage_3(layout: Layout, activations: Activations, how: Sharding) -> Footprint:
    width, ranks, trained = how.width, how.ranks, layout.trained
    part = ceil(trained / ranks)
    bucket = width * (min(how.bucket, trained) if how.on_cpu else how.bucket)
    kept = {"small weights": width * layout.persistent(), "bucket": bucket}
    weights = {"weights": width * ceil(layout.all / ranks)}
    state = {"gradients": width * part, "fp32 weights": FP32_BYTES * part, "optimizer": FP32_BYTES * how.states * part}
    host: dict[str, int] = {}
    if how.offload:
        state["fp32 gradients"] = FP32_BYTES * part
    for parts, moved in ((weights, how.offload_weights), (state, how.offload)):
        (host if moved and not how.on_cpu else kept).update(parts)
    gathered = width * (layout.all - layout.persistent())
    # gradients go into the bucket once they are whole, so the peak is where the backward pass begins, or its end, where
    # the tied embeddings have a gradient of each use; and a reduce-scatter, where there is any, copies its input
    tied = 3 * width * max(map(max, filter(None, layout.groups)), default=0)
    copied = width * min(how.bucket, trained) if ranks > 1 else 0
    backward = max(gathered + activations.forward, tied) + copied
    groups_part = max(ceil(sum(group) / ranks) for group in layout.groups)
    step = max(
        FP64_BYTES * layout.largest_slice(ranks), (width + (FP32_BYTES if width < FP32_BYTES else 0)) * groups_part
    )
    return Footprint(kept, backward, step, host)


def on_the_line(rows: int, *measured: tuple[int, Activations]) -> Activations:
    """What a micro-batch of so many rows takes, on the line through two that were measured."""
    (few, least), (many, most) = measured
    share = (rows - few) / (many - few)

    def between(low: int, high: int) -> int:
        return round(low + share * (high - low))

    return Activations(
        between(least.forward, most.forward),
        between(least.with_gradients, most.with_gradients),
        between(least.without_gradients, most.without_gradients),
    )

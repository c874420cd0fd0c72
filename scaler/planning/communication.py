"""Predict what the ranks send each other in a step, collective by collective, and how long it takes. Needs no torch.

What DeepSpeed 0.19 sends was read in its source and counted (docs/design/cost-model.md):
- Stages 1 and 2 all-reduce whole buckets and never reduce-scatter. Where use_multi_rank_bucket_allreduce is false, they
  reduce each part to its owner.
- Stage 2 does so at every micro-batch, stages 0 and 1 after the last one.
- Each group's weights return in one all-gather, whatever `allgather_bucket_size` is.
On CPUs our direct collectives send each part to the rank that needs it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from scaler.config.deepspeed import GATHERED_AT_ONCE, PERSISTENT, PREFETCHED, REUSE_DISTANCE
from scaler.planning.memory import Layout, Sharding

GLOO_REDUCE = 1.12  # bytes that a rank sends for each byte of data: the mean of six measurements (docs/log/2026-11.md)
SMALL = 64  # bytes of a collective in which the ranks agree on norms, overflows or stops


@dataclass(frozen=True)
class Collective:
    """All collectives of one kind in a step.

    Attributes:
        kind: "all_reduce", "all_gather", "reduce_scatter" or "reduce".
        what: what is sent, for people.
        sent: bytes of the whole tensors, all calls of a step together.
        calls: how many calls a step makes.
        hidden: whether it runs beside computation, where the device can do both.
    """

    kind: str
    what: str
    sent: int
    calls: int
    hidden: bool = False


def collectives_of_step(layout: Layout, sharding: Sharding) -> tuple[Collective, ...]:
    """Return all collectives of one optimizer step."""
    if sharding.ranks == 1:
        return ()
    width, steps, groups = sharding.width, sharding.accumulation, len(layout.groups)
    gradients = width * layout.trained
    weights = width * layout.padded(sharding.ranks)
    overlapped = sharding.overlap and not sharding.on_cpu
    buckets = ceil(layout.trained / sharding.bucket)
    # the patch `gradient_norm` needs one agreement instead of one for each group; one more is the training loop's
    one_norm = sharding.stage in (1, 2) and sharding.on_cpu and not sharding.offload
    agreements = 2 if one_norm else groups + 2
    small = Collective("all_reduce", "norms and signs", SMALL * agreements, agreements)
    if sharding.stage == 0:
        calls = ceil(layout.trained / GATHERED_AT_ONCE)
        return Collective("all_reduce", "gradients", gradients, calls), small
    if sharding.stage in (1, 2):
        times = steps if sharding.stage == 2 else 1
        kind, calls = ("reduce", buckets * sharding.ranks) if sharding.to_owners else ("all_reduce", buckets)
        if sharding.sends_directly(layout.trained):
            kind, calls = "reduce_scatter", buckets
        return (
            Collective(kind, "gradients", times * gradients, times * calls, overlapped and sharding.stage == 2),
            Collective("all_gather", "weights", weights, groups),
            small,
        )
    passing, gathers = layout.all - layout.persistent(), steps * gathers_of_weights(layout)
    persistent = sum(size <= PERSISTENT for group in layout.groups for size in group)
    return (
        Collective("all_gather", "weights", gathers * width * passing, gathers * ceil(passing / PREFETCHED), True),
        Collective("reduce_scatter", "gradients", steps * gradients, steps * buckets, overlapped),
        Collective("all_gather", "small weights", width * layout.persistent(), persistent),
        small,
    )


def gathers_of_weights(layout: Layout) -> int:
    """Return how often stage 3 gathers the weights for a micro-batch."""
    return 1 if 2 * layout.all <= REUSE_DISTANCE else 2


def bytes_on_the_wire(collective: Collective, ranks: int, gloo: bool = False) -> float:
    """Return the bytes that one rank sends.

    A ring of n ranks sends 2 (n - 1) / n of the data for an all-reduce, and half of it for a reduce-scatter or an
    all-gather (Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations"). Direct
    collectives send as many bytes. gloo's own reduces sent 0.99 to 1.24 times the data on 2 to 8 ranks, as the kernel
    counted (docs/log/2026-11.md).
    """
    ring = (ranks - 1) / ranks * collective.sent
    if collective.kind == "all_reduce":
        return 2 * ring
    return GLOO_REDUCE * collective.sent if gloo and collective.kind == "reduce" else ring


def hops(kind: str, ranks: int, gloo: bool = False) -> int:
    """Return how many messages of a small collective follow each other.

    NCCL sends small collectives along a tree: log2(n) hops up and as many down (Sanders, Speck and Träff 2009,
    "Two-tree algorithms"). gloo uses a ring for all sizes (its allreduce.cc and allgather.cc).
    """
    once = ranks - 1 if gloo else ceil(log2(ranks))
    return 2 * once if kind == "all_reduce" else once


def seconds(collective: Collective, ranks: int, bandwidth: float, latency: float, gloo: bool = False) -> float:
    """Return the seconds of a collective: its bytes over the bandwidth, and the latency of its hops.

    Args:
        bandwidth: bytes a second of the narrowest link.
        latency: seconds of a hop.
        gloo: whether gloo sends, not NCCL.
    """
    passed = collective.calls * hops(collective.kind, ranks, gloo) * latency
    return bytes_on_the_wire(collective, ranks, gloo) / bandwidth + passed

"""What the ranks send each other in a step, collective by collective, and how long it takes. Pure.

What DeepSpeed 0.19 sends was read in its source and counted (docs/design/cost-model.md): stages 1 and 2 reduce by
all-reduce of whole buckets, never by reduce-scatter (or by a reduce for each part's owner, where
use_multi_rank_bucket_allreduce is false); stage 2 at every micro-batch, stages 0 and 1 after the last one;
each group's weights come back in one all-gather, whatever `allgather_bucket_size` says. On CPUs `exchange` sends parts
straight to the ranks that need them.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, log2

from scaler.config.deepspeed import GATHERED_AT_ONCE, PERSISTENT, PREFETCHED, REUSE_DISTANCE
from scaler.planning.memory import Layout, Sharding

GLOO_REDUCE = 1.12  # of the data, by a rank: the mean of six measurements (docs/log/2026-11.md)
SMALL = 64  # bytes of the collectives that agree on norms, overflows and stops


@dataclass(frozen=True)
class Collective:
    """One kind of collective of a step.

    Attributes:
        kind: "all_reduce", "all_gather", "reduce_scatter" or "reduce".
        what: is sent.
        sent: bytes of the whole tensors, all calls of a step together.
        calls: in a step.
        hidden: it runs beside computation, where the device can do both.
    """

    kind: str
    what: str
    sent: int
    calls: int
    hidden: bool = False


def of_step(layout: Layout, how: Sharding) -> tuple[Collective, ...]:
    """All collectives of one optimizer step."""
    if how.ranks == 1:
        return ()
    width, steps, groups = how.width, how.accumulation, len(layout.groups)
    gradients = width * layout.trained
    weights = width * layout.padded(how.ranks)
    overlapped = how.buckets > 1 and not how.on_cpu
    buckets = ceil(layout.trained / how.bucket)
    one_norm = how.stage in (1, 2) and how.on_cpu and not how.offload  # where the patch `gradient_norm` applies
    agreements = 2 if one_norm else groups + 2  # one of them is the training loop's
    small = Collective("all_reduce", "norms and signs", SMALL * agreements, agreements)
    if how.stage == 0:
        calls = ceil(layout.trained / GATHERED_AT_ONCE)
        return Collective("all_reduce", "gradients", gradients, calls), small
    if how.stage in (1, 2):
        times = steps if how.stage == 2 else 1
        kind, calls = ("reduce", buckets * how.ranks) if how.to_owners else ("all_reduce", buckets)
        if how.straight(layout.trained):
            kind, calls = "reduce_scatter", buckets
        return (
            Collective(kind, "gradients", times * gradients, times * calls, overlapped and how.stage == 2),
            Collective("all_gather", "weights", weights, groups),
            small,
        )
    passing = width * (layout.all - layout.persistent())
    gathers = gathers_of_weights(layout)
    persistent = sum(size <= PERSISTENT for group in layout.groups for size in group)
    return (
        Collective(
            "all_gather",
            "weights",
            steps * gathers * passing,
            steps * gathers * ceil(passing / width / PREFETCHED),
            True,
        ),
        Collective(
            "reduce_scatter",
            "gradients",
            steps * gradients,
            steps * buckets,
            overlapped,
        ),
        Collective("all_gather", "small weights", width * layout.persistent(), persistent),
        small,
    )


def gathers_of_weights(layout: Layout) -> int:
    """How often stage 3 brings the weights together for a micro-batch."""
    return 1 if 2 * layout.all <= REUSE_DISTANCE else 2


def bytes_on_the_wire(collective: Collective, ranks: int, gloo: bool = False) -> float:
    """Bytes that one rank sends: of a ring, 2 (n - 1) / n of the data for an all-reduce, half of it for its halves.

    Source: Patarasuk and Yuan 2009, "Bandwidth optimal all-reduce algorithms for clusters of workstations". Parts that
    go straight to their ranks are as many bytes. gloo's own reduces of all parts sent 0.99 to 1.24 times the data on 2
    to 8 ranks, counted by the kernel (docs/log/2026-11.md).
    """
    ring = (ranks - 1) / ranks * collective.sent
    if collective.kind == "all_reduce":
        return 2 * ring
    return GLOO_REDUCE * collective.sent if gloo and collective.kind == "reduce" else ring


def hops(kind: str, ranks: int, gloo: bool = False) -> int:
    """Messages one after the other of a small collective.

    NCCL sends small ones along a tree, log2(n) up and as many down (Sanders, Speck and Träff 2009, "Two-tree
    algorithms"); gloo along a ring whatever their size (its allreduce.cc and allgather.cc).
    """
    once = ranks - 1 if gloo else ceil(log2(ranks))
    return 2 * once if kind == "all_reduce" else once


def seconds(collective: Collective, ranks: int, bandwidth: float, latency: float, gloo: bool = False) -> float:
    """Time of a collective: its bytes, and its messages one after the other.

    Args:
        bandwidth: of the narrowest link, bytes a second.
        latency: seconds of a hop.
        gloo: and not NCCL.
    """
    passed = collective.calls * hops(collective.kind, ranks, gloo) * latency
    return bytes_on_the_wire(collective, ranks, gloo) / bandwidth + passed

"""How fast data goes between ranks: inside each host, between hosts in pairs, and among all."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist

ROUNDS = 8  # of pairs of hosts; all pairs of up to nine hosts
REPEATS = 3  # of which the best counts, for others share the network


@dataclass(frozen=True)
class Links:
    """Bytes a second, as this rank measured them; None where there is no such link.

    All-reduces are given as NCCL's tests do ("bus bandwidth", doc/PERFORMANCE.md there): 2 (n - 1) / n of the size of
    the data by the time, which does not hang on the number of ranks.

    Attributes:
        intra_node: all-reduce among the ranks of this host.
        inter_node: to and from other hosts, the best of the pairs that this rank was in. All ranks pair up at once,
            each with that of the same number on another host, so that they share a host's links as in training.
        all_ranks: all-reduce among all ranks.
    """

    intra_node: float | None
    inter_node: float | None
    all_ranks: float | None


def pairs(members: Sequence[int], limit: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Rounds of pairs of members, each in one pair of a round, and no pair twice: a round-robin tournament.

    >>> pairs([0, 2, 4, 6])
    [[(0, 6), (2, 4)], [(0, 4), (6, 2)], [(0, 2), (4, 6)]]
    """
    ring: list[int | None] = [*members, *([None] if len(members) % 2 else [])]
    rounds = []
    for _ in range(min(limit, len(ring) - 1)):
        both = zip(ring[: len(ring) // 2], reversed(ring[len(ring) // 2 :]), strict=True)
        rounds.append([(one, other) for one, other in both if one is not None and other is not None])
        ring = [ring[0], ring[-1], *ring[1:-1]]
    return rounds


def measure(hosts: Sequence[str], rank: int, device: torch.device) -> Links:
    """Measure the links of this rank. Every rank must call it.

    Args:
        hosts: of all ranks.
    """
    mebibytes = 64 if device.type == "cuda" else 8
    data, other = (torch.ones(mebibytes << 18, device=device) for _ in range(2))
    size = data.numel() * data.element_size()
    by_host = [[r for r, name in enumerate(hosts) if name == host] for host in dict.fromkeys(hosts)]
    mine, _ = dist.new_subgroups_by_enumeration(by_host)

    def all_reduce(group: dist.ProcessGroup | None, ranks: int) -> float | None:
        if ranks == 1:
            return None
        return 2 * (ranks - 1) / ranks * size / _best(lambda: dist.all_reduce(data, group=group), device)

    all_ranks = all_reduce(None, len(hosts))
    intra_node = all_reduce(mine, hosts.count(hosts[rank]))
    inter_node = []
    here = next(number for number, ranks in enumerate(by_host) if rank in ranks)
    for ended in pairs(range(len(by_host))):
        dist.barrier()
        for there in [(set(pair) - {here}).pop() for pair in ended if here in pair]:
            mates = dict(zip(by_host[here], by_host[there], strict=False))
            if rank in mates:
                inter_node.append(size / _best(partial(_exchange, data, other, mates[rank]), device))
    dist.barrier()
    return Links(intra_node, max(inter_node, default=None), all_ranks)


def _exchange(data: torch.Tensor, other: torch.Tensor, partner: int) -> None:
    for request in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, data, partner), dist.P2POp(dist.irecv, other, partner)]
    ):
        request.wait()


def _best(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of the fastest of several times, after one that does not count."""
    seconds = []
    for _ in range(REPEATS + 1):
        clock = time.perf_counter()
        act()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - clock)
    return min(seconds[1:])


MOST_NUMBERS, MOST_CALLS = 1 << 24, 50  # of an all-reduce that measures a bandwidth; and such all-reduces


def now(device: torch.device) -> float:
    """Return the clock in seconds, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def bus_bandwidth(group: dist.ProcessGroup | None, numbers: int, device: torch.device) -> float:
    """Bytes a second of all-reduces of so many numbers, as `links.Links` counts; the mean of a second.

    The mean, for some links let the first bytes pass faster than they can go on. Every rank of the group must call it.
    """
    data = torch.ones(numbers, device=device)
    ranks = dist.get_world_size(group)
    dist.all_reduce(data, group=group)
    start = now(device)
    dist.all_reduce(data, group=group)
    once = torch.tensor([now(device) - start], device=device)
    dist.all_reduce(once, dist.ReduceOp.MAX, group=group)
    calls = min(MOST_CALLS, max(1, round(1.0 / float(once))))
    start = now(device)
    for _ in range(calls):
        dist.all_reduce(data, group=group)
    size = calls * numbers * data.element_size()
    return 2 * (ranks - 1) / ranks * size / (now(device) - start)

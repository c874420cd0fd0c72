"""Measure how fast data goes between ranks: in each host, between hosts in pairs, and among all."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.distributed as dist

from scaler.distributed.devices import now

ROUNDS = 8  # of pairs of hosts: all pairs of up to nine hosts
REPEATS = 3  # the best of which counts, because others share the network
SMALL_CALLS = 50  # all-reduces of one number, of which the median counts
MOST_NUMBERS, MOST_CALLS = 1 << 24, 50  # of an all-reduce whose bandwidth is measured; of such all-reduces


def pairs(members: Sequence[int], limit: int = ROUNDS) -> list[list[tuple[int, int]]]:
    """Return rounds of a round-robin tournament: each member is in one pair of a round, and no pair comes twice.

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


def measure(hosts: Sequence[str], rank: int, device: torch.device) -> dict[str, float | None]:
    """Measure the links of this rank in a few short calls, in bytes a second. Collective.

    All-reduces are given as NCCL's tests do ("bus bandwidth", doc/PERFORMANCE.md there): 2 (n - 1) / n of the size of
    the data by the time, which does not depend on the number of ranks.

    Args:
        hosts: the host of each rank.

    Returns: None where there is no such link.
        inside: all-reduce among the ranks of this host.
        between: to and from other hosts, the best of the pairs that this rank was in. All ranks pair up at once, each
            with that of the same number on another host, so that they share a host's links as in training.
        everywhere: all-reduce among all ranks.
    """
    mebibytes = 64 if device.type == "cuda" else 8
    data, other = (torch.ones(mebibytes << 18, device=device) for _ in range(2))
    size = data.numel() * data.element_size()
    by_host, mine = _hosts_and_group(hosts)

    def all_reduce(group: dist.ProcessGroup | None, ranks: int) -> float | None:
        if ranks == 1:
            return None
        return 2 * (ranks - 1) / ranks * size / _best(lambda: dist.all_reduce(data, group=group), device)

    everywhere, inside = all_reduce(None, len(hosts)), all_reduce(mine, hosts.count(hosts[rank]))
    between = []
    own = next(number for number, ranks in enumerate(by_host) if rank in ranks)
    for pairs_of_hosts in pairs(range(len(by_host))):
        dist.barrier()
        for partner in [(set(pair) - {own}).pop() for pair in pairs_of_hosts if own in pair]:
            partner_of = dict(zip(by_host[own], by_host[partner], strict=False))
            if rank in partner_of:
                between.append(size / _best(partial(_exchange, data, other, partner_of[rank]), device))
    dist.barrier()
    return {"inside": inside, "between": max(between, default=None), "everywhere": everywhere}


def measure_sustained(
    hosts: Sequence[str], rank: int, numbers: int, device: torch.device
) -> tuple[float, dict[str, float]]:
    """Measure the speed that all-reduces keep up for a second, as in a training. Collective.

    Args:
        hosts: the host of each rank.
        numbers: fp32 numbers of an all-reduce.

    Returns: the seconds of an all-reduce of one number among all ranks; and bus bandwidths in bytes a second, "inside"
        among the ranks of this host where there are several, and "between" among all ranks of several hosts.
    """
    number, times = torch.ones(1, device=device), []
    for _ in range(SMALL_CALLS):
        start = now(device)
        dist.all_reduce(number)
        times.append(now(device) - start)
    by_host, mine = _hosts_and_group(hosts)
    found = {"inside": _bus_bandwidth(mine, numbers, device)} if hosts.count(hosts[rank]) > 1 else {}
    dist.barrier()
    if len(by_host) > 1:
        found["between"] = _bus_bandwidth(None, numbers, device)
    return statistics.median(times), found


def _hosts_and_group(hosts: Sequence[str]) -> tuple[list[list[int]], dist.ProcessGroup]:
    """Return the ranks of each host, and the process group of this rank's host. Collective."""
    by_host = [[rank for rank, name in enumerate(hosts) if name == host] for host in dict.fromkeys(hosts)]
    return by_host, dist.new_subgroups_by_enumeration(by_host)[0]


def _exchange(data: torch.Tensor, other: torch.Tensor, partner: int) -> None:
    for request in dist.batch_isend_irecv(
        [dist.P2POp(dist.isend, data, partner), dist.P2POp(dist.irecv, other, partner)]
    ):
        request.wait()


def _best(act: Callable[[], object], device: torch.device) -> float:
    """Return the seconds of the fastest of several calls, after one that does not count."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = now(device)
        act()
        seconds.append(now(device) - start)
    return min(seconds[1:])


def _bus_bandwidth(group: dist.ProcessGroup | None, numbers: int, device: torch.device) -> float:
    """Return the bytes a second of all-reduces, counted as `measure` does, over about a second.

    The mean and not the best, because some links pass the first bytes faster than they can go on. Collective.
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

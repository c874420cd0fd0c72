"""Reduce-scatter and all-gather between CPUs that send each part straight to the rank that needs it.

What: replaces `all_gather_into_tensor` and `reduce_scatter_tensor` of DeepSpeed's `TorchBackend`, on gloo. At stages 1
    and 2 it also replaces `allreduce_and_scatter` of `DeepSpeedZeroOptimizer`, where a ring would be no faster.
Why: gloo's reduce-scatter is an all-reduce, which sends twice as much as is needed. Its all-gather fills new memory and
    copies from there. DeepSpeed all-reduces gradients at stages 1 and 2, although only their owners need the sums.
Versions tried: DeepSpeed 0.19.8, torch 2.13; gloo on CPUs only.
Measured gain: 82 M gradients in bf16 on two ranks of one machine, sums 0.19 s -> 0.09 s, weights 0.15 s -> 0.06 s, and
    within a training 0.34 s -> 0.07 s; ZeRO-2 from 0.84 to 0.95 x DDP to above it (docs/results).
Upstream: issue 6463 of DeepSpeed (open; 5758 and 7059 are closed) asks for less than an all-reduce at stages 1 and 2.
    Text of an issue that is ready to send:
    "ZeRO-1/2 could reduce each gradient slice to its owner. `average_tensor` knows the owner of each slice, yet
    `allreduce_and_scatter` all-reduces the whole bucket, which moves 2 (n - 1) / n of its bytes where a reduce-scatter
    moves (n - 1) / n. Would you take a pull request that makes this method a strategy object, with today's all-reduce
    as the default and a reduction to owners beside it? On two CPU ranks it saves 0.10 s of a step of 3.3 s."
    gloo's all-reduce behind `reduce_scatter_tensor` belongs to torch's ProcessGroupGloo.
Test: tests/engine/test_direct_collectives.py, tests/end_to_end/test_gradients.py, tests/end_to_end/test_switches.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

from scaler.config import deepspeed as ds_config

AT_ONCE = 1 << 18  # numbers whose fp32 copy a core's cache holds
REDUCING, GATHERING = 1, 2  # tags, so that one never takes what the other is sent

# A part of DeepSpeed's bucket: its owner, the gradients, and the fp32 tensor in which the owner adds them up, if any
Part = tuple[frozenset[int], torch.Tensor, torch.Tensor | None]


class Sent:
    """The handle of one collective, which waits for all its messages."""

    def __init__(self, messages: Sequence[Any]) -> None:
        self._messages = list(messages)

    def wait(self) -> None:
        """Wait until all have arrived. A second call returns at once, where gloo's own handle would block for ever."""
        while self._messages:
            self._messages.pop().wait()


def reduce_to_owners(parts: Sequence[torch.Tensor], owners: Sequence[int], group: Any = None) -> None:
    """Sum each part over the ranks, in place, at its owner. The other ranks may overwrite theirs afterwards.

    Every rank of the group calls it with parts of the same lengths. The ranks' numbers are added one after the other,
    beginning with the owner's.

    Args:
        parts: contiguous tensors of one dimension.
        owners: for each part, the rank in the group that gets the sum.
        group: the process group; all ranks by default.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    mine = [part for part, owner in zip(parts, owners, strict=True) if owner == rank]
    # receives are posted first: a rank's readiness to receive would queue behind the data that it sends
    coming: list[tuple[torch.Tensor, torch.Tensor, Any]] = []
    for turn in range(1, ranks):
        for part in mine:
            theirs = torch.empty_like(part)
            message = dist.irecv(theirs, group=group, tag=REDUCING, group_src=(rank - turn) % ranks)
            coming.append((part, theirs, message))
    sent = Sent(
        [
            dist.isend(part, group=group, tag=REDUCING, group_dst=owner)
            for part, owner in zip(parts, owners, strict=True)
            if owner != rank
        ]
    )
    for part, theirs, message in coming:
        message.wait()
        part.add_(theirs)
    sent.wait()


def reduce_scatter(
    output_tensor: torch.Tensor, input_tensor: torch.Tensor, op: Any, group: Any = None, async_op: bool = False
) -> None:
    """Sum the part that belongs to this rank over all ranks, as `torch.distributed.reduce_scatter_tensor` does.

    Args:
        output_tensor: gets the sum; may be this rank's part of `input_tensor`.
        input_tensor: the parts of all ranks, in their order, of equal lengths.
        op: a sum; nothing else is implemented.
        group: the process group; all ranks by default.
        async_op: must be False.
    """
    assert not async_op and "SUM" in str(op), (op, async_op)
    parts = list(input_tensor.view(-1).chunk(dist.get_world_size(group)))
    rank = dist.get_rank(group)
    output = output_tensor.view(-1)
    output.copy_(parts[rank])
    parts[rank] = output
    reduce_to_owners(parts, range(len(parts)), group)


def all_gather(
    output_tensor: torch.Tensor, input_tensor: torch.Tensor, group: Any = None, async_op: bool = False
) -> Sent | None:
    """Gather all ranks' parts in their order, as `torch.distributed.all_gather_into_tensor` does.

    Args:
        output_tensor: gets the parts.
        input_tensor: this rank's part; may be its place in `output_tensor`.
        group: the process group; all ranks by default.
        async_op: return a handle at once, and fill `output_tensor` until its `wait` returns.
    """
    rank, ranks = dist.get_rank(group), dist.get_world_size(group)
    mine, parts = input_tensor.view(-1), output_tensor.view(-1).chunk(ranks)
    if parts[rank].data_ptr() != mine.data_ptr():
        parts[rank].copy_(mine)
    others = [(rank + turn) % ranks for turn in range(1, ranks)]
    sent = Sent(
        [dist.irecv(parts[source], group=group, tag=GATHERING, group_src=source) for source in reversed(others)]
        + [dist.isend(mine, group=group, tag=GATHERING, group_dst=to) for to in others]
    )
    if async_op:
        return sent
    sent.wait()
    return None


def _owner(part: Part) -> int:
    (owner,) = part[0]  # only Muon has parts of several owners, and no recipe has Muon
    return owner


def install(backend: Any) -> str | None:
    """Replace the two collectives of DeepSpeed's backend on gloo."""
    backend.all_gather_into_tensor = all_gather
    backend.reduce_scatter_tensor = reduce_scatter
    backend.reduce_to_owners = reduce_to_owners
    return None


def install_reduction(zero: Any, backend: Any) -> None:
    """Replace the reduction of gradients by sums at their owners, where these take less time than a ring.

    Args:
        zero: DeepSpeed's optimizer of ZeRO 1 or 2.
        backend: DeepSpeed's, on which `install` was called.
    """
    ranks = dist.get_world_size(zero.dp_process_group)
    trained = sum(parameter.numel() for group in zero.bit16_groups for parameter in group)
    if not zero.reduce_scatter or not ds_config.straight_to_owners(ranks, trained, zero.reduce_bucket_size):
        return
    factor = 1 / ranks if zero.gradient_average else 1.0

    def reduce(
        bucket: Sequence[Part],
        communication_data_type: torch.dtype,
        numel_per_bucket: int = 0,  # it bounds what is copied at once, and nothing is copied here
        log: object = None,
        divide: bool = True,
        process_group: Any = None,
    ) -> None:
        assert not divide and log is None, (divide, log)
        lengths = [len(part) for _, part, _ in bucket]
        whole = bucket[0][1].as_strided((sum(lengths),), (1,))  # the parts follow each other in memory
        assert all(
            there.data_ptr() == part.data_ptr()
            for there, (_, part, _) in zip(whole.split(lengths), bucket, strict=True)
        )
        whole = whole.to(communication_data_type)
        # DeepSpeed joins the parts of an owner, except on the owner itself where it keeps fp32 sums
        joined = [(owner, sum(len(part) for _, part, _ in some)) for owner, some in itertools.groupby(bucket, _owner)]
        owners, together = zip(*joined, strict=True)
        backend.reduce_to_owners(list(whole.split(together)), owners, process_group)
        for summed, each in zip(whole.split(lengths), bucket, strict=True):
            if _owner(each) == dist.get_rank(process_group):
                _, part, kept = each
                if kept is not None:
                    # in blocks, because torch copies what it adds into the wider type
                    for some, more in zip(kept.view(-1).split(AT_ONCE), summed.split(AT_ONCE), strict=True):
                        some.add_(more, alpha=factor)
                    continue
                if whole.dtype != part.dtype:
                    part.copy_(summed)
                if factor != 1:
                    part.mul_(factor)

    zero.allreduce_and_scatter = reduce
    zero.gradient_average = False  # it would divide the whole bucket, of which each rank needs only its parts
    zero.use_multi_rank_bucket_allreduce = True  # only then does `average_tensor` call `allreduce_and_scatter`

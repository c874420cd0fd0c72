"""Join and leave the process group: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import os
from datetime import timedelta
from functools import partial

import deepspeed
import torch

from scaler.core import limits, switches
from scaler.core.errors import ScalerError
from scaler.distributed import collectives, meeting
from scaler.distributed.devices import device
from scaler.distributed.world import LIMIT_SECONDS, World, publish
from scaler.engine import patches
from scaler.engine.patches import allocator, direct_collectives


def join(world: World, seconds: float = LIMIT_SECONDS) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    Args:
        world: this process among the ranks.
        seconds: how long the ranks wait for each other, now and in every collective.

    Raises: ScalerError on every rank when the ranks cannot meet, or differ in the patches that they may apply.
    """
    # At every start DeepSpeed compiles a shared-memory all-reduce that only its inference engine calls (105 s on one
    # core, and it wants a C++ compiler). Training never uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    publish(world)
    if "OMP_NUM_THREADS" not in os.environ:  # with DeepSpeed's launcher every rank would use all cores
        torch.set_num_threads(max(1, limits.cores() // world.local_size))
    backend, place = "gloo", device(world)
    if place.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(place)
        os.environ["LOCAL_RANK"] = str(place.index)  # from which DeepSpeed takes its device
    patches.apply("allocator", allocator.install, place)
    meeting.begin(world, seconds)
    try:
        with meeting.waiting():  # DeepSpeed's own limit is ten minutes
            deepspeed.init_distributed(
                dist_backend=backend, auto_mpi_discovery=False, verbose=False, timeout=timedelta(seconds=seconds)
            )
    except (torch.distributed.DistError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ScalerError(
            f"rank {world.rank}: {world.size} ranks could not meet at {where} ({str(error).splitlines()[0][:200]}); "
            f"all nodes must reach that address, and the port must be free: {meeting.REMEDY}"
        ) from error
    by_rank = [", ".join(names) or "no patch" for names in collectives.all_gather(patches.usable(), world)]
    other = next((rank for rank, names in enumerate(by_rank) if names != by_rank[0]), None)
    if other is not None:  # their collectives would not fit together; preflight needs it from every rank
        raise ScalerError(
            f"rank {other} may apply {by_rank[other]}, and rank 0 {by_rank[0]}; "
            f"give all nodes the same {switches.VARIABLE} and the same DeepSpeed"
        )
    patches.apply("direct_collectives", partial(direct_collectives.install, deepspeed.comm.comm.cdb), place)


def set_limit(seconds: float) -> None:
    """Set how long ranks wait in a collective of any group; of groups that DeepSpeed makes, NCCL's is ten minutes."""
    for group in torch.distributed.distributed_c10d._world.pg_map:  # there is no public list
        torch.distributed.distributed_c10d._set_pg_timeout(timedelta(seconds=seconds), group)


def leave() -> None:
    """Leave the process group, if this rank has joined one: gloo's threads can abort a process that ends with them."""
    meeting.end()
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

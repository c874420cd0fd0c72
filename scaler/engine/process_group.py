"""Join and leave the process group: NCCL on GPUs, gloo on CPUs."""

from __future__ import annotations

import os
from datetime import timedelta

import deepspeed
import torch

from scaler.core.errors import ScalerError
from scaler.distributed.devices import device
from scaler.distributed.world import World, publish
from scaler.engine.patches import allocator, direct_collectives


def join(world: World, seconds: float | None = None) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    Args:
        seconds: that the ranks wait for each other, now and in every collective; torch's 30 minutes by default.

    Raises: ScalerError when the ranks cannot meet.
    """
    # At every start DeepSpeed compiles a shared-memory all-reduce that only its inference engine calls (105 s on one
    # core, and it wants a C++ compiler). Training never uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    publish(world)
    if "OMP_NUM_THREADS" not in os.environ:  # DeepSpeed's launcher leaves every rank to take all cores
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    backend, place = "gloo", device(world)
    if place.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(place)
        os.environ["LOCAL_RANK"] = str(place.index)  # from which DeepSpeed takes its device
    else:
        allocator.keep_freed_memory()
    limit = {} if seconds is None else {"timeout": timedelta(seconds=seconds)}
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, **limit)
    except (torch.distributed.DistError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ScalerError(
            f"rank {world.rank}: {world.size} ranks could not meet at {where} ({str(error).splitlines()[0][:200]}); "
            "all nodes must reach that address, and the port must be free: set MASTER_ADDR and MASTER_PORT"
        ) from error
    if backend == "gloo":
        direct_collectives.give_to(deepspeed.comm.comm.cdb)


def is_lost_connection(error: RuntimeError) -> bool:
    """A collective failed because another rank is no longer there."""
    said = str(error).lower()
    if "invalid usage" in said or "invalid argument" in said:  # of NCCL; nothing that another start mends
        return False
    words = ("connection", "gloo", "nccl", "peer", "socket")
    return isinstance(error, torch.distributed.DistError) or any(word in said for word in words)


def leave() -> None:
    """Leave the process group, if this rank has joined one: gloo's threads abort a process that ends with them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()

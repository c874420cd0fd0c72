"""Detect which rank this process is, whatever launcher started it, and where the ranks meet."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

from scaler.core import slurm
from scaler.core.errors import ScalerError
from scaler.distributed import mpi

# (launcher, rank, size, local rank, local size): the variables that each launcher sets for its ranks. In a SLURM job
# srun starts MPI's daemons, whose ranks inherit its variables; so srun comes last.
LAUNCHERS = (
    ("torchrun", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
    ("deepspeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_SIZE"),
    (
        "Open MPI",
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("MPICH or Intel MPI", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
    ("srun", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", "SLURM_STEP_TASKS_PER_NODE"),
    ("the environment", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"),
)
# only the local size distinguishes torchrun from deepspeed, both from variables that somebody else has set, and mpiexec
# from `srun --mpi=pmi2`
RECOGNISED_BY_LOCAL_SIZE = ("torchrun", "deepspeed", "MPICH or Intel MPI")


@dataclass(frozen=True)
class World:
    """This process among the ranks: `rank` of `size`, `local_rank` of `local_size` on this host, and their launcher."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    launcher: str = "none"

    @property
    def is_first(self) -> bool:
        """Return True on the one rank that writes and prints."""
        return self.rank == 0


def detect_world(environ: Mapping[str, str] = os.environ) -> World:
    """Return this process's world from the first launcher whose variables are set; one rank if there are none.

    Raises: ScalerError when a launcher's variables are not numbers or contradict each other.
    """
    for launcher, rank, size, local_rank, local_size in LAUNCHERS:
        needed = {rank, size, *([local_size] if launcher in RECOGNISED_BY_LOCAL_SIZE else [])}
        if not needed <= environ.keys():
            continue
        here = environ.get(local_size, "1")
        try:
            if launcher == "srun":
                here = str(slurm.tasks_per_node(here)[int(environ.get("SLURM_NODEID", 0))])
            facts = World(
                rank=int(environ[rank]),
                size=int(environ[size]),
                local_rank=int(environ.get(local_rank, 0)),
                local_size=int(here),
                launcher=launcher,
            )
        except (ValueError, IndexError) as error:
            names = f"{rank}, {size}, {local_rank} or {local_size}"
            raise ScalerError(f"{names} from {launcher} makes no sense: {error}") from error
        if not 0 <= facts.rank < facts.size:
            raise ScalerError(f"{rank}={facts.rank} is not below {size}={facts.size}; check the launcher's environment")
        return facts
    return World()


def launch_id(environ: Mapping[str, str] = os.environ) -> str:
    """Return a name of this start under SLURM, the same on all ranks and new for each start; else "by-hand"."""
    if "SLURM_STEP_ID" not in environ:
        return "by-hand"
    return "-".join((environ["SLURM_JOB_ID"], environ.get("SLURM_RESTART_COUNT", "0"), environ["SLURM_STEP_ID"]))


def publish(world: World, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that torch.distributed and DeepSpeed read, where the launcher has not set them.

    Raises: ScalerError when the address of the first rank is unknown.
    """
    facts = {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
    }
    for name, value in facts.items():
        environ.setdefault(name, str(value))
    if world.size == 1:
        environ.setdefault("MASTER_ADDR", "127.0.0.1")
        environ.setdefault("MASTER_PORT", str(free_port()))
    elif not {"MASTER_ADDR", "MASTER_PORT"} <= environ.keys():
        address, port = _meeting_point(world, environ)
        environ.setdefault("MASTER_ADDR", address)
        environ.setdefault("MASTER_PORT", port)


def _meeting_point(world: World, environ: Mapping[str, str]) -> tuple[str, str]:
    if world.launcher == "srun":
        return slurm.first_host(environ), str(slurm.port(environ))
    if world.launcher in ("Open MPI", "MPICH or Intel MPI"):
        return mpi.meeting_point(world.size)
    raise ScalerError(
        f"MASTER_ADDR and MASTER_PORT are not both set for {world.size} ranks started by {world.launcher}; "
        "export the first node's address and a free port before the ranks start"
    )


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

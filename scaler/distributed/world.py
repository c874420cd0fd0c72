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
GIVE_AN_ADDRESS = ("torchrun", "deepspeed", "the environment")
# of launchers that are not known here: MVAPICH's, Flux's, and jsrun of LSF
OTHER_SIZES = ("MV2_COMM_WORLD_SIZE", "FLUX_JOB_SIZE", "JSM_NAMESPACE_SIZE")
SIZES = (*dict.fromkeys(size for _, _, size, _, _ in LAUNCHERS), *OTHER_SIZES)
JOB_SIZES = ("SLURM_NTASKS", "SLURM_NNODES")  # what a job asks for; the second where it asks for nodes alone
LIMIT_SECONDS = 1800.0  # for which ranks wait for each other, unless a command has a limit of its own
ADDRESS = ("MASTER_ADDR", "MASTER_PORT")
AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"  # has ranks wait for a store that torchrun keeps
OF_A_LAUNCH = {name for _, *names in LAUNCHERS for name in names} | {*OTHER_SIZES, *JOB_SIZES, *ADDRESS, AGENT_STORE}
START_BY = "start it by srun, torchrun, deepspeed or mpiexec"


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

    Raises: ScalerError when a launcher's variables are not numbers, or the environment contradicts them.
    """
    world = _launched(environ)
    _refuse_contradictions(world, environ)
    return world


def _launched(environ: Mapping[str, str]) -> World:
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
        if local_size in environ and not 0 <= facts.local_rank < facts.local_size <= facts.size:
            raise ScalerError(
                f"{local_rank}={facts.local_rank} of {local_size}={facts.local_size} makes no sense in a world of "
                f"{size}={facts.size}; unset what another launcher has left, or check this one's environment"
            )
        return facts
    return World()


def _refuse_contradictions(world: World, environ: Mapping[str, str]) -> None:
    """Refuse an environment that tells other libraries, or other processes, of another world than this one."""
    alone = world.launcher == "none" or (world.launcher == "srun" and world.size == 1)
    asked = next((name for name in JOB_SIZES if name in environ), "")
    if alone and (_number(environ.get(asked)) > 1 or _number(environ.get("SLURM_PROCID")) > 0):
        names = [name for name in (asked, "SLURM_PROCID") if name in environ]
        raise ScalerError(
            f"{_listed(names, environ)}: the job is for several tasks, but srun has not started this process with "
            "others, so it would be the only rank; start it by srun, or as one rank by `srun --ntasks=1`"
        )
    if world.launcher == "none" and "MASTER_ADDR" in environ and "ACCELERATE_MIXED_PRECISION" in environ:
        raise ScalerError(
            f"{_listed(['MASTER_ADDR'], environ)} and ACCELERATE_MIXED_PRECISION: `accelerate launch` was asked for "
            "several processes, and has started one without a rank, as it does on CPUs; "
            "take torchrun --nproc-per-node N, or accelerate's --num_processes 1"
        )
    wrong = [name for name, value in _facts(world).items() if name in environ and _number(environ[name]) != value]
    # an outer launcher may start inner ones, such as srun a torchrun on each node; then the inner world is the larger
    wrong += [name for name in SIZES if name not in wrong and _number(environ.get(name)) > world.size]
    if wrong:
        this = "the only rank" if world.size == 1 else f"rank {world.rank} of {world.size}"
        of_host = f", {world.local_rank} of {world.local_size} on this host" if world.local_size > 1 else ""
        raise ScalerError(
            f"{_listed(wrong, environ)} contradicts the launcher ({world.launcher}), by which this process is "
            f"{this}{of_host}; unset what is left over of another launch, or {START_BY}"
        )


def _number(text: str | None) -> int:
    """Read a variable as a whole number; -1 where it is none, or not set."""
    return int(text) if text is not None and text.strip().isdecimal() else -1


def _listed(names: list[str], environ: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={environ[name]}" for name in names)


def _facts(world: World) -> dict[str, int]:
    return {
        "RANK": world.rank,
        "WORLD_SIZE": world.size,
        "LOCAL_RANK": world.local_rank,
        "LOCAL_WORLD_SIZE": world.local_size,
    }


def forget_launch(environ: MutableMapping[str, str] = os.environ) -> None:
    """Remove what says which rank this process is, so that neither libraries nor other processes take it for theirs."""
    for name in OF_A_LAUNCH & environ.keys():
        del environ[name]


def launch_id(environ: Mapping[str, str] = os.environ) -> str:
    """Return a name of this start under SLURM, the same on all ranks and new for each start; else "by-hand"."""
    if "SLURM_STEP_ID" not in environ:
        return "by-hand"
    return "-".join((environ["SLURM_JOB_ID"], environ.get("SLURM_RESTART_COUNT", "0"), environ["SLURM_STEP_ID"]))


def publish(world: World, environ: MutableMapping[str, str] = os.environ) -> None:
    """Set the variables that torch.distributed, DeepSpeed and Accelerate read, whatever was there before.

    The address of several ranks stays where the launcher or the user has set it.

    Raises: ScalerError when the address of the first rank is unknown.
    """
    environ.update({name: str(value) for name, value in _facts(world).items()})
    if world.launcher != "torchrun":
        environ.pop(AGENT_STORE, None)
    given = environ.keys() >= {*ADDRESS}
    if world.size == 1 and not (given and world.launcher in GIVE_AN_ADDRESS):
        environ["MASTER_ADDR"], environ["MASTER_PORT"] = "127.0.0.1", str(free_port())
    elif not given:
        address, port = _meeting_point(world, environ)
        environ.setdefault("MASTER_ADDR", address)
        environ.setdefault("MASTER_PORT", port)
    if not 0 < _number(environ["MASTER_PORT"]) < 1 << 16:
        raise ScalerError(f"MASTER_PORT={environ['MASTER_PORT']}: a port from 1 to 65535 is needed")


def _meeting_point(world: World, environ: Mapping[str, str]) -> tuple[str, str]:
    if world.launcher == "srun":
        return slurm.first_host(environ), str(slurm.port(environ))
    if world.launcher in ("Open MPI", "MPICH or Intel MPI"):
        return mpi.meeting_point(world.size, LIMIT_SECONDS)
    raise ScalerError(
        f"MASTER_ADDR and MASTER_PORT are not both set for {world.size} ranks started by {world.launcher}; "
        "export the first node's address and a free port before the ranks start"
    )


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])

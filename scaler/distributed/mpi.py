"""Load the MPI that started this process, and agree on a meeting point of its ranks.

`python -m scaler.distributed.mpi RANKS`, run on each rank, prints the first host and a port that is free there; without
RANKS, how many ranks there are. It is a process of its own, because an MPI that does not fit its launcher aborts the
whole process.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Mapping, MutableMapping
from pathlib import Path
from typing import Any

from scaler.core.cli import command
from scaler.core.errors import ScalerError, one_line
from scaler.core.log import Reminder

logger = logging.getLogger(__name__)
# set by Open MPI's mpirun; by mpiexec of MPICH and Intel MPI, and srun --mpi=pmi2
SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
OF_PMIX = "PMIX_RANK"  # PMIx tells no size in the environment, and a shell that SLURM has started has it, too
VARIABLES = (*SIZES, OF_PMIX)
CHILD_SECONDS = 120


def ranks(environ: Mapping[str, str] = os.environ) -> int:
    """Return how many ranks the MPI has that started this process; 1 where none did, but its variables are inherited.

    Raises: ScalerError for a size that is no number.
    """
    for name in (*SIZES, *(["SLURM_STEP_NUM_TASKS"] if OF_PMIX in environ else [])):
        if value := environ.get(name):
            if not value.isdigit():
                raise ScalerError(f"{name}={value}: a number of ranks is needed; unset the variable")
            return int(value)
    return _size_in_a_child() if OF_PMIX in environ else 1


def _size_in_a_child() -> int:
    command = [sys.executable, "-m", __name__]
    try:
        done = subprocess.run(
            command, capture_output=True, encoding="utf-8", errors="replace", check=False, timeout=CHILD_SECONDS
        )
        return int(done.stdout)
    except (ValueError, subprocess.TimeoutExpired):
        logger.warning(f"{OF_PMIX} is set, but no MPI starts; it is taken for a variable that was inherited")
        return 1


def use_launchers_library(environ: MutableMapping[str, str] = os.environ) -> None:
    """Make mpi4py load the MPI that started this process; by itself it loads the first one that it finds.

    It must be called before mpi4py.MPI is imported. Variables that the user has set stay.
    """
    number = "40" if "OMPI_COMM_WORLD_SIZE" in environ else "12"  # of libmpi.so: Open MPI's, and MPICH's ABI
    own = Path(f"{sys.prefix}/lib/libmpi.so.{number}")
    environ.setdefault("MPI4PY_LIBMPI", f"{own}:{own.name}")
    if own.exists():
        # The mpich of pip, 5.0.2, would talk through UCX, and tells an address as 4 KiB of which most is whatever lies
        # behind it. SLURM's PMI cuts lines at 1,024 characters, so that now and then the ranks wait for ever.
        environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def load() -> Any:
    """Import mpi4py over the library of the MPI that started this process; return its module MPI.

    Raises: ScalerError when mpi4py or that library cannot be loaded.
    """
    use_launchers_library()
    try:
        with warnings.catch_warnings():  # about variables of another MPI; a wrong number of ranks is reported later
            warnings.simplefilter("ignore")
            from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # mpi4py raises the second for a missing or foreign library
        started = ", ".join(f"{name}={os.environ[name]}" for name in VARIABLES if name in os.environ)
        raise ScalerError(
            f"started by MPI ({started}), but mpi4py cannot be loaded ({one_line(error)}); load the MPI module of that "
            "launcher, use the mpiexec of `pip install '.[mpi]'`, or, where MPI started nothing, unset the variable"
        ) from error
    return MPI


def meeting_point(ranks: int, seconds: float) -> tuple[str, str]:
    """Return the host of the first rank and a port that is free there; every rank must call it within so many seconds.

    Raises: ScalerError when MPI does not know so many ranks, cannot be used, or does not answer.
    """
    asking = subprocess.Popen(
        [sys.executable, "-m", "scaler.distributed.mpi", str(ranks)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        close_fds=False,  # MPICH's ranks reach mpiexec through one of them
    )
    wait = Reminder()
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            said, problem = asking.communicate(timeout=1.0)
            break
        if wait.seconds > seconds:
            asking.kill()
            raise ScalerError(
                f"MPI does not know all {ranks} ranks after {seconds:g} s: some have not come; set MASTER_ADDR and "
                "MASTER_PORT"
            )
        if wait.is_due():
            logger.warning(f"waiting for {wait.seconds:.0f} s until MPI knows all {ranks} ranks")
    found = said.split()
    if asking.returncode or len(found) != 2:
        lines = problem.splitlines()
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), " ".join(lines))
        raise ScalerError(f"MPI cannot tell where the first rank is ({reason[-400:]}); set MASTER_ADDR and MASTER_PORT")
    return found[0], found[1]


@command
def agree() -> None:
    """Agree on the meeting point, and print it, or print how many ranks there are."""
    everyone = load().COMM_WORLD
    if len(sys.argv) == 1:
        print(everyone.Get_size())
        return
    if everyone.Get_size() != int(sys.argv[1]):
        raise ScalerError(
            f"mpi4py sees {everyone.Get_size()} of {sys.argv[1]} ranks: it uses another MPI than the launcher's"
        )
    # the name by which MPI reaches this host
    host = os.environ.get("PMI_HOSTNAME") or os.environ.get("PMIX_HOSTNAME") or socket.gethostname()
    with socket.socket() as probe:
        probe.bind(("", 0))
        print(*everyone.bcast((host, probe.getsockname()[1])))


if __name__ == "__main__":
    agree()

"""Load the MPI that started this process, and agree on a meeting point of its ranks.

`python -m scaler.distributed.mpi RANKS`, run on each rank, prints the first host and a port that is free there. It is a
process of its own, because an MPI that does not fit its launcher aborts the whole process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import warnings
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from scaler.core.cli import command
from scaler.core.errors import ScalerError, one_line

# set by Open MPI's mpirun; by mpiexec of MPICH and Intel MPI, and srun --mpi=pmi2; by PMIx
VARIABLES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMIX_RANK")


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


def meeting_point(ranks: int) -> tuple[str, str]:
    """Return the host of the first rank and a port that is free there; every rank must call it.

    Raises: ScalerError when MPI does not know so many ranks, or cannot be used.
    """
    done = subprocess.run(
        [sys.executable, "-m", "scaler.distributed.mpi", str(ranks)],
        capture_output=True,
        text=True,
        check=False,
        close_fds=False,  # MPICH's ranks reach mpiexec through one of them
    )
    found = done.stdout.split()
    if done.returncode or len(found) != 2:
        lines = done.stderr.splitlines()
        reason = next((line.removeprefix("error: ") for line in lines if line.startswith("error: ")), " ".join(lines))
        raise ScalerError(f"MPI cannot tell where the first rank is ({reason[-400:]}); set MASTER_ADDR and MASTER_PORT")
    return found[0], found[1]


@command
def agree() -> None:
    """Agree on the meeting point, and print it."""
    everyone, ranks = load().COMM_WORLD, int(sys.argv[1])
    if everyone.Get_size() != ranks:
        raise ScalerError(
            f"mpi4py sees {everyone.Get_size()} of {ranks} ranks: it uses another MPI than the launcher's"
        )
    # the name by which MPI reaches this host
    host = os.environ.get("PMI_HOSTNAME") or os.environ.get("PMIX_HOSTNAME") or socket.gethostname()
    with socket.socket() as probe:
        probe.bind(("", 0))
        print(*everyone.bcast((host, probe.getsockname()[1])))


if __name__ == "__main__":
    agree()

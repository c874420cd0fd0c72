"""Where ranks that MPI started can meet: `python -m scaler.distributed.mpi` on each prints the first host and a port.

It is a process of its own, for an MPI that does not fit aborts the whole process.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, MutableMapping
from pathlib import Path

from scaler.core.errors import ScalerError


def use_launchers_library(environ: MutableMapping[str, str] = os.environ) -> None:
    """Let mpi4py load the MPI that started this process; by itself it takes whichever it finds first.

    Must be called before mpi4py.MPI is imported. Settings of the user's stay.
    """
    number = "40" if "OMPI_COMM_WORLD_SIZE" in environ else "12"  # of libmpi.so: Open MPI's, and MPICH's ABI
    own = Path(f"{sys.prefix}/lib/libmpi.so.{number}")
    environ.setdefault("MPI4PY_LIBMPI", f"{own}:{own.name}")
    if own.exists():
        # The mpich of pip, 5.0.2, would talk through UCX, and tells an address as 4 KiB of which most is whatever lies
        # behind it. SLURM's PMI cuts lines at 1,024 characters, so that now and then the ranks wait for ever.
        environ.setdefault("MPIR_CVAR_CH4_NETMOD", "ofi")


def meeting_point(ranks: int) -> tuple[str, str]:
    """Host of the first rank and a port that is free there; every rank must call it.

    Raises: ScalerError when MPI does not know so many ranks, or cannot be used.
    """
    asked = subprocess.run(
        [sys.executable, "-m", "scaler.distributed.mpi", str(ranks)],
        capture_output=True,
        text=True,
        check=False,
        close_fds=False,  # through one of which MPICH's ranks speak to mpiexec
    )
    found = asked.stdout.split()
    if asked.returncode or len(found) != 2:
        said = " ".join(asked.stderr.split())[-300:]
        raise ScalerError(f"MPI cannot tell where the first rank is ({said}); set MASTER_ADDR and MASTER_PORT")
    return found[0], found[1]


def host_name(environ: Mapping[str, str] = os.environ) -> str:
    """This host, by the name that its MPI reaches it by."""
    return environ.get("PMI_HOSTNAME") or environ.get("PMIX_HOSTNAME") or socket.gethostname()


def agree() -> None:
    """Agree on the meeting point, and print it."""
    use_launchers_library()
    from mpi4py import MPI

    everyone, ranks = MPI.COMM_WORLD, int(sys.argv[1])
    if everyone.Get_size() != ranks:
        sys.exit(f"mpi4py sees {everyone.Get_size()} of {ranks} ranks: it uses another MPI than the launcher's")
    with socket.socket() as probe:
        probe.bind(("", 0))
        print(*everyone.bcast((host_name(), probe.getsockname()[1])))


if __name__ == "__main__":
    agree()

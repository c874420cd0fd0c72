"""Read the facts of the SLURM job of this process. Outside a job step SLURM is not called."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Mapping

FIRST_PORT, PORTS = 10000, 20000  # below 32768, where Linux's range of ports for clients begins


def step_hosts(environ: Mapping[str, str] = os.environ) -> list[str]:
    """Return the node of each rank of this job step; empty outside one, and where scontrol does not answer.

    Tasks are assumed to be distributed in blocks, which is srun's default.
    """
    listed, tasks = environ.get("SLURM_STEP_NODELIST"), environ.get("SLURM_STEP_TASKS_PER_NODE")
    if not listed or not tasks:
        return []
    try:
        found = subprocess.run(
            ["scontrol", "show", "hostnames", listed],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return []
    counts = tasks_per_node(tasks)
    return [host for host, count in zip(found.stdout.split(), counts, strict=True) for _ in range(count)]


def first_host(environ: Mapping[str, str] = os.environ) -> str:
    """Return the first node of this job step, where its rank 0 is, unless tasks are distributed arbitrarily.

    SLURM's short form is read here, because a container may have no scontrol.

    >>> first_host({"SLURM_STEP_NODELIST": "rack[0-1]n[03-05,9],login"})
    'rack0n03'
    """
    return re.sub(r"\[(\w+)[^\]]*\]", r"\1", environ["SLURM_STEP_NODELIST"]).split(",")[0]


def tasks_per_node(listed: str) -> list[int]:
    """Read SLURM's list of the tasks on each node. Raises ValueError for anything else.

    >>> tasks_per_node("4(x2),3")
    [4, 4, 3]
    """
    counts: list[int] = []
    for part in listed.split(","):
        matched = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if matched is None:
            raise ValueError(f"{listed!r} is no list of tasks per node as SLURM writes it")
        counts += [int(matched[1])] * int(matched[2] or 1)
    return counts


def port(environ: Mapping[str, str] = os.environ) -> int:
    """Return a port for this job step, from the numbers of job and step, so that steps on one node differ."""
    step = environ.get("SLURM_STEP_ID", "0")
    return FIRST_PORT + (int(environ["SLURM_JOB_ID"]) * 7 + (int(step) if step.isdigit() else 0)) % PORTS


def job_facts(environ: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the job's number, name and how often it was requeued; empty outside a job."""
    names = {"id": "SLURM_JOB_ID", "name": "SLURM_JOB_NAME", "requeued": "SLURM_RESTART_COUNT"}
    return {key: environ[name] for key, name in names.items() if name in environ and "SLURM_JOB_ID" in environ}


def node_name(environ: Mapping[str, str] = os.environ) -> str:
    """Return SLURM's name of this machine: the host's own name may be longer, and unknown to scontrol."""
    return environ.get("SLURMD_NODENAME") or platform.node()


def is_running(job: str) -> bool | None:
    """Return whether SLURM has this job running now; None where SLURM does not answer."""
    try:
        found = subprocess.run(
            ["squeue", "--noheader", "--format=%T", "--jobs", job],
            capture_output=True,
            encoding="utf-8",
            errors="replace",
            check=True,
            timeout=30,
        )
    except subprocess.CalledProcessError as error:
        return False if "Invalid job id" in error.stderr else None  # which it says of jobs that are long over
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() in ("RUNNING", "COMPLETING", "SUSPENDED")

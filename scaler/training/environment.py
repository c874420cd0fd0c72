"""Record what ran: versions, commit, hosts and devices of a start."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch

from scaler.core import limits, slurm, switches
from scaler.core.provenance import commit, processor, versions
from scaler.distributed.world import World


def facts(world: World, hosts: Sequence[str]) -> dict[str, Any]:
    """Return what a result may depend on and no recipe says: versions, commit, and the hosts of all ranks."""
    return {
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": sys.argv,
        "commit": commit(),
        "python": platform.python_version(),
        "packages": versions(),
        "patches": switches.outcomes(),
        "cuda": torch.version.cuda,
        "ranks": world.size,
        "launcher": world.launcher,
        "slurm": slurm.job_facts(),
        "hosts": {host: hosts.count(host) for host in sorted(set(hosts))},
        "system": platform.platform(),
        "processor": processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "memory_bytes": limits.total_memory(),
        "cores": limits.cores(),
        "threads_a_rank": torch.get_num_threads(),
    }

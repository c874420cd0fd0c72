"""The table of all replacements of library code: where each applies, and on which source it depends.

Each module's docstring says what is replaced and why, which versions were tried, the measured gain, the way upstream
and the test. `SCALER_PATCHES` switches them (scaler/core/switches.py); what was applied is in a run's environment.json.
A patch of DeepSpeed is installed only where the source of what it replaces is one that was tried.
"""

from __future__ import annotations

import functools
import inspect
import logging
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import deepspeed
import torch
import xxhash

from scaler.core import switches

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patch:
    """A replacement of library code, and where it applies.

    Attributes:
        module: has its head and its code.
        stages: of ZeRO.
        with_offload: it also applies where optimizer state is offloaded.
        replaces: what is replaced, or must behave as it did for the replacement to be right.
        tried: xxh3 of the source of `replaces`, of every version that was tried.
    """

    module: str
    stages: tuple[int, ...] = (0, 1, 2, 3)
    with_offload: bool = True
    replaces: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()


_ZERO = "deepspeed.runtime.zero.stage_1_and_2:DeepSpeedZeroOptimizer"
_BACKEND = "deepspeed.comm.torch:TorchBackend"

PATCHES = {
    "attention": Patch("scaler.model.kernels.attention"),
    "dropout": Patch("scaler.model.kernels.dropout"),
    "wide_head": Patch("scaler.model.kernels.cross_entropy"),
    "sparse_lookup": Patch("scaler.model.kernels.sparse_lookup"),
    "gradient_norm": Patch(
        "scaler.engine.patches.gradient_norm",
        stages=(1, 2),
        with_offload=False,
        replaces=(f"{_ZERO}.scaled_global_norm", f"{_ZERO}.has_overflow", f"{_ZERO}.step"),
        tried=("aa9f4f54e3cde523",),  # DeepSpeed 0.19.8
    ),
    "direct_collectives": Patch(
        "scaler.engine.patches.direct_collectives",
        replaces=(
            f"{_BACKEND}.all_gather_into_tensor",
            f"{_BACKEND}.reduce_scatter_tensor",
            f"{_ZERO}.allreduce_and_scatter",
            f"{_ZERO}.average_tensor",
        ),
        tried=("65cb4e2b715a0fa0",),  # DeepSpeed 0.19.8
    ),
    "allocator": Patch("scaler.engine.patches.allocator"),
}


@functools.cache
def fingerprint(name: str) -> str:
    """Return the xxh3 of the source of what a patch replaces."""
    state = xxhash.xxh3_64()
    for replaced in PATCHES[name].replaces:
        try:
            state.update(
                inspect.getsource(_undecorated(pkgutil.resolve_name(replaced), replaced.rpartition(".")[2])).encode()
            )
        except (ImportError, AttributeError, OSError):
            return f"no {replaced.replace(':', '.')}"
    return state.hexdigest()


def _undecorated(function: Any, name: str) -> Any:
    """Return the function of this name in its decorators' wrappers, of which some do not use functools.wraps."""
    for cell in getattr(function, "__closure__", None) or ():
        if inspect.isfunction(cell.cell_contents) and cell.cell_contents.__name__ == name:
            return _undecorated(cell.cell_contents, name)
    return function


def is_known(name: str) -> bool:
    """Return True where the source of what a patch replaces is one that was tried."""
    return not PATCHES[name].replaces or fingerprint(name) in PATCHES[name].tried


def apply(
    name: str, install: Callable[[], str | None], device: torch.device, stage: int | None = None, offload: bool = False
) -> bool:
    """Install a patch of DeepSpeed or of the process where it is switched on, applies, and fits the library's source.

    All were measured on CPUs alone. The kernels of a model are installed by scaler/model/masked_lm.py.

    Args:
        install: installs it, or returns why it cannot.
        stage: of ZeRO; None where it does not matter.
        offload: optimizer state is offloaded.

    Returns: True where it is installed.
    """
    patch, against = PATCHES[name], None
    if device.type != "cpu":
        against = f"not measured on {device.type}"
    elif stage is not None and stage not in patch.stages:
        against = f"not for ZeRO-{stage}"
    elif offload and not patch.with_offload:
        against = "not with offload"
    elif not is_known(name):
        against = f"unknown source of deepspeed {deepspeed.__version__} ({fingerprint(name)})"
        is_first = not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0
        if is_first and name in switches.switched_on():
            logger.warning(f"{name}: {against}; DeepSpeed's own code runs, which is correct and slower")
    return switches.apply(name, install, against)


def usable() -> list[str]:
    """Return the patches that are switched on and fit the libraries' source; it must be the same on every rank."""
    return sorted(name for name in switches.switched_on() if is_known(name))

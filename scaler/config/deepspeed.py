"""DeepSpeed's JSON: read, checked against the recipe, and its "auto" values filled in. Needs no DeepSpeed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from scaler.config.recipe import Recipe
from scaler.core.errors import ScalerError, nearest

# Top-level keys of DeepSpeed's JSON (its documentation, "DeepSpeed Configuration JSON"). DeepSpeed itself takes an
# unknown top-level key in silence. Keys of sections it checks itself.
KNOWN_KEYS = frozenset(
    [
        *("activation_checkpointing", "aio", "autotuning", "bf16", "checkpoint", "comms_logger"),
        *("communication_data_type", "compression_training", "csv_monitor", "curriculum_learning", "data_efficiency"),
        *("data_types", "disable_allgather", "dump_state", "elasticity", "flops_profiler"),
        *("gradient_accumulation_steps", "gradient_clipping", "gradient_predivide_factor", "memory_breakdown"),
        *("nebula", "prescale_gradients", "seq_parallel_communication_data_type", "sparse_attention"),
        *("sparse_gradients", "steps_per_print", "tensorboard", "timers", "torch_autocast", "train_batch_size"),
        *("train_micro_batch_size_per_gpu", "use_data_before_expert_parallelism", "wall_clock_breakdown", "wandb"),
        *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization"),
    ]
)
OWNED_BY_RECIPE = {"optimizer": "the optimizer section", "scheduler": "the schedule section", "amp": "no section"}


@dataclass(frozen=True)
class SolvedBatch:
    """A global batch taken apart: rows = micro_rows * accumulation * ranks."""

    rows: int
    micro_rows: int
    accumulation: int
    ranks: int


def solve_batch(rows: int, ranks: int, max_micro_rows: int) -> SolvedBatch:
    """Find the largest micro-batch that fits and the accumulation that makes up the rest.

    Args:
        rows: the recipe's global batch.
        ranks: world size.
        max_micro_rows: rows that one rank takes at once.

    Raises: ScalerError with the nearest possible batches and world sizes when `ranks` does not divide `rows`.
    """
    if rows % ranks:
        below, above = rows - rows % ranks, rows + ranks - rows % ranks
        batches = " or ".join(str(batch) for batch in (below, above) if batch)
        worlds = [n for n in range(1, rows + 1) if rows % n == 0]
        close = sorted(sorted(worlds, key=lambda n: abs(n - ranks))[:3])
        raise ScalerError(
            f"training.rows={rows} cannot be shared equally by {ranks} ranks; "
            f"use training.rows={batches}, or one of {', '.join(map(str, close))} ranks"
        )
    per_rank = rows // ranks
    micro_rows = next(n for n in range(min(per_rank, max_micro_rows), 0, -1) if per_rank % n == 0)
    return SolvedBatch(rows, micro_rows, per_rank // micro_rows, ranks)


def bf16_is_native(device: torch.device) -> bool:
    """True where bf16 matrix multiplications run on hardware; emulated on a CPU they are a hundred times slower."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16") or abilities.get("bf16"))


def read(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON. Raises ScalerError when it is missing, no JSON, or has an unknown key."""
    if not path.is_file():
        raise ScalerError(f"--deepspeed_config {path}: no such file; ds_configs/ has some")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScalerError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ScalerError(f"{path}: a JSON object is needed")
    for name in content:
        if name not in KNOWN_KEYS | set(OWNED_BY_RECIPE) | {"fp16"}:
            raise ScalerError(f"{path}: unknown key {name!r}; {nearest(name, KNOWN_KEYS)}")
    for name in ("bf16", "fp16", "zero_optimization"):
        if not isinstance(content.get(name, {}), dict):
            raise ScalerError(f"{path}: {name}={content[name]!r}, but an object of settings is needed")
    return content


def resolve(
    content: dict[str, Any], path: Path, recipe: Recipe, batch: SolvedBatch, native_bf16: bool
) -> dict[str, Any]:
    """Fill in every "auto" from the recipe and the hardware, and refuse what contradicts the recipe.

    Args:
        content: what `read` gave for `path`.
        recipe, batch: the experiment, and its batch as solved for this world size.
        native_bf16: what "auto" means for `bf16.enabled`.

    Returns: a configuration without "auto", ready for DeepSpeed.
    """
    _refuse(content, path, recipe)
    resolved = {name: value for name, value in content.items() if name != "fp16"}
    solved = {
        "train_batch_size": (batch.rows, "training.rows"),
        "train_micro_batch_size_per_gpu": (batch.micro_rows, "training.rows and training.max_micro_rows"),
        "gradient_accumulation_steps": (batch.accumulation, "training.rows and training.max_micro_rows"),
    }
    for name, (value, owner) in solved.items():
        given = resolved.get(name, "auto")
        if given not in ("auto", value):
            raise ScalerError(
                f"{path}: {name}={given!r}, but the recipe's {owner} make it {value} on {batch.ranks} ranks; "
                f'write "auto" here, or change the recipe'
            )
        resolved[name] = value
    bf16 = dict(resolved.get("bf16", {}))
    if bf16.get("enabled", False) == "auto":
        bf16["enabled"] = native_bf16
    if bf16.get("enabled", False) not in (True, False):
        raise ScalerError(f'{path}: bf16.enabled={bf16["enabled"]!r}, but true, false or "auto" is needed')
    resolved["bf16"] = bf16
    clipping = resolved.get("gradient_clipping", 0.0)
    if isinstance(clipping, bool) or not isinstance(clipping, int | float) or clipping < 0:
        raise ScalerError(f"{path}: gradient_clipping={clipping!r}, but a number from 0 on is needed")
    stage = resolved.get("zero_optimization", {}).get("stage", 0)
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ScalerError(f"{path}: zero_optimization.stage={stage!r}, but ZeRO has the stages 0, 1, 2 and 3")
    left = _autos(resolved)
    if left:
        raise ScalerError(f'{path}: {left[0]} is "auto", but nothing decides it; give it a value')
    return resolved


def _refuse(content: dict[str, Any], path: Path, recipe: Recipe) -> None:
    """Raises ScalerError for settings that have another home, or that give wrong results."""
    for name, owner in OWNED_BY_RECIPE.items():
        if name in content:
            raise ScalerError(f"{path}: {name!r} belongs to {owner} of the recipe ({recipe.name}); remove it here")
    if content.get("fp16", {}).get("enabled"):
        raise ScalerError(f"{path}: fp16 is not supported, for it needs loss scaling; use bf16, or fp32")
    zero = content.get("zero_optimization", {})
    if zero.get("round_robin_gradients"):
        raise ScalerError(f"{path}: round_robin_gradients gives wrong weights on export (DeepSpeed 0.19); remove it")
    for name in ("offload_optimizer", "offload_param"):
        if (zero.get(name) or {}).get("device") == "nvme":
            raise ScalerError(f"{path}: {name}.device='nvme', but checkpoints cannot read state from there; use 'cpu'")
    for name in ("mics_shard_size", "zero_hpz_partition_size"):
        if zero.get(name, 1) not in (-1, 1):
            raise ScalerError(f"{path}: {name}={zero[name]!r}, but checkpoints do not know such shards; remove it")
    if zero.get("compute_grad_norm") is False:
        raise ScalerError(f"{path}: compute_grad_norm=false leaves no norm, by which bad batches are told; remove it")
    if content.get("bf16", {}).get("check_grad_overflow") is False:
        raise ScalerError(f"{path}: bf16.check_grad_overflow=false lets bad gradients into the weights; remove it")


def _autos(content: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in content.items():
        if value == "auto":
            found.append(prefix + name)
        elif isinstance(value, dict):
            found += _autos(value, f"{prefix}{name}.")
    return found


def zero_stage(resolved: dict[str, Any]) -> int:
    """The ZeRO stage, 0 if the configuration does not speak of it."""
    return int(resolved.get("zero_optimization", {}).get("stage", 0))

"""DeepSpeed's JSON: read, checked against the recipe, and its "auto" values filled in. Needs no DeepSpeed."""

from __future__ import annotations

import json
from math import ceil
from pathlib import Path
from typing import Any

from scaler.config.batch import SolvedBatch
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


# The state that an optimizer keeps for each weight, by its own names.
STATE_KINDS: dict[str, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}

PREFETCHED = 50_000_000  # stage3_prefetch_bucket_size, in numbers
REUSE_DISTANCE = 1_000_000_000  # stage3_max_reuse_distance: a smaller model's weights stay until its backward pass

FP32_BYTES = 4
PRECISIONS = ("fp32", "fp16", "bf16")

FP32, FP64 = 4, 8
GATHERED_AT_ONCE = 500_000_000  # gradients that stage 0 lays end to end to reduce them (engine.py of DeepSpeed)
PERSISTENT = 100_000  # stage3_param_persistence_threshold: parameters up to it stay whole
STATES = {"adamw": 2, "sgd": 1}  # fp32 numbers that an optimizer keeps for each weight


def straight_to_owners(ranks: int, trained: int, bucket: int) -> bool:
    """On CPUs, whether a bucket's gradients had better be sent to their owners than all-reduced.

    A bucket's owner gets its part from all other ranks, one bucket after the other, while a ring keeps all of them
    busy: with more ranks than two, and more buckets than two, most would wait for one.
    """
    return ranks <= 2 or ceil(trained / bucket) <= 2


def precision_of(content: dict[str, Any], native_bf16: bool) -> str:
    """What a DeepSpeed configuration computes in, "bf16" or "fp32", on hardware that has bf16 or has not."""
    enabled = content.get("bf16", {}).get("enabled", False)
    return "bf16" if enabled is True or (enabled == "auto" and native_bf16) else "fp32"


DEFAULT_DS_CONFIG = Path(__file__).resolve().parents[2] / "ds_configs" / "zero2.json"


def precision(resolved: dict[str, Any]) -> str:
    """Of the forward pass: "bf16" or "fp32"."""
    return "bf16" if resolved["bf16"].get("enabled") else "fp32"

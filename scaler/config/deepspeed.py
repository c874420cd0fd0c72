"""DeepSpeed's JSON: read, checked against the recipe, and its "auto" values filled in. Needs no DeepSpeed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil, isfinite
from pathlib import Path
from typing import Any

from scaler.config.batch import SolvedBatch
from scaler.config.recipe import Recipe
from scaler.config.training_sections import Optimizer
from scaler.core.errors import ScalerError, nearest

DEFAULT_DS_CONFIG = Path(__file__).resolve().parents[2] / "ds_configs" / "zero2.json"

# Keys with which this project was run: those of ds_configs, and those of tests/end_to_end/test_ds_keys.py, which
# compares losses with and without them. A section that is not here was not tried at all.
TRIED_KEYS: dict[str, frozenset[str]] = {
    "": frozenset(
        [
            *("bf16", "comms_logger", "data_types", "dump_state", "fp16", "gradient_accumulation_steps"),
            *("gradient_clipping", "memory_breakdown"),
            *("steps_per_print", "train_batch_size", "train_micro_batch_size_per_gpu", "wall_clock_breakdown"),
            *("zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization"),
        ]
    ),
    "bf16": frozenset(["enabled", "check_grad_overflow"]),
    "fp16": frozenset(["enabled"]),
    "comms_logger": frozenset(["enabled", "verbose"]),
    "data_types": frozenset(["grad_accum_dtype"]),
    "zero_optimization": frozenset(
        [
            *("stage", "allgather_bucket_size", "allgather_partitions", "compute_grad_norm", "contiguous_gradients"),
            *("offload_optimizer", "offload_param", "overlap_comm", "reduce_bucket_size", "reduce_scatter"),
            *("stage3_gather_16bit_weights_on_model_save", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
            *("stage3_param_persistence_threshold", "stage3_prefetch_bucket_size", "sub_group_size"),
            *("use_multi_rank_bucket_allreduce", "round_robin_gradients", "mics_shard_size", "zero_hpz_partition_size"),
        ]
    ),
    "zero_optimization.offload_optimizer": frozenset(["device", "pin_memory"]),
    "zero_optimization.offload_param": frozenset(["device", "pin_memory"]),
}

# And other top-level keys of DeepSpeed's JSON (its documentation, "DeepSpeed Configuration JSON"). DeepSpeed takes an
# unknown top-level key in silence. Keys of sections it checks itself.
KNOWN_KEYS = TRIED_KEYS[""] | {
    *("activation_checkpointing", "aio", "autotuning", "checkpoint", "communication_data_type", "compression_training"),
    *("csv_monitor", "curriculum_learning", "data_efficiency", "disable_allgather", "elasticity", "flops_profiler"),
    *("gradient_predivide_factor", "nebula", "prescale_gradients", "seq_parallel_communication_data_type"),
    *("sparse_attention", "sparse_gradients", "tensorboard", "timers", "torch_autocast"),
    *("use_data_before_expert_parallelism", "wandb"),
}
OWNED_BY_RECIPE = {"optimizer": "the optimizer section", "scheduler": "the schedule section", "amp": "no section"}

# ---- what DeepSpeed does where its configuration is silent

BUCKET = 500_000_000  # reduce_bucket_size, in numbers
PREFETCHED = 50_000_000  # stage3_prefetch_bucket_size, in numbers
REUSE_DISTANCE = 1_000_000_000  # stage3_max_reuse_distance: a smaller model's weights stay until its backward pass
PERSISTENT = 100_000  # stage3_param_persistence_threshold: parameters up to this size stay whole
GATHERED_AT_ONCE = 500_000_000  # gradients that stage 0 lays end to end to reduce them (engine.py of DeepSpeed)

# ---- bytes of a number

FP32_BYTES, FP64_BYTES = 4, 8
WEIGHT_BYTES = {"bf16": 2, "fp32": FP32_BYTES}  # of the forward pass, by precision


def read(path: Path) -> dict[str, Any]:
    """Read a DeepSpeed JSON. Raises ScalerError when it is missing, no JSON, or has an unknown key or a wrong type."""
    if not path.is_file():
        known = ", ".join(sorted(known.stem for known in DEFAULT_DS_CONFIG.parent.glob("*.json")))
        raise ScalerError(f"--deepspeed_config {path}: no such file; known by name are {known}")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ScalerError(f"{path}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ScalerError(f"{path}: a JSON object is needed")
    for name in content:
        if name not in KNOWN_KEYS | set(OWNED_BY_RECIPE):
            raise ScalerError(f"{path}: unknown key {name!r}; {nearest(name, KNOWN_KEYS)}")
    for name in ("bf16", "fp16", "zero_optimization"):
        if not isinstance(content.get(name, {}), dict):
            raise ScalerError(f"{path}: {name}={content[name]!r}, but an object of settings is needed")
    _check_zero(content.get("zero_optimization", {}), path)
    return content


def _check_zero(zero: dict[str, Any], path: Path) -> None:
    """Check the types of what the plan reads of `zero_optimization`. Raises ScalerError."""
    stage, bucket = zero.get("stage", 0), zero.get("reduce_bucket_size", "auto")
    if isinstance(stage, bool) or stage not in (0, 1, 2, 3):
        raise ScalerError(f"{path}: zero_optimization.stage={stage!r}, but ZeRO has the stages 0, 1, 2 and 3")
    if bucket != "auto" and not (_is_number(bucket) and bucket >= 1):
        raise ScalerError(f"{path}: zero_optimization.reduce_bucket_size={bucket!r}, but a number from 1 on is needed")
    for name in ("offload_optimizer", "offload_param"):
        if not isinstance(zero.get(name) or {}, dict):
            raise ScalerError(
                f"{path}: zero_optimization.{name}={zero[name]!r}, but an object of settings is needed, such as "
                '{"device": "cpu"}'
            )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)


def resolve(
    content: dict[str, Any],
    path: Path,
    recipe: Recipe,
    batch: SolvedBatch,
    native_bf16: bool,
    allow_untested: bool = False,
) -> dict[str, Any]:
    """Fill in every "auto" from the recipe and the hardware, and refuse what contradicts the recipe.

    Args:
        content: what `read` returned for `path`.
        recipe, batch: the experiment, and its batch as solved for this world size.
        native_bf16: the value of "auto" for `bf16.enabled`.
        allow_untested: accept keys that this project was never run with.

    Returns: a configuration without "auto", ready for DeepSpeed.
    """
    check(content, path, recipe, allow_untested)
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
    if not (_is_number(clipping) and clipping >= 0):
        raise ScalerError(f"{path}: gradient_clipping={clipping!r}, but a number from 0 on is needed")
    left = _autos(resolved)
    if left:
        raise ScalerError(f'{path}: {left[0]} is "auto", but nothing decides it; give it a value')
    return resolved


def check(content: dict[str, Any], path: Path, recipe: Recipe, allow_untested: bool = False) -> None:
    """Raise ScalerError for settings that belong elsewhere, that give wrong results, or that were never tried."""
    for name, owner in OWNED_BY_RECIPE.items():
        if name in content:
            raise ScalerError(f"{path}: {name!r} belongs to {owner} of the recipe ({recipe.name}); remove it here")
    if content.get("fp16", {}).get("enabled"):
        raise ScalerError(f"{path}: fp16 is not supported because it needs loss scaling; use bf16, or fp32")
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
        raise ScalerError(f"{path}: compute_grad_norm=false leaves no norm that shows bad batches; remove it")
    if content.get("bf16", {}).get("check_grad_overflow") is False:
        raise ScalerError(f"{path}: bf16.check_grad_overflow=false lets bad gradients into the weights; remove it")
    untested = untested_keys(content)
    if untested and not allow_untested:
        raise ScalerError(_describe_untested(untested, path))


def untested_keys(content: Mapping[str, Any], section: str = "") -> list[str]:
    """List the keys of a DeepSpeed configuration that this project was never run with, as "section.key"."""
    found = []
    for name, value in content.items():
        key = f"{section}.{name}" if section else name
        if name not in TRIED_KEYS[section] and not (section == "" and name in OWNED_BY_RECIPE):
            found.append(key)
        elif isinstance(value, dict) and key in TRIED_KEYS:
            found += untested_keys(value, key)
    return found


def _describe_untested(untested: list[str], path: Path) -> str:
    section, _, name = untested[0].rpartition(".")
    hint = nearest(name, TRIED_KEYS[section])
    meant = f"{hint} Otherwise " if hint.startswith("did you mean") else ""
    them = "them" if len(untested) > 1 else "it"
    return (
        f"{path}: {', '.join(untested)}: this project was never run with {them}; {meant}remove {them}, or add "
        "--allow_untested_ds_keys"
    )


def _autos(content: dict[str, Any], prefix: str = "") -> list[str]:
    found = []
    for name, value in content.items():
        if value == "auto":
            found.append(prefix + name)
        elif isinstance(value, dict):
            found += _autos(value, f"{prefix}{name}.")
    return found


def zero_stage(content: dict[str, Any]) -> int:
    """Return the ZeRO stage; 0 if the configuration has none."""
    return int(content.get("zero_optimization", {}).get("stage", 0))


def precision_of(content: dict[str, Any], native_bf16: bool = False) -> str:
    """Return the precision of the forward pass, "bf16" or "fp32".

    Args:
        content: a configuration as read, or as resolved.
        native_bf16: the value of "auto", which a resolved one no longer has.
    """
    enabled = content.get("bf16", {}).get("enabled", False)
    return "bf16" if (native_bf16 if enabled == "auto" else enabled) else "fp32"


def optimizer_state(settings: Optimizer) -> tuple[str, ...]:
    """Return the names of the fp32 tensors that an optimizer keeps for each weight, as PyTorch calls them."""
    if settings.name == "adamw":
        return ("exp_avg", "exp_avg_sq")
    return ("momentum_buffer",) if settings.momentum else ()


def straight_to_owners(ranks: int, trained: int, bucket: int) -> bool:
    """Decide whether CPU ranks send a bucket's gradients to their owners instead of an all-reduce.

    A bucket's owner receives its part from all other ranks, one bucket after the other, while a ring all-reduce keeps
    all ranks busy. With more than two ranks and more than two buckets, most ranks would wait for one.
    """
    return ranks <= 2 or ceil(trained / bucket) <= 2

"""Predict whether recipes fit on GPUs, and with which micro-batch."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from typing import Any

import yaml

from scaler.config import deepspeed as ds_config
from scaler.config.batch import batches, solve_batch
from scaler.config.deepspeed import precision_of
from scaler.config.recipe import load
from scaler.core.errors import ScalerError, nearest
from scaler.planning import hardware
from scaler.planning.memory import Sharding, memory_of_step


def gpu_memory_table(recipes: Sequence[str], gpus: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Return what each recipe takes of each kind of GPU, alone and on a node of eight, with the default configuration.

    Args:
        recipes: names or files.
        gpus: names of devices in hardware.yaml; all of them by default.

    Returns: a row for each recipe, number of GPUs and kind of GPU, with the keys `recipe`, `gpus`, `gpu`, `gpu_bytes`,
        `precision`, `micro_rows` and `accumulation` (as the recipe's training has them), `peak_bytes` (of a GPU),
        `fits`, and `most_micro_rows`, the largest micro-batch that fits (0 where none does).

    Raises: ScalerError for an unknown GPU.
    """
    from scaler.planning.workload import workload

    devices = yaml.safe_load(hardware.TABLE.read_text(encoding="utf-8"))["devices"]
    content = ds_config.read(ds_config.DEFAULT_DS_CONFIG)
    rows = []
    for gpu in gpus or devices:
        if gpu not in devices:
            raise ScalerError(f"no known GPU {gpu!r}; {nearest(gpu, devices)}")
    for recipe in map(load, recipes):
        work_of = functools.cache(functools.partial(workload, recipe))  # by the bytes of a weight
        for ranks, gpu in itertools.product((1, 8), gpus or devices):
            precision, capacity = precision_of(content, devices[gpu]["bf16"] is not None), devices[gpu]["memory"] * 1e9
            sharding = Sharding.from_ds_config(content, precision)
            work = work_of(sharding.width)
            peaks = {}
            for batch in batches(work.rows, ranks):
                taken, step = work.activations(batch.micro_rows), sharding.of_batch(batch, work.states)
                peaks[batch] = memory_of_step(work.layout, taken, step).peak
            batch = solve_batch(work.rows, ranks, recipe.training.max_micro_rows)
            rows.append(
                {
                    **{"recipe": recipe.name, "gpus": ranks, "gpu": gpu, "gpu_bytes": capacity},
                    **{"precision": precision, "micro_rows": batch.micro_rows, "accumulation": batch.accumulation},
                    **{"peak_bytes": peaks[batch], "fits": peaks[batch] <= capacity},
                    "most_micro_rows": max((b.micro_rows for b, peak in peaks.items() if peak <= capacity), default=0),
                }
            )
    return rows

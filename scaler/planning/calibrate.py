"""Measure what the plan assumes of a node: speed, memory, links."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import yaml

from scaler.config import deepspeed as ds_config
from scaler.config import typed
from scaler.config.batch import SolvedBatch
from scaler.config.recipe import Recipe, load
from scaler.core import limits
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import write_whole
from scaler.data.batches import Batch
from scaler.distributed import collectives, devices, links, local_ranks
from scaler.distributed.devices import now
from scaler.distributed.links import MOST_NUMBERS
from scaler.distributed.world import World
from scaler.engine import engine, process_group
from scaler.model import build, masked_lm
from scaler.planning import communication, hardware, step_time, workload
from scaler.planning.hardware import Hardware
from scaler.training.faults import NORMAL_DEVIATION

ACCUMULATION = 2  # micro-batches of a step here: enough for what the second one does differently
WARMUP = 2  # steps of each size
PATIENCE = 60.0  # seconds that two processes of a node wait for each other
UNLIMITED = 1e12  # bytes a second of a network that is not known, or adds nothing to what the cores take


@dataclass(frozen=True)
class Alone:
    """The measurements of one rank that runs alone.

    Attributes:
        micro_seconds: of every micro-batch, by its rows; all measured ones.
        update_seconds: of the optimizer steps.
        memory_bytes: of the device, for this rank.
    """

    micro_seconds: dict[int, list[float]]
    update_seconds: list[float]
    memory_bytes: float


def random_batch(rows: int, config: Any, recipe: Recipe) -> Batch:
    """Return random tokens, two documents in each row, because packed rows have several."""
    seq_len, entries = recipe.data.seq_len, config.vocab_size
    masked = recipe.masked_per_row(0.5)
    segments = torch.ones((rows, seq_len), dtype=torch.int64)
    segments[:, seq_len // 2 :] = 2
    return Batch.of_documents(
        torch.randint(5, entries, (rows, seq_len)),
        segments,
        torch.arange(masked).expand(rows, -1).contiguous(),
        torch.randint(5, entries, (rows, masked)),
        build.first_position(config),
    )


def alone(world: World, recipe: Recipe, resolved: dict[str, Any], sizes: Sequence[int], seconds: float) -> Alone:
    """Time steps of the engine on this rank's device, with micro-batches of each of the `sizes` in rows.

    The world has one rank. DeepSpeed uses all ranks that its process knows, so this is called in a process of its own.
    """
    process_group.join(world)
    device, config = devices.device(world), workload.configuration(recipe)
    network = masked_lm.MaskedLM(build.from_recipe(recipe, config).train())
    running = engine.Engine(network.to(device), recipe.optimizer, resolved)
    batches = {rows: random_batch(rows, config, recipe).to(device) for rows in sizes}
    micro: dict[int, list[float]] = {rows: [] for rows in sizes}
    updates: list[float] = []
    taken, end = 0, math.inf
    while taken < 2 * WARMUP or time.perf_counter() < end:
        if taken == WARMUP:
            end = time.perf_counter() + seconds
        for rows, batch in batches.items():
            spent, update = _step(running, batch, device)
            if taken >= WARMUP:
                micro[rows].append((spent - update) / ACCUMULATION)
                updates.append(update)
        taken += 1
    if device.type == "cuda":
        memory = float(torch.cuda.get_device_properties(device).total_memory)
    else:
        memory = limits.total_memory() / world.local_size
    process_group.leave()
    return Alone(micro, updates, memory)


def _step(running: engine.Engine, batch: Batch, device: torch.device) -> tuple[float, float]:
    """Return the seconds of a step, and of its update."""
    start = update = now(device)
    for number in range(ACCUMULATION):
        loss, _ = running(batch)
        running.backward(loss)
        if number == ACCUMULATION - 1:
            update = now(device)
        running.step(1e-6)
    end = now(device)
    return end - start, end - update


def fitted(found: Sequence[Alone], flops_per_row: float) -> dict[str, float]:
    """Return operations a second, overhead of a micro-batch, seconds of an update, and spread: medians over the ranks.

    Two sizes of micro-batch give a line through their medians: its slope is a row's time, and what is left at no rows
    is a micro-batch's. The spread is that of a rank's micro-batches around their median, by the median absolute
    deviation, which single late ones do not move.
    """
    by_rank = []
    for rank in found:
        (few, least), (many, most) = ((rows, statistics.median(times)) for rows, times in rank.micro_seconds.items())
        row = (most - least) / (many - few)
        if row <= 0:
            raise ScalerError(
                f"a micro-batch of {many} rows took {most:.3g} s, and one of {few} took {least:.3g} s: other programs "
                "disturb it, or --rows are too close; try again with --rows farther apart or more --seconds"
            )
        times = rank.micro_seconds[many]
        deviation = statistics.median(abs(value - most) for value in times)
        by_rank.append(
            {
                "flops": flops_per_row / row,
                "micro_seconds": max(0.0, least - few * row),
                "update": statistics.median(rank.update_seconds),
                "spread": NORMAL_DEVIATION * deviation / most,
            }
        )
    return {key: statistics.median(rank[key] for rank in by_rank) for key in by_rank[0]}


def links_of(world: World, numbers: int) -> dict[str, float]:
    """Return latency and bandwidths as the hardware's keys, for gradients of so many numbers. Collective."""
    device = devices.device(world)
    hosts = collectives.all_gather(os.uname().nodename, world)
    seconds, bandwidths = links.measure_sustained(hosts, world.rank, numbers, device)
    return {"latency": seconds / communication.hops("all_reduce", world.size, device.type == "cpu"), **bandwidths}


def without_cores(found: dict[str, float]) -> dict[str, float]:
    """Return the links of ranks on CPUs with the network alone in `between`, without the time that the cores take."""
    if "between" not in found:
        return found
    share = 1 / found["between"] - 1 / found["inside"]
    return {**found, "between": 1 / share if share > 1 / UNLIMITED else UNLIMITED}


def _links_of_two(world: World, numbers: int) -> dict[str, float]:
    """Measure the links as one of two processes."""
    torch.set_num_threads(1)
    process_group.join(world, PATIENCE)
    found = links_of(world, numbers)
    process_group.leave()
    return found


def measure(arguments: argparse.Namespace, world: World) -> Hardware | None:
    """Measure everything; every rank must call it. Return None on all but the first rank."""
    recipe, device = load(arguments.recipe, arguments.overrides), devices.device(world)
    most = max(2, min(recipe.training.max_micro_rows, recipe.training.rows))
    sizes = arguments.rows or (max(1, most // 4), most)
    batch, path = SolvedBatch(sizes[0] * ACCUMULATION, sizes[0], ACCUMULATION, 1), arguments.deepspeed_config
    allowed, native = arguments.allow_untested_ds_keys, devices.bf16_is_native(device)
    resolved = ds_config.resolve(ds_config.read(path), path, recipe, batch, native, allowed)
    base = hardware.load(arguments.hardware) if arguments.hardware else None
    if world.size == 1 and device.type == "cuda" and base is None:
        raise ScalerError(
            "one GPU alone has no links to measure; say with --hardware whose they are, or start more ranks"
        )
    if world.size > 1:
        process_group.join(world)
    by_itself, asked = dataclasses.replace(world, rank=0, size=1), (recipe, resolved, sizes, arguments.seconds)
    (found,) = collectives.all_or_none(lambda: local_ranks.call([by_itself], alone, *asked), world)
    everybody = collectives.all_gather(found, world)
    precision = ds_config.precision_of(resolved)
    width = ds_config.WEIGHT_BYTES[precision]
    work = workload.workload(recipe, width)
    numbers = min(work.layout.trained, MOST_NUMBERS)
    figures: dict[str, Any] = links_of(world, numbers) if world.size > 1 else {}
    if not world.is_first:
        return None
    if device.type == "cpu":
        if "inside" not in figures:  # the node's only rank: two processes exchange data and share its cores
            two, _ = local_ranks.call([World(rank, 2, rank, 2) for rank in range(2)], _links_of_two, numbers)
            figures = {"latency": two["latency"], "inside": 2 * two["inside"], **figures}
        figures = without_cores(figures)
    fit = fitted(everybody, work.flops_per_row)
    figures |= {
        "devices": world.local_size,
        "memory_bytes": min(rank.memory_bytes for rank in everybody),
        "flops": {precision: fit["flops"]},
        "micro_batch_overhead_seconds": fit["micro_seconds"],
        "memory_bandwidth": work.layout.trained * (step_time.OPTIMIZER_TRAFFIC + width) / fit["update"],
        "spread": fit["spread"],
        "on_cpu": device.type == "cpu",
    }
    keys = tuple(sorted(figures))
    if base is not None:
        return dataclasses.replace(base, name=arguments.out.stem, measured=keys, **figures)
    return Hardware(**{"name": arguments.out.stem, "between": UNLIMITED, **figures, "measured": keys})


def run(arguments: argparse.Namespace, world: World) -> None:
    """Measure the hardware, write it as the plan reads it, and print it. Every rank must call it."""
    found = measure(arguments, world)
    if found is None:
        return
    plain = typed.plain(dataclasses.asdict(found))
    measured = {key: plain[key] for key in found.measured}
    others = {key: value for key, value in plain.items() if key not in measured and value is not None}
    text = (
        f"# measured by scaler calibrate --recipe {arguments.recipe}\n{yaml.safe_dump(measured)}"
        f"# not measured: set what you know\n{yaml.safe_dump(others)}"
    )
    # first, because the disk may refuse the file
    print(json.dumps(plain, indent=2) if arguments.json else text.rstrip(), flush=True)
    with explain_disk_errors(arguments.out.parent):
        write_whole(arguments.out, text)
    if not arguments.json:
        print(f"{arguments.out}: for scaler plan --hardware {arguments.out}")

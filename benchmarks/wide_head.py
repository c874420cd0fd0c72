"""A training step of DistilBERT with 256,000 entries against stock Transformers: `python benchmarks/wide_head.py`.

"ours" is the engine at ZeRO-0, so that both sides keep as much beside activations and head; "ours, ZeRO-2" is the same
on one rank, where DeepSpeed keeps an fp32 copy of all that trains. "stock" is the Transformers model with `labels`,
which has scores at every position, and torch's AdamW. Random tokens, rows of 512, 77 of them masked; bf16 where the
hardware multiplies it, else fp32. Each measurement is a process of its own, and takes turns with the others.

It looks for the largest batch that stays below `--gigabytes`, then compares at the largest that all can hold there.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

from scaler.config import deepspeed as ds_config
from scaler.config.batch import solve_batch
from scaler.config.recipe import load
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.distributed import devices
from scaler.distributed.world import detect_world
from scaler.engine import engine, process_group
from scaler.model import build, embeddings, masked_lm

SEQ_LEN, MASKED = 512, 77
SIDES = {"ours": "zero0", "ours, ZeRO-2": "zero2", "stock": None}
RECIPES = {"updated": "distilbert_256k_updated", "frozen": "distilbert_256k_frozen"}
CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"


def batch_of(rows: int, entries: int) -> Batch:
    """Random tokens, one document a row."""
    return Batch(
        input_ids=torch.randint(5, entries, (rows, SEQ_LEN)),
        position_ids=torch.arange(SEQ_LEN).expand(rows, -1).contiguous(),
        segment_ids=torch.ones(rows, SEQ_LEN, dtype=torch.int64),
        masked_positions=torch.arange(MASKED).expand(rows, -1).contiguous(),
        labels=torch.randint(5, entries, (rows, MASKED)),
    )


def one(side: str, recipe_name: str, rows: int, steps: int) -> dict[str, float]:
    """Take some steps, the first not timed; bytes at the peak, and seconds a step."""
    recipe, world = load(recipe_name), detect_world()
    device, entries = devices.device(world), recipe.tokenizer.vocab_size
    native = devices.bf16_is_native(device)
    vocabulary = Vocabulary(size=entries, begin_id=2, end_id=3, pad_id=0, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    network = build.build(build.configuration(recipe.model, vocabulary, entries, SEQ_LEN), 0)
    if recipe.optimizer.frozen_embeddings:
        embeddings.freeze(network)
    batch = batch_of(rows, entries).to(device)
    config = SIDES[side]
    if config is None:
        network = network.to(device).train()
        optimizer = engine.make_optimizer(network, recipe.optimizer)
        labels = torch.full_like(batch.input_ids, -100).scatter_(1, batch.masked_positions, batch.labels)

        def step() -> None:
            with torch.autocast(device.type, torch.bfloat16, enabled=native):
                loss = network(input_ids=batch.input_ids, labels=labels).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    else:
        process_group.join(world)
        recipe = replace(recipe, training=replace(recipe.training, rows=rows, max_micro_rows=rows))
        path = CONFIGS / f"{config}.json"
        solved = solve_batch(rows, 1, rows)
        resolved = ds_config.resolve(ds_config.read(path), path, recipe, solved, native)
        running = engine.Engine(masked_lm.MaskedLM(network.train()), recipe.optimizer, resolved)

        def step() -> None:
            loss, _ = running(batch)
            running.backward(loss)
            running.step(1e-4)

    seconds = []
    for _ in range(steps):
        clock = time.perf_counter()
        step()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - clock)
    on_gpu = device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    process_group.leave()
    return {"peak": peak, "seconds": statistics.median(seconds[1:] or seconds)}


def measured(side: str, trains: str, rows: int, steps: int = 2) -> dict[str, float]:
    """The same in a process of its own; infinite where memory does not hold it."""
    command = [sys.executable, __file__, "--one", side, RECIPES[trains], str(rows), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"  {side}, {trains}, {rows} rows: {done.stderr.strip().splitlines()[-1:]}", flush=True)
        return {"peak": float("inf"), "seconds": float("inf")}
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    tokens = rows * SEQ_LEN / found["seconds"]
    print(f"  {side}, {trains}, {rows} rows: {found['peak'] / 1e9:.2f} GB, {tokens:,.0f} tokens/s", flush=True)
    return found


def largest(side: str, trains: str, limit: float, most: int) -> int:
    """The most rows, up to `most`, whose step stays below so many bytes."""
    fits, too_many = 0, most + 1
    rows = 1
    while too_many - fits > 1:
        if measured(side, trains, rows)["peak"] <= limit:
            fits = rows
        else:
            too_many = rows
        rows = min(2 * fits, (fits + too_many) // 2) if fits else too_many // 2
    return fits


def main() -> None:
    """Measure, and print tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=8.0)
    parser.add_argument("--most_rows", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        side, recipe, rows, steps = arguments.one
        print(json.dumps(one(side, recipe, int(rows), int(steps))))
        return
    print(f"scores over 256,000 entries at once: {masked_lm.positions_at_once(256_000)} positions")
    for trains in RECIPES:
        limit = arguments.gigabytes * 1e9
        hold = {side: largest(side, trains, limit, arguments.most_rows) for side in SIDES}
        print(f"{trains}: most rows below {arguments.gigabytes:g} GB: {hold}", flush=True)
        common = min(rows for rows in hold.values() if rows) if any(hold.values()) else 1
        turns: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.turns):
            for side in SIDES:
                turns[side].append(measured(side, trains, common, steps=4))
        for side, found in turns.items():
            rate = statistics.median(common * SEQ_LEN / some["seconds"] for some in found)
            peak = statistics.median(some["peak"] for some in found)
            print(f"{trains}, {common} rows x {SEQ_LEN}, {side}: {peak / 1e9:.2f} GB, {rate:,.0f} tokens/s", flush=True)


if __name__ == "__main__":
    main()

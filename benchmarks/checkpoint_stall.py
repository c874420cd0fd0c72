"""What training waits for at a checkpoint: synchronous, asynchronous, and DeepSpeed's own, of a model of a recipe.

    deepspeed --num_gpus 2 benchmarks/checkpoint_stall.py --recipe aws_roberta

Takes turns with all three, a training step between two saves, and prints medians.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from scaler.checkpoint import store
from scaler.config import batch
from scaler.config import deepspeed as ds_config
from scaler.config.recipe import load
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.distributed import collectives, devices
from scaler.distributed.world import detect_world
from scaler.engine import engine, process_group
from scaler.model import build, masked_lm
from scaler.model import parameters as model


def batch_of(rows: int, seq_len: int, vocabulary: int) -> Batch:
    """Random tokens, one document a row."""
    masked = seq_len // 4
    return Batch(
        input_ids=torch.randint(5, vocabulary, (rows, seq_len)),
        position_ids=torch.arange(2, seq_len + 2).expand(rows, -1).contiguous(),
        segment_ids=torch.ones(rows, seq_len, dtype=torch.int64),
        masked_positions=torch.arange(masked).expand(rows, -1).contiguous(),
        labels=torch.randint(5, vocabulary, (rows, masked)),
    )


def main() -> None:
    """Measure, and print a table and JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="aws_roberta")
    parser.add_argument("--config", type=Path, default=Path(__file__).resolve().parent.parent / "ds_configs/zero2.json")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--seq_len", type=int, default=64)
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    world = detect_world()
    process_group.join(world)
    recipe = load(arguments.recipe)
    recipe = replace(recipe, training=replace(recipe.training, rows=2 * world.size, max_micro_rows=2))
    solved = batch.solve_batch(recipe.training.rows, world.size, 2)
    device = devices.device(world)
    native = devices.bf16_is_native(device)
    resolved = ds_config.resolve(ds_config.read(arguments.config), arguments.config, recipe, solved, native)
    size = recipe.tokenizer.vocab_size
    vocabulary = Vocabulary(size=size, begin_id=0, end_id=2, pad_id=1, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    config = build.configuration(recipe.model, vocabulary, size, recipe.data.seq_len)
    running = engine.Engine(masked_lm.MaskedLM(build.build(config, 0)), recipe.optimizer, resolved)
    probe = batch_of(2, arguments.seq_len, size)
    folder = Path(collectives.all_gather(tempfile.mkdtemp() if world.is_first else None, world)[0])
    kept = store.Checkpoints(folder / "ours", world, keep_last=1, keep_every=None)
    steps = 0

    def step() -> float:
        nonlocal steps
        start = time.perf_counter()
        loss, _ = running(probe.to(device))
        running.backward(loss)
        running.step(1e-4)
        steps += 1
        collectives.all_gather(None, world)
        return time.perf_counter() - start

    def ours(asynchronous: bool) -> tuple[float, float]:
        """(seconds that training waits, seconds until the checkpoint is there); steps go on in between."""
        start = time.perf_counter()
        kept.begin(running.state.shards(steps), {"step": steps}, vars(probe), asynchronous)
        stall = time.perf_counter() - start
        if asynchronous:
            while sum(collectives.all_gather(kept.done, world)) < world.size:
                during.append(step())
        clock = time.perf_counter()
        assert kept.commit() is None
        return stall + time.perf_counter() - clock, time.perf_counter() - start

    def deepspeeds() -> tuple[float, float]:
        start = time.perf_counter()
        running.deepspeed.save_checkpoint(str(folder / "deepspeed"), tag="step")
        return (time.perf_counter() - start,) * 2

    alone: list[float] = []
    during: list[float] = []
    ways = {
        "synchronous": lambda: ours(asynchronous=False),
        "asynchronous": lambda: ours(asynchronous=True),
        "DeepSpeed's save_checkpoint": deepspeeds,
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    step()
    for turn in range(arguments.turns + 1):
        for name, way in ways.items():
            alone.append(step())
            collectives.all_gather(None, world)
            taken = way()
            if turn:  # the first makes buffers and fills caches
                seconds[name].append(taken)
    if world.is_first:
        parameters, _ = model.count_parameters(running.module)
        figures = {
            name: {"stall": statistics.median(s for s, _ in each), "written": statistics.median(w for _, w in each)}
            for name, each in seconds.items()
        }
        figures["step"] = {"alone": statistics.median(alone), "while one is written": statistics.median(during)}
        print(json.dumps({"parameters": parameters, "ranks": world.size, "seconds": figures}, indent=2))
        shutil.rmtree(folder)
    kept.close()
    running.close()
    process_group.leave()


if __name__ == "__main__":
    main()

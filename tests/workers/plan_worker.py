"""Run by test_plan.py: what the engine really sends in a step at every stage, and what the plan says, as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
from ranks import ROOT, ended, forked_calls

from scaler.config.batch import SolvedBatch
from scaler.config.recipe import load
from scaler.data.batches import Batch
from scaler.distributed.world import detect_world
from scaler.engine import collective_times, engine, process_group
from scaler.engine.patches import direct_collectives
from scaler.model import build, masked_lm
from scaler.planning import communication, workload
from scaler.planning.memory import Sharding

TORCH, OURS = torch.distributed, direct_collectives
COLLECTIVES = {
    (TORCH, "all_reduce"): "all_reduce",
    (TORCH, "reduce_scatter_tensor"): "torch's reduce_scatter",
    (TORCH, "all_gather_into_tensor"): "torch's all_gather",
    (TORCH, "reduce"): "reduce",
    (TORCH, "broadcast"): "broadcast",
    (TORCH, "isend"): "on the wire",
    (OURS, "reduce_to_owners"): "reduce_scatter",
    (OURS, "all_gather"): "all_gather",
}
CASES = [(stage, *how, {}) for stage in (0, 1, 2, 3) for how in ((1, False), (3, True))]  # accumulation; bf16
OWNERS, ALL = {"use_multi_rank_bucket_allreduce": False}, {"reduce_scatter": False}
CASES += [(1, 3, True, OWNERS), (2, 1, False, OWNERS), (1, 3, True, ALL), (2, 3, False, ALL | OWNERS)]
BUCKET = 20_000
MICRO_ROWS = 2


def counted(log: dict[str, list[int]]) -> None:
    """Write down the bytes of the largest tensor, or of all in a list, that each call of a collective gets."""
    for (module, name), kind in COLLECTIVES.items():
        collective = getattr(module, name)

        def call(*arguments, _collective=collective, _kind=kind, **options):
            given = [some if isinstance(some, list) else [some] for some in (*arguments, *options.values())]
            sizes = [sum(t.numel() * t.element_size() for t in some if isinstance(t, torch.Tensor)) for some in given]
            log.setdefault(_kind, []).append(max(sizes))
            return _collective(*arguments, **options)

        setattr(module, name, call)


def compare(recipe_file: str, file: Path) -> None:
    """On one rank: a few steps of each case; the first rank writes what came of the last."""
    recipe, world = load(recipe_file), detect_world()
    log: dict[str, list[int]] = {}
    counted(log)  # before DeepSpeed takes its own references
    process_group.join(world)
    figures = []
    for stage, accumulation, bf16, changes in CASES:
        work = workload.workload(recipe, 2 if bf16 else 4, on_cpu=True)
        batch = SolvedBatch(MICRO_ROWS * accumulation * world.size, MICRO_ROWS, accumulation, world.size)
        content = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
        content["bf16"] = {"enabled": bf16}
        content.setdefault("zero_optimization", {}).update(changes, reduce_bucket_size=BUCKET)
        sharding = dataclasses.replace(Sharding.from_ds_config(content, "bf16" if bf16 else "fp32"), on_cpu=True)
        content |= {
            "train_batch_size": batch.rows,
            "train_micro_batch_size_per_gpu": MICRO_ROWS,
            "gradient_accumulation_steps": accumulation,
        }
        network = masked_lm.MaskedLM(build.build(workload.configuration(recipe), 0))
        running = engine.Engine(network, recipe.optimizer, content)
        running.train(True)
        for _ in range(3):  # ZeRO-3 learns in the first two steps what to gather when
            log.clear()
            with collective_times.timed_collectives(torch.device("cpu")) as timed:
                for _ in range(accumulation):
                    ids = torch.randint(5, recipe.tokenizer.vocab_size, (MICRO_ROWS, recipe.data.seq_len))
                    hidden = torch.arange(8).expand(MICRO_ROWS, -1).contiguous()
                    positions = torch.arange(2, 2 + ids.shape[1]).expand_as(ids)
                    loss, _ = running(Batch(ids, positions, ids * 0, hidden, hidden))
                    running.backward(loss)
                    running.step(1e-3)
        told = communication.collectives_of_step(work.layout, sharding.of_batch(batch, 2))
        figures.append(
            {
                "case": [stage, accumulation, bf16, changes],
                "sent": {kind: [sum(sizes), len(sizes)] for kind, sizes in log.items()},
                "told": [[each.kind, each.what, each.sent, each.calls] for each in told],
                "parameters": work.layout.all,
                "timed": timed,
            }
        )
        running.close()
    if world.is_first:
        file.write_text(json.dumps(figures))
    process_group.leave()


def main() -> None:
    recipe_file, folder = sys.argv[1:]
    assert ended(forked_calls(2, compare, recipe_file, Path(folder) / "figures.json")) == [0, 0]


if __name__ == "__main__":
    main()

"""Run by test_plan.py: what the engine really sends in a step at every stage, and what the plan says, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import engine_steps
import torch
from ranks import call_on

from scaler.config.recipe import load
from scaler.distributed.world import detect_world
from scaler.engine import clock, process_group
from scaler.engine.patches import direct_collectives
from scaler.planning import workload

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
    figures, parameters = [], workload.workload(recipe, 4, on_cpu=True).layout.all
    for stage, accumulation, bf16, changes in CASES:
        batch = engine_steps.solved(accumulation, world.size)
        content = engine_steps.configuration(stage, batch, bf16, **changes, reduce_bucket_size=BUCKET)
        told = engine_steps.told(recipe, content, batch, 2 if bf16 else 4)
        running = engine_steps.started(recipe, content)
        running.train(True)
        for _ in range(3):  # ZeRO-3 learns in the first two steps what to gather when
            log.clear()
            with clock.timed_collectives(torch.device("cpu")) as timed:
                engine_steps.take_step(running, recipe, accumulation)
        figures.append(
            {
                "case": [stage, accumulation, bf16, changes],
                "sent": {kind: [sum(sizes), len(sizes)] for kind, sizes in log.items()},
                "told": [[each.kind, each.what, each.sent, each.calls] for each in told],
                "parameters": parameters,
                "timed": timed,
            }
        )
        running.close()
    if world.is_first:
        file.write_text(json.dumps(figures))
    process_group.leave()


def main() -> None:
    recipe_file, folder = sys.argv[1:]
    call_on(2, compare, recipe_file, Path(folder) / "figures.json")


if __name__ == "__main__":
    main()

"""Run by test_exchange.py: what three ranks' direct exchanges give, and gloo's own, as JSON."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import engine_steps
import torch
import torch.distributed as dist
from ranks import around, call_on

from scaler.config.recipe import load
from scaler.distributed import collectives
from scaler.distributed.world import detect_world
from scaler.engine import engine, process_group
from scaler.engine.patches import direct_collectives

RANKS = 3
LENGTHS = [(5, 1, 7), (0, 4, 0), (1000,), (3, 3, 3, 3, 3)]
OWNERS = [(0, 1, 2), (2, 0, 1), (1,), (2, 2, 0, 1, 0)]
BUCKETS = {"one bucket": 10_000_000, "many": 5_000}


def compared(group: object, ranks: list[int]) -> list[float]:
    """The largest differences from gloo's own collectives; every rank of the group calls it."""
    rank, differences = dist.get_rank(group), []
    for dtype in (torch.float32, torch.bfloat16):
        for lengths, some in zip(LENGTHS, OWNERS, strict=True):
            owners = [owner % len(ranks) for owner in some]
            parts = [torch.randn(length).to(dtype) for length in lengths]
            expected = [part.float() for part in parts]
            for part in expected:
                dist.all_reduce(part, group=group)
            direct_collectives.reduce_to_owners(parts, owners, group)
            for part, owner, right in zip(parts, owners, expected, strict=True):
                if owner == rank and len(part):
                    differences.append(float((part.float() - right).abs().max() / right.abs().max()))
        given = torch.randn(len(ranks), 50).to(dtype)
        output, expected = torch.empty(50, dtype=dtype), given.float()
        dist.all_reduce(expected, group=group)
        before = given.clone()
        direct_collectives.reduce_scatter(output, given, dist.ReduceOp.SUM, group)
        assert torch.equal(before, given)
        direct_collectives.reduce_scatter(
            given[rank], given, dist.ReduceOp.SUM, group
        )  # into its own part, as DeepSpeed does
        assert torch.equal(given[rank], output)
        differences.append(float((output.float() - expected[rank]).abs().max() / expected[rank].abs().max()))
        mine, whole, right = torch.randn(33).to(dtype), *(torch.empty(33 * len(ranks), dtype=dtype) for _ in range(2))
        dist.all_gather_into_tensor(right, mine, group=group)
        under_way = [(torch.empty_like(right), mine + number) for number in range(3)]
        handles = [direct_collectives.all_gather(*each, group=group, async_op=True) for each in under_way]
        assert direct_collectives.all_gather(whole, mine, group) is None and torch.equal(whole, right)
        for number, (handle, (other, _)) in enumerate(zip(handles, under_way, strict=True)):
            handle.wait()
            handle.wait()  # as where each collective is timed
            assert torch.equal(other, torch.cat([part + number for part in right.split(33)]))
        right[33 * rank : 33 * (rank + 1)] = 7
        direct_collectives.all_gather(right, right[33 * rank : 33 * (rank + 1)], group)  # from its own place
        assert (right == 7).all()
    return differences


def trained(
    recipe_file: str, stage: int, bucket: int, accumulation: int, to_owners: bool, log: list[int], bf16: bool = False
):
    """Three steps of the engine on other rows on each rank: norms, weights, and gradients sent straight to owners.

    In bf16 gradients of micro-batches are added up in fp32.
    """
    recipe, world = load(recipe_file), detect_world()
    batch = engine_steps.solved(accumulation, world.size)
    changes = {"reduce_bucket_size": bucket, "use_multi_rank_bucket_allreduce": not to_owners}
    content = engine_steps.configuration(stage, batch, bf16, **changes)
    if bf16:
        content["data_types"] = {"grad_accum_dtype": "fp32"}
    torch.manual_seed(0)
    running = engine_steps.started(recipe, content)
    running.train(False)  # without dropout
    backend, straight = engine.deepspeed.comm.comm.cdb, []
    inner = backend.reduce_to_owners

    def counted(parts, owners, group=None):
        straight.append(sum(len(part) for part in parts))
        inner(parts, owners, group)

    backend.reduce_to_owners = counted
    torch.manual_seed(world.rank)
    log.clear()
    norms = [engine_steps.take_step(running, recipe, accumulation) for _ in range(3)]
    backend.reduce_to_owners = inner
    weights = torch.cat([weight.flatten() for weight in running.full_state().values()])
    running.close()
    return {
        "norms": norms,
        "weights": weights,
        "straight": sum(straight),
        "size": len(weights),
        "reduced": sum(log),
        "told": {
            each.kind: each.sent
            for each in engine_steps.told(recipe, content, batch, width=4)
            if each.what == "gradients"
        },
    }


def work(recipe_file: str, file: Path) -> None:
    """On one rank; the first writes."""
    log: list[int] = []

    def reduce(inner, tensor, *arguments, **options):
        log.append(tensor.numel() * tensor.element_size())
        return inner(tensor, *arguments, **options)

    around(dist, "reduce", reduce)()  # before DeepSpeed takes its own reference
    process_group.join(detect_world())
    rank = dist.get_rank()
    torch.manual_seed(rank)
    groups = [(None, [0, 1, 2]), (dist.new_group([1, 2]), [1, 2]), (dist.new_group([0]), [0])]
    found: dict[str, object] = {"differences": [compared(*each) for each in groups if rank in each[1]]}
    found["differences"] = collectives.all_gather(found["differences"], detect_world())
    for stage in (1, 2):
        for accumulation in (1, 2):
            kinds = {
                name: trained(recipe_file, stage, bucket, accumulation, to_owners, log)
                for to_owners in (False, True)
                for name, bucket in ((f"{name}, {to_owners}", bucket) for name, bucket in BUCKETS.items())
            }
            weights = {name: kind.pop("weights") for name, kind in kinds.items()}
            first = next(iter(weights.values()))
            for name, kind in kinds.items():
                kind["apart"] = float((weights[name] - first).abs().max())
            found[f"{stage} {accumulation}"] = kinds
    for name, bucket in BUCKETS.items():
        kind = trained(recipe_file, 2, bucket, 2, False, log, bf16=True)
        found[f"fp32 sums of bf16, {name}"] = kind["norms"], kind["straight"] / kind["size"]
    if rank == 0:
        file.write_text(json.dumps(found))
    process_group.leave()


def main() -> None:
    recipe_file, folder = sys.argv[1:]
    call_on(RANKS, work, recipe_file, Path(folder) / "figures.json")


if __name__ == "__main__":
    main()

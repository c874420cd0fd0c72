"""Run by test_exchange.py: what three ranks' direct exchanges give, and gloo's own, as JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from ranks import ROOT, ended, forked_calls

from scaler.config.batch import SolvedBatch
from scaler.config.recipe import load
from scaler.data.batches import Batch
from scaler.distributed import collectives
from scaler.distributed.world import detect_world
from scaler.engine import engine, process_group
from scaler.engine.patches import direct_collectives
from scaler.model import build, masked_lm
from scaler.planning import communication, workload
from scaler.planning.memory import Sharding

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


def counted_reduces(log: list[int]) -> None:
    """Write down the bytes of each call of torch's reduce."""
    inner = dist.reduce

    def reduce(tensor, *arguments, **options):
        log.append(tensor.numel() * tensor.element_size())
        return inner(tensor, *arguments, **options)

    dist.reduce = reduce


def told(recipe: object, content: dict[str, object], batch: SolvedBatch) -> dict[str, int]:
    """Bytes of a step's gradients by the kind of their collective, as the plan has them."""
    sharding = dataclasses.replace(Sharding.from_ds_config(content, "fp32"), on_cpu=True)
    step = communication.collectives_of_step(workload.workload(recipe, 4).layout, sharding.of_batch(batch, 2))
    return {each.kind: each.sent for each in step if each.what == "gradients"}


def trained(
    recipe_file: str, stage: int, bucket: int, accumulation: int, to_owners: bool, log: list[int], bf16: bool = False
):
    """Three steps of the engine on other rows on each rank: norms, weights, and gradients sent straight to owners.

    In bf16 gradients of micro-batches are added up in fp32.
    """
    recipe, world = load(recipe_file), detect_world()
    content = json.loads((ROOT / "ds_configs" / f"zero{stage}.json").read_text())
    content["bf16"] = {"enabled": bf16}
    if bf16:
        content["data_types"] = {"grad_accum_dtype": "fp32"}
    content["zero_optimization"] |= {"reduce_bucket_size": bucket, "use_multi_rank_bucket_allreduce": not to_owners}
    content |= {
        "train_batch_size": 2 * accumulation * world.size,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": accumulation,
    }
    torch.manual_seed(0)
    network = masked_lm.MaskedLM(build.build(workload.configuration(recipe), 0))
    running = engine.Engine(network, recipe.optimizer, content)
    running.train(False)  # without dropout
    backend, straight = engine.deepspeed.comm.comm.cdb, []
    inner = backend.reduce_to_owners

    def counted(parts, owners, group=None):
        straight.append(sum(len(part) for part in parts))
        inner(parts, owners, group)

    backend.reduce_to_owners = counted
    torch.manual_seed(world.rank)
    norms = []
    log.clear()
    for _ in range(3):
        for _ in range(accumulation):
            ids = torch.randint(5, recipe.tokenizer.vocab_size, (2, recipe.data.seq_len))
            hidden = torch.arange(8).expand(2, -1).contiguous()
            places = torch.arange(2, 2 + ids.shape[1]).expand_as(ids)
            loss, _ = running(Batch(ids, places, torch.ones_like(ids), hidden, hidden))
            running.backward(loss)
            norm = running.step(1e-3)
        norms.append(norm)
    backend.reduce_to_owners = inner
    weights = torch.cat([weight.flatten() for weight in running.full_state().values()])
    running.close()
    return {
        "norms": norms,
        "weights": weights,
        "straight": sum(straight),
        "size": len(weights),
        "reduced": sum(log),
        "told": told(recipe, content, SolvedBatch(2 * accumulation * RANKS, 2, accumulation, RANKS)),
    }


def work(recipe_file: str, file: Path) -> None:
    """On one rank; the first writes."""
    log: list[int] = []
    counted_reduces(log)  # before DeepSpeed takes its own reference
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
            first = next(iter(kinds.values()))
            found[f"{stage} {accumulation}"] = {
                name: {
                    "norms": kind["norms"],
                    "apart": float((kind["weights"] - first["weights"]).abs().max()),
                    "straight": kind["straight"],
                    "size": kind["size"],
                    "reduced": kind["reduced"],
                    "told": kind["told"],
                }
                for name, kind in kinds.items()
            }
    for name, bucket in BUCKETS.items():
        kind = trained(recipe_file, 2, bucket, 2, False, log, bf16=True)
        found[f"fp32 sums of bf16, {name}"] = kind["norms"], kind["straight"] / kind["size"]
    if rank == 0:
        file.write_text(json.dumps(found))
    process_group.leave()


def main() -> None:
    recipe_file, folder = sys.argv[1:]
    assert ended(forked_calls(RANKS, work, recipe_file, Path(folder) / "figures.json")) == [0] * RANKS


if __name__ == "__main__":
    main()

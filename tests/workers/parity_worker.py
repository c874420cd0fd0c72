"""Run by test_gradients.py on several ranks: every DeepSpeed configuration against plain PyTorch, figures as JSON."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from scaler.config import deepspeed as ds_config
from scaler.config.batch import SolvedBatch, solve_batch
from scaler.config.recipe import load
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.distributed.world import World, detect_world
from scaler.engine import engine, process_group
from scaler.model import build as model
from scaler.model import masked_lm
from scaler.model.kernels import cross_entropy

ROWS, MICRO_ROWS, SEQ_LEN, MASKED = 12, 2, 16, 4
STEPS = 3
VOCABULARY = Vocabulary(size=96, begin_id=0, end_id=2, pad_id=1, mask_id=4, special_ids=(0, 1, 2, 3, 4))
OPTIMIZERS = {
    "adamw": ["optimizer.learning_rate=1e-3"],
    "sgd": [f"optimizer.{setting}" for setting in ("name=sgd", "momentum=0", "weight_decay=0", "embedding_rate=0.5")],
}


def make_batch(step: int) -> Batch:
    chance = torch.Generator().manual_seed(step)
    segments = 1 + torch.arange(SEQ_LEN).ge(SEQ_LEN // 2).long().expand(ROWS, -1)
    return Batch(
        input_ids=torch.randint(5, VOCABULARY.size, (ROWS, SEQ_LEN), generator=chance),
        position_ids=(2 + torch.arange(SEQ_LEN) % (SEQ_LEN // 2)).expand(ROWS, -1),
        segment_ids=segments,
        masked_positions=torch.stack([torch.randperm(SEQ_LEN, generator=chance)[:MASKED] for _ in range(ROWS)]),
        labels=torch.randint(5, VOCABULARY.size, (ROWS, MASKED), generator=chance),
    )


def part(batch: Batch, start: int, stop: int) -> Batch:
    return Batch(**{name: tensor[start:stop] for name, tensor in vars(batch).items()})


def build(recipe, rounded: bool):
    """The model, its weights rounded to bf16 where DeepSpeed will do so before it makes its fp32 masters."""
    config = model.configuration(recipe.model, VOCABULARY, VOCABULARY.size, SEQ_LEN)
    network = masked_lm.MaskedLM(model.build(config, seed=0))
    return network.bfloat16().float() if rounded else network


def rate_of(recipe, step: int) -> float:
    return recipe.optimizer.learning_rate / (step + 1)


def plain(recipe, clipping: float, rounded: bool) -> tuple[dict[str, torch.Tensor], list[float]]:
    """The same batches through plain PyTorch on one rank, whole."""
    network = build(recipe, rounded)
    optimizer = engine.make_optimizer(network, recipe.optimizer)
    norms = []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = rate_of(recipe, step) * group["learning_rate_multiplier"]
        loss, _ = network(make_batch(step))
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(network.parameters(), clipping)))
        optimizer.step()
        optimizer.zero_grad()
    return dict(network.model.named_parameters()), norms


def engine_for(recipe, path: Path, bf16: bool, world: World, network: masked_lm.MaskedLM):
    """The engine with a configuration of DeepSpeed, and the batch that its ranks share."""
    batch = solve_batch(ROWS, world.size, MICRO_ROWS)
    recipe = replace(recipe, training=replace(recipe.training, rows=ROWS, max_micro_rows=MICRO_ROWS))
    resolved = ds_config.resolve(ds_config.read(path), path, recipe, batch, native_bf16=bf16)
    return engine.Engine(network, recipe.optimizer, resolved), batch


def micro_batches(step: int, batch: SolvedBatch, world: World) -> list[Batch]:
    """Those of a step on this rank."""
    first, size = world.rank * batch.micro_rows * batch.accumulation, batch.micro_rows
    return [part(make_batch(step), first + n * size, first + (n + 1) * size) for n in range(batch.accumulation)]


def through_engine(recipe, path: Path, bf16: bool, world: World):
    running, batch = engine_for(recipe, path, bf16, world, build(recipe, bf16))
    cross_entropy.SCORES_AT_ONCE = 700  # the engine's loss comes in pieces, the plain one's at once
    norms = []
    for step in range(STEPS):
        for micro in micro_batches(step, batch, world):
            loss, _ = running(micro)
            running.backward(loss)
            norm = running.step(rate_of(recipe, step))
        norms.append(norm)
    state = running.full_state()
    running.deepspeed.destroy()
    cross_entropy.SCORES_AT_ONCE = 1 << 22
    return state, norms


def main() -> None:
    recipe_file, *configs, folder = sys.argv[1:]
    world = detect_world()
    process_group.join(world)
    figures = {}
    for optimizer, settings in OPTIMIZERS.items():
        recipe = load(recipe_file, settings)
        for bf16 in (False, True):
            before = dict(build(recipe, bf16).model.named_parameters())
            for name in configs:
                path = Path(name)
                expected, expected_norms = plain(recipe, ds_config.read(path)["gradient_clipping"], bf16)
                state, norms = through_engine(recipe, path, bf16, world)
                assert set(state) == set(expected)
                moved = torch.cat([(expected[n] - before[n]).flatten() for n in expected]).detach()
                wrong = torch.cat([(state[n] - expected[n]).flatten() for n in expected]).detach()
                figures[f"{path.stem}-{optimizer}-{'bf16' if bf16 else 'fp32'}"] = {
                    "relative_error": float(wrong.norm() / moved.norm()),
                    "norm_error": max(abs(a / b - 1) for a, b in zip(norms, expected_norms, strict=True)),
                }
    if world.is_first:
        (Path(folder) / "figures.json").write_text(json.dumps(figures))
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()

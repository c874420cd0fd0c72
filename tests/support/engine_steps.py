"""Steps of the engine on random tokens, and what the plan tells of them."""

import dataclasses
from typing import Any

import torch
from configs import content_of

from scaler.config.batch import SolvedBatch
from scaler.config.recipe import Recipe
from scaler.data.batches import Batch
from scaler.engine import engine
from scaler.model import build, masked_lm
from scaler.planning import communication, workload
from scaler.planning.memory import Sharding

MICRO_ROWS = 2


def solved(accumulation: int, ranks: int) -> SolvedBatch:
    return SolvedBatch(MICRO_ROWS * accumulation * ranks, MICRO_ROWS, accumulation, ranks)


def configuration(stage: int, batch: SolvedBatch, bf16: bool, **zero: object) -> dict[str, Any]:
    """That of a stage for a batch, with changes of its section zero_optimization."""
    content = content_of(f"zero{stage}", bf16)
    content.setdefault("zero_optimization", {}).update(zero)
    content["train_batch_size"], content["gradient_accumulation_steps"] = batch.rows, batch.accumulation
    return {**content, "train_micro_batch_size_per_gpu": batch.micro_rows}


def started(recipe: Recipe, content: dict[str, Any]) -> engine.Engine:
    network = masked_lm.MaskedLM(build.build(workload.configuration(recipe), 0))
    return engine.Engine(network, recipe.optimizer, content)


def take_step(running: engine.Engine, recipe: Recipe, accumulation: int) -> float | None:
    """Train on random tokens; returns the gradient norm."""
    for _ in range(accumulation):
        ids = torch.randint(5, recipe.tokenizer.vocab_size, (MICRO_ROWS, recipe.data.seq_len))
        hidden = torch.arange(8).expand(MICRO_ROWS, -1).contiguous()
        places = torch.arange(2, 2 + ids.shape[1]).expand_as(ids)
        loss, _ = running(Batch(ids, places, torch.ones_like(ids), hidden, hidden))
        running.backward(loss)
        norm = running.step(1e-3)
    return norm


def told(recipe: Recipe, content: dict[str, Any], batch: SolvedBatch, width: int) -> list[communication.Collective]:
    """The collectives of a step with weights of so many bytes, as the plan has them."""
    precision = "bf16" if width == 2 else "fp32"
    sharding = dataclasses.replace(Sharding.from_ds_config(content, precision), on_cpu=True)
    layout = workload.workload(recipe, width, on_cpu=True).layout
    return communication.collectives_of_step(layout, sharding.of_batch(batch, MICRO_ROWS))

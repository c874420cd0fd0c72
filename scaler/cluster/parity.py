"""Compare an optimizer step of the DeepSpeed engine with the same step in plain PyTorch, on every rank."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist

from scaler.checkpoint.format import WEIGHT
from scaler.config import deepspeed as ds_config
from scaler.config.batch import SolvedBatch
from scaler.config.training_sections import Optimizer
from scaler.data.batches import Batch
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.engine import engine
from scaler.model import build, masked_lm
from scaler.training.job import Job

ROWS, MICRO_ROWS = 2, 1  # of each rank
LAYERS = 2  # the recipe's model with no more than these
# of the distance that the weights move: fp32 differs in summation order alone; bf16 keeps 8 bits of each gradient
BOUNDS = {"fp32": 2e-5, "bf16": 5e-2}
BATCH_KEYS = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
PLAIN_SGD = Optimizer(name="sgd", learning_rate=1e-2, momentum=0.0, weight_decay=0.0)


def check(job: Job, world: World) -> dict[str, float]:
    """Take both steps and compare them. Every rank must call it.

    Returns:
        `loss` and `gradient_norm` of rows and weights that are the same on all ranks, in plain PyTorch; `error` of the
        weights that this rank's shard of the engine holds after a step of all ranks, relative to the distance that
        plain PyTorch moved them; and `bound`, under which the error stays where all is well.
    """
    device = devices.device(world)
    precision = ds_config.precision_of(job.ds_config)
    bf16 = precision == "bf16"

    same = _network(job, bf16).to(device)
    loss = _backward(same, job, 0)
    norm = torch.nn.utils.get_total_norm([p.grad for p in same.parameters() if p.grad is not None])

    plain = _network(job, bf16).to(device)
    before = {name: p.detach().clone() for name, p in plain.model.named_parameters()}
    optimizer = engine.make_optimizer(plain, PLAIN_SGD)
    _backward(plain, job, world.rank * ROWS)
    gradients = [p.grad for p in plain.parameters() if p.grad is not None]
    for gradient in gradients:
        dist.all_reduce(gradient)
        gradient.div_(world.size)
    clipping = float(job.ds_config.get("gradient_clipping", 0.0))
    torch.nn.utils.clip_grads_with_norm_(
        plain.parameters(), clipping or torch.inf, torch.nn.utils.get_total_norm(gradients)
    )
    for group in optimizer.param_groups:
        group["lr"] = PLAIN_SGD.learning_rate * group["learning_rate_multiplier"]
    optimizer.step()

    moved = _engine_after_a_step(job, bf16, world)
    wrong = way = 0.0
    for (name, start), found in moved.items():
        expected = plain.model.get_parameter(name).detach().flatten()[start : start + len(found)]
        wrong += float((found.to(device) - expected).double().square().sum())
        way += float((expected - before[name].flatten()[start : start + len(found)]).double().square().sum())
    # a rank may hold no more than weights that did not move
    error = (wrong / way) ** 0.5 if way else wrong**0.5
    return {"loss": loss, "gradient_norm": float(norm), "error": error, "bound": BOUNDS[precision]}


def _network(job: Job, rounded: bool) -> masked_lm.MaskedLM:
    """Build the recipe's model, small and without dropout.

    If `rounded`, its weights are rounded to bf16, as DeepSpeed does before it makes its fp32 masters.
    """
    recipe = job.recipe
    config = build.configuration_of(recipe, job.data.vocabulary)
    config.num_hidden_layers = min(LAYERS, config.num_hidden_layers)
    for name, value in config.to_dict().items():  # what the recipe leaves out has a default that is not 0
        if "dropout" in name and isinstance(value, float):
            setattr(config, name, 0.0)
    network = masked_lm.MaskedLM(build.from_recipe(recipe, config))
    return network.bfloat16().float() if rounded else network


def _rows(job: Job, first: int, device: torch.device) -> Batch:
    return job.rows["train"].at(first, MICRO_ROWS).to(device)


def _backward(network: masked_lm.MaskedLM, job: Job, first: int) -> float:
    total = 0.0
    device = next(network.parameters()).device
    for start in range(first, first + ROWS, MICRO_ROWS):
        loss, _ = network(_rows(job, start, device))
        (loss * MICRO_ROWS / ROWS).backward()
        total += float(loss.detach()) * MICRO_ROWS / ROWS
    return total


def _engine_after_a_step(job: Job, bf16: bool, world: World) -> dict[tuple[str, int], torch.Tensor]:
    """The stretches of weights that this rank holds, by name and where they start in the flattened parameter."""
    batch = SolvedBatch(ROWS * world.size, MICRO_ROWS, ROWS // MICRO_ROWS, world.size)
    small = replace(job.recipe, training=replace(job.recipe.training, rows=batch.rows, max_micro_rows=MICRO_ROWS))
    asked = {name: value for name, value in job.ds_config_given.items() if name not in BATCH_KEYS}
    resolved = ds_config.resolve(asked, job.ds_config_file, small, batch, bf16)
    running = engine.Engine(_network(job, bf16), PLAIN_SGD, resolved)
    first = world.rank * ROWS
    for start in range(first, first + ROWS, MICRO_ROWS):
        loss, _ = running(_rows(job, start, devices.device(world)))
        running.backward(loss)
        running.step(PLAIN_SGD.learning_rate)
    found = {
        (shard.name, shard.start): shard.tensors[WEIGHT].detach().float().clone()
        for shard in running.state.shards(updates=0)
        if WEIGHT in shard.tensors and shard.tensors[WEIGHT].numel()
    }
    running.close()
    return found

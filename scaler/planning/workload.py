"""Build the workload of a recipe, without its data and without DeepSpeed."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PreTrainedModel

from scaler.config import deepspeed as ds_config
from scaler.config.recipe import Recipe
from scaler.data.tokenizer import Vocabulary
from scaler.model import build
from scaler.model import parameters as model
from scaler.planning import activations, memory
from scaler.planning.step_time import Workload

MEASURED_ROWS = (1, 8)  # of the micro-batches whose memory is measured; that of others is interpolated


def configuration(recipe: Recipe) -> Any:
    """Return the model's configuration, with placeholders for the tokenizer's special ids."""
    entries = recipe.tokenizer.vocab_size
    special = Vocabulary(size=entries, begin_id=0, end_id=2, pad_id=1, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    return build.configuration_of(recipe, special)


def workload(recipe: Recipe, width: int, on_cpu: bool = False) -> Workload:
    """Return what a recipe trains.

    Args:
        width: bytes of a weight: 2 in bf16, 4 in fp32.
        on_cpu: whether the ranks run on CPUs.
    """
    config, seq_len = configuration(recipe), recipe.data.seq_len
    frozen = recipe.optimizer.frozen_embeddings
    with torch.device("meta"):
        empty = build.from_recipe(recipe, config)

    @functools.cache
    def measured(rows: int) -> memory.Activations:
        return activations.measure(config, rows, seq_len, recipe.most_masked_per_row, width, frozen, on_cpu)

    return Workload(
        layout(empty, recipe),
        lambda rows: memory.interpolate(rows, *((some, measured(some)) for some in MEASURED_ROWS)),
        model.flops_per_row(empty, seq_len, recipe.masked_per_row(0.5)),
        seq_len,
        recipe.training.rows,
        recipe.training.steps,
        len(ds_config.optimizer_state(recipe.optimizer)),
    )


def layout(network: PreTrainedModel, recipe: Recipe) -> memory.Layout:
    """Return a model's parameters as the recipe's optimizer groups them."""
    groups = model.parameter_groups(network, recipe.optimizer.weight_decay)
    parameters, trained = model.count_parameters(network)
    sizes = tuple(tuple(parameter.numel() for parameter in group["params"]) for group in groups)
    return memory.Layout(sizes, parameters - trained)

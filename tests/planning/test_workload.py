"""Activations of a model without contents against those of the real one."""

import dataclasses

import pytest
import torch

from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.model import build, masked_lm
from scaler.planning import workload
from scaler.planning.memory import interpolate


def test_activations_are_those_of_the_real_model_on_a_cpu(tiny_recipe):
    """The bytes that autograd keeps for the backward pass, counted on real tensors."""
    config, rows, masked = workload.configuration(tiny_recipe), 3, 8
    network = masked_lm.MaskedLM(build.build(config, 0)).train()
    held: dict[int, int] = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(5, 400, (rows, 32))
    hidden = torch.arange(masked).expand(rows, -1).contiguous()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = network(Batch(ids, torch.arange(2, 34).expand_as(ids), ids * 0, hidden, hidden))
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved = sum(size for place, size in held.items() if place not in weights)
    found = workload.activations(config, rows, 32, masked, 4)
    assert loss.isfinite() and saved > 100_000
    assert found.forward == pytest.approx(saved, rel=0.1)
    assert found.forward <= found.without_gradients <= found.with_gradients


def test_embeddings_that_are_frozen_have_no_gradient_and_lookups_on_a_cpu_none_of_all_entries(tiny_recipe):
    settings = {**tiny_recipe.model, "max_position_embeddings": 34}
    entries = 100_000
    special = Vocabulary(entries, 0, 2, 1, 4, (0, 1, 2, 3, 4))
    config = build.configuration(settings, special, entries, 32)
    matrix = 4 * entries * config.hidden_size
    trained, on_cpu, frozen = (
        workload.activations(config, 2, 32, 8, 4, frozen, on_cpu)
        for frozen, on_cpu in ((False, False), (False, True), (True, False))
    )
    assert trained.forward == pytest.approx(frozen.forward, rel=0.02) == on_cpu.forward
    for found in (on_cpu, frozen):
        assert trained.with_gradients - found.with_gradients > 0.9 * matrix


def test_masks_that_become_fewer_are_planned_at_their_most_and_timed_at_their_mean(tiny_recipe):
    def with_masks(first, last):
        objective = dataclasses.replace(tiny_recipe.objective, mask_probability=first, final_mask_probability=last)
        return workload.workload(dataclasses.replace(tiny_recipe, objective=objective), 4, on_cpu=True)

    falling, most, mean = with_masks(0.25, 0.125), with_masks(0.25, None), with_masks(0.1875, None)
    assert falling.activations(8) == most.activations(8) != mean.activations(8)
    assert falling.flops_per_row == mean.flops_per_row < most.flops_per_row


def test_activations_grow_with_rows_on_a_line(tiny_recipe):
    config = workload.configuration(tiny_recipe)
    one, four, eight = (workload.activations(config, rows, 32, 8, 4) for rows in (1, 4, 8))
    told = interpolate(4, (1, one), (8, eight))
    assert told.forward == pytest.approx(four.forward, rel=0.02)
    assert four.with_gradients <= told.with_gradients < 1.1 * four.with_gradients  # a greatest of several lines


def test_sgd_without_momentum_keeps_no_state_in_the_plan(tiny_recipe):
    for momentum, states in ((0.9, 1), (0.0, 0)):
        sgd = dataclasses.replace(tiny_recipe.optimizer, name="sgd", momentum=momentum)
        assert workload.workload(dataclasses.replace(tiny_recipe, optimizer=sgd), 4).states == states

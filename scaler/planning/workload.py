"""Find what a plan needs of a recipe's model: parameters, operations and activations. Needs no data, no DeepSpeed."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import PreTrainedModel

from scaler.config import deepspeed as ds_config
from scaler.config.recipe import Recipe
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.model import build, embeddings, masked_lm
from scaler.model import parameters as model
from scaler.planning.memory import Activations, Layout, interpolate
from scaler.planning.step_time import Workload

MEASURED_ROWS = (1, 8)  # of the micro-batches whose memory is measured; that of others is interpolated


def configuration(recipe: Recipe) -> Any:
    """Return the model's configuration, with placeholders for the tokenizer's special ids."""
    entries = recipe.tokenizer.vocab_size
    special = Vocabulary(size=entries, begin_id=0, end_id=2, pad_id=1, mask_id=4, special_ids=(0, 1, 2, 3, 4))
    return build.configuration_of(recipe, special)


def empty_model(recipe: Recipe, config: Any) -> PreTrainedModel:
    """Return the model of a recipe without memory behind its weights."""
    with torch.device("meta"):
        return build.from_recipe(recipe, config)


def layout(network: PreTrainedModel, recipe: Recipe) -> Layout:
    """Return a model's parameters as the recipe's optimizer groups them."""
    groups = model.parameter_groups(network, recipe.optimizer.weight_decay)
    parameters, trained = model.count_parameters(network)
    return Layout(tuple(tuple(p.numel() for p in group["params"]) for group in groups), parameters - trained)


def workload(recipe: Recipe, width: int, on_cpu: bool = False) -> Workload:
    """Return what a recipe trains.

    Args:
        width: bytes of a weight: 2 in bf16, 4 in fp32.
        on_cpu: whether the ranks run on CPUs.
    """
    config, seq_len = configuration(recipe), recipe.data.seq_len
    empty, frozen = empty_model(recipe, config), recipe.optimizer.frozen_embeddings

    @functools.cache
    def measured(rows: int) -> Activations:
        return activations(config, rows, seq_len, recipe.most_masked_per_row, width, frozen, on_cpu)

    return Workload(
        layout(empty, recipe),
        lambda rows: interpolate(rows, *((some, measured(some)) for some in MEASURED_ROWS)),
        model.flops_per_row(empty, seq_len, recipe.masked_per_row(0.5)),
        seq_len,
        recipe.training.rows,
        recipe.training.steps,
        len(ds_config.optimizer_state(recipe.optimizer)),
    )


def activations(
    config: Any,
    micro_rows: int,
    seq_len: int,
    masked: int,
    width: int,
    frozen_embeddings: bool = False,
    on_cpu: bool = False,
) -> Activations:
    """Measure one micro-batch's bytes beside the weights, by the operations of the model on a CPU, without contents.

    Fused attention saves as much for the backward pass on a GPU as on a CPU.

    Args:
        masked: masked positions of a row.
        width: bytes of a number: 2 in bf16, 4 in fp32.
        on_cpu: whether the ranks run on CPUs, where an embedding's gradient has only the rows that were looked up.
    """
    with FakeTensorMode():
        network = masked_lm.MaskedLM(build.build(config, 0)).train()
        lookup = network.model.get_input_embeddings()
        if on_cpu and isinstance(lookup, nn.Embedding) and lookup.sparse:
            # sparse tensors have no storage to count, but the gradient of the lookup's output is as large as theirs
            own = lookup
            vars(own)["forward"] = lambda ids: nn.functional.embedding(ids, own.weight.detach()).requires_grad_()
        lookup.sparse = False
        if frozen_embeddings:
            embeddings.freeze(network.model)
        if width == 2:
            for parameter in network.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        tokens = torch.zeros((micro_rows, seq_len), dtype=torch.int64)
        positions = torch.zeros((micro_rows, masked), dtype=torch.int64)
        counter = _Allocations(network)
        with counter:
            loss, _ = network(Batch(tokens, tokens, tokens, positions, positions))
            forward = counter.allocated
            loss.backward()
    return Activations(forward, counter.peak, counter.peak_without_gradients)


class _Allocations(TorchDispatchMode):
    """A counter of the bytes that operations allocate beside a network's weights; it begins with the buffers.

    torch's own MemTracker gives the same figures in ten times the time (torch 2.13).

    Attributes:
        allocated: bytes now.
        peak: the most bytes so far.
        peak_without_gradients: the same if each gradient of a weight were freed as soon as it is complete.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.allocated = self.peak = self.peak_without_gradients = self._gradients = 0
        # by address of a storage, a reference whose callback takes the storage from the count; None for the weights
        self._storages: dict[int, weakref.ref[torch.UntypedStorage] | None] = {}
        for parameter in network.parameters():
            self._storages[parameter.untyped_storage()._cdata] = None
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(self._gradient_is_complete)
        for buffer in network.buffers():
            self._count(buffer)

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run an operation and count what it has allocated."""
        result = func(*args, **(kwargs or {}))
        for output in result if isinstance(result, list | tuple) else (result,):
            if isinstance(output, torch.Tensor):
                self._count(output)
        self.peak = max(self.peak, self.allocated)
        self.peak_without_gradients = max(self.peak_without_gradients, self.allocated - self._gradients)
        return result

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        address, size = storage._cdata, storage.nbytes()
        if address in self._storages:
            return

        def freed(_: object) -> None:
            del self._storages[address]
            self.allocated -= size

        self._storages[address] = weakref.ref(storage, freed)
        self.allocated += size

    def _gradient_is_complete(self, parameter: torch.Tensor) -> None:
        assert parameter.grad is not None
        self._gradients += parameter.grad.untyped_storage().nbytes()

"""Measure the memory of a model's forward and backward pass, on tensors that have shapes but no contents."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from scaler.data.batches import Batch
from scaler.model import build, embeddings, masked_lm
from scaler.planning.memory import Activations


def measure(
    config: Any,
    micro_rows: int,
    seq_len: int,
    masked: int,
    width: int,
    frozen_embeddings: bool = False,
    on_cpu: bool = False,
) -> Activations:
    """Return the bytes of one micro-batch beside the weights, from the operations that the model runs on a CPU.

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

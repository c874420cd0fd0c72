"""How much memory a model's forward and backward pass takes: measured on tensors that have shapes and nothing else."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from scaler.data.batches import Batch
from scaler.model import build, embeddings, masked_lm
from scaler.planning import memory


def of_model(
    config: Any,
    micro_rows: int,
    seq_len: int,
    masked: int,
    width: int,
    frozen_embeddings: bool = False,
    on_cpu: bool = False,
) -> memory.Activations:
    """Bytes of one micro-batch, by the model's own operations on a CPU; fused attention saves as much on a GPU.

    Args:
        masked: positions of a row.
        width: bytes of a number: 2 in bf16, 4 in fp32.
        on_cpu: where the gradient of a lookup is of the rows that were looked up.
    """
    found = {}
    for keep in (True, False):
        found[keep], forward = _peak(config, micro_rows, seq_len, masked, width, frozen_embeddings, on_cpu, keep)
    return memory.Activations(forward, found[True], found[False])


def _peak(
    config: Any,
    rows: int,
    seq_len: int,
    masked: int,
    width: int,
    frozen_embeddings: bool,
    on_cpu: bool,
    keep_gradients: bool,
) -> tuple[int, int]:
    """Bytes beside the weights: at the peak, and at the end of the forward pass."""
    with FakeTensorMode():
        network = masked_lm.MaskedLM(build.build(config, 0)).train()
        lookup = network.model.get_input_embeddings()
        if on_cpu and isinstance(lookup, nn.Embedding) and lookup.sparse:
            # the tracker cannot follow sparse gradients, but that of what comes out is as large
            own = lookup
            vars(own)["forward"] = lambda ids: nn.functional.embedding(ids, own.weight.detach()).requires_grad_()
        lookup.sparse = False
        if frozen_embeddings:
            embeddings.freeze(network.model)
        if width == 2:
            for parameter in network.parameters():
                parameter.data = parameter.data.to(torch.bfloat16)
        if not keep_gradients:
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.register_post_accumulate_grad_hook(_let_go)
        whole = torch.zeros((rows, seq_len), dtype=torch.int64)
        hidden = torch.zeros((rows, masked), dtype=torch.int64)
        batch = Batch(whole, whole, whole, hidden, hidden)
        weights = sum(p.numel() * p.element_size() for p in network.parameters())
        constants = _as_constants(network)
        tracker = MemTracker()
        tracker.track_external(network, *constants)
        with warnings.catch_warnings(), tracker:
            warnings.simplefilter("ignore")  # the tracker's own, of outputs that are None
            loss, _ = network(batch)
            forward = _total(tracker, "current")
            loss.backward()
        return _total(tracker, "peak") - weights, forward - weights


def _as_constants(network: nn.Module) -> list[torch.Tensor]:
    """Make constants of what does not train, for the tracker (torch 2.13) waits for the gradient of every parameter."""
    constants = {id(parameter): parameter.detach() for parameter in network.parameters() if not parameter.requires_grad}
    for module in network.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            if id(parameter) in constants:
                delattr(module, name)
                setattr(module, name, constants[id(parameter)])
    return list(constants.values())


def _let_go(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _total(tracker: MemTracker, when: str) -> int:
    return sum(int(by_kind["Total"]) for by_kind in tracker.get_tracker_snapshot(when).values())

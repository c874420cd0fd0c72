"""How much memory a model's forward and backward pass takes: measured on tensors that have shapes and nothing else."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from scaler import embeddings, footprint, model
from scaler.batches import Batch


def of_model(
    config: Any, micro_rows: int, seq_len: int, masked: int, width: int, frozen_embeddings: bool = False
) -> footprint.Activations:
    """Bytes of one micro-batch, by the model's own operations on a CPU; fused attention saves as much on a GPU.

    Args:
        masked: positions of a row.
        width: bytes of a number: 2 in bf16, 4 in fp32.
    """
    found = {}
    for keep in (True, False):
        found[keep], forward = _peak(config, micro_rows, seq_len, masked, width, frozen_embeddings, keep)
    return footprint.Activations(forward, found[True], found[False])


def _peak(
    config: Any, rows: int, seq_len: int, masked: int, width: int, frozen_embeddings: bool, keep_gradients: bool
) -> tuple[int, int]:
    """Bytes beside the weights: at the peak, and at the end of the forward pass."""
    with FakeTensorMode():
        network = model.MaskedLM(model.build(config, 0)).train()
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
        tracker = MemTracker()
        tracker.track_external(network)
        with warnings.catch_warnings(), tracker:
            warnings.simplefilter("ignore")  # the tracker's own, of outputs that are None
            loss, _ = network(batch)
            forward = _total(tracker, "current")
            loss.backward()
        return _total(tracker, "peak") - weights, forward - weights


def _let_go(parameter: torch.Tensor) -> None:
    parameter.grad = None


def _total(tracker: MemTracker, when: str) -> int:
    return sum(int(by_kind["Total"]) for by_kind in tracker.get_tracker_snapshot(when).values())

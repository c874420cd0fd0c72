"""A gradient of token embeddings that has only the rows that were looked up.

What: sets `sparse` of the input embeddings' `nn.Embedding`, where the head's last layer has the same weight.
Why: autograd has the head's gradient, of all entries, by then, and adds these rows to it in place. A dense lookup gives
    it a second matrix of that size, nearly all zeros. By itself a sparse gradient would reach DeepSpeed, so an untied
    lookup stays dense.
Versions tried: torch 2.13, DeepSpeed 0.19.8; CPU only.
Measured gain: backward pass of head and lookup with 256,000 entries 230 ms -> 121 ms (docs/results).
Upstream: nothing to send; `sparse` is torch's own option.
Test: tests/end_to_end/test_switches.py, tests/end_to_end/test_gradients.py.
"""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel


def install(model: PreTrainedModel) -> str | None:
    """Make the gradient of the lookup sparse, or return why it stays dense."""
    lookup, head = model.get_input_embeddings(), model.get_output_embeddings()
    if not isinstance(lookup, nn.Embedding) or not isinstance(head, nn.Linear) or head.weight is not lookup.weight:
        return "the head has another matrix than the token embeddings"
    if lookup.weight.device.type != "cpu":
        return f"not measured on {lookup.weight.device.type}"
    lookup.sparse = True
    return None

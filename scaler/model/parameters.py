"""Count, group and describe a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

FP32_SUM = 256  # numbers whose squares are summed in fp32
AT_ONCE = 1 << 20  # numbers whose squares are computed at once


def square(numbers: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares as an fp64 scalar; fp32 sums of a few squares, added in fp64, are right to 1e-7.

    It is infinite where a number is beyond 1e19, because fp32 cannot hold its square.
    """
    sums = torch.zeros((), dtype=torch.float64, device=numbers.device)
    for some in numbers.flatten().split(AT_ONCE):
        whole = len(some) // FP32_SUM * FP32_SUM
        norms = torch.linalg.vector_norm(some[:whole].float().view(-1, FP32_SUM), dim=1)
        sums += norms.double().square().sum() + some[whole:].double().square().sum()
    return sums


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Group trainable parameters: embeddings, other matrices, and biases and norms, which have no weight decay.

    Each group has a "name". A tied decoder counts as the embedding that it is.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = [p for p in trainable if p.ndim >= 2]
    groups = {
        "embeddings": ([p for p in matrices if id(p) in embeddings], weight_decay),
        "matrices": ([p for p in matrices if id(p) not in embeddings], weight_decay),
        "biases and norms": ([p for p in trainable if p.ndim < 2], 0.0),
    }
    return [
        {"name": name, "params": parameters, "weight_decay": decay}
        for name, (parameters, decay) in groups.items()
        if parameters
    ]


def what_trains(model: nn.Module, weight_decay: float) -> list[tuple[str, int, str]]:
    """Return each group of parameters: its name, their number, and how they are trained."""
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    rows = [("token embeddings", frozen, "frozen")] if frozen else []
    for group in parameter_groups(model, weight_decay):
        name, decay = str(group["name"]), group["weight_decay"]
        others = "other " if frozen and name == "embeddings" else ""
        trained = f"trained, weight decay {decay:g}" if decay else "trained, no weight decay"
        rows.append((others + name, sum(parameter.numel() for parameter in group["params"]), trained))
    return rows


def render_table(rows: Iterable[Sequence[Any]]) -> str:
    """Format the rows of `what_trains` as aligned lines."""
    return "\n".join(f"{name:<20} {count:>13,}  {how}" for name, count, how in rows)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return the numbers of all and of trainable parameters; tied ones count once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def flops_per_row(model: PreTrainedModel, seq_len: int, masked: int) -> float:
    """Return the floating-point operations of one row's forward and backward pass.

    A weight of a matrix multiplication counts 6 per token (2 forward, 4 backward: Kaplan et al. 2020, section 2.1), a
    frozen one 4; weights of the head count for masked tokens alone. Attention scores and sums count
    12 * layers * hidden * seq_len per token, over the whole row although documents are kept apart. Lookups, norms and
    activations are left out.
    """
    encoder = {id(m) for m in model.base_model.modules()}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    of_weights = {id(m): (6 if m.weight.requires_grad else 4) * m.weight.numel() for m in linears}
    in_encoder = sum(operations for module, operations in of_weights.items() if module in encoder)
    in_head = sum(operations for module, operations in of_weights.items() if module not in encoder)
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * seq_len
    return float(seq_len * (in_encoder + attention) + masked * in_head)

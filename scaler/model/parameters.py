"""Count, group and describe a model's parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

TOGETHER = 256  # numbers whose squares are summed in fp32
AT_ONCE = 1 << 20


def square(numbers: torch.Tensor) -> torch.Tensor:
    """The sum of squares, an fp64 scalar: fp32 sums of a few squares, added in fp64, are right to 1e-7.

    It is infinite where numbers are beyond 1e19, whose squares fp32 does not hold.
    """
    sums = torch.zeros((), dtype=torch.float64, device=numbers.device)
    for some in numbers.flatten().split(AT_ONCE):
        whole = len(some) // TOGETHER * TOGETHER
        norms = torch.linalg.vector_norm(some[:whole].float().view(-1, TOGETHER), dim=1)
        sums += norms.double().square().sum() + some[whole:].double().square().sum()
    return sums


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in three groups: embeddings and other matrices, which decay; biases and norms, which do not.

    Each group's "name" says which it is. A tied decoder counts as the embedding that it is.
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
    """Each group of parameters: its name, how many they are, and how they are trained."""
    frozen = sum(parameter.numel() for parameter in model.parameters() if not parameter.requires_grad)
    rows = [("token embeddings", frozen, "frozen")] if frozen else []
    for group in parameter_groups(model, weight_decay):
        name, decay = str(group["name"]), group["weight_decay"]
        others = "other " if frozen and name == "embeddings" else ""
        trained = f"trained, weight decay {decay:g}" if decay else "trained, no weight decay"
        rows.append((others + name, sum(parameter.numel() for parameter in group["params"]), trained))
    return rows


def render_table(rows: Iterable[Sequence[Any]]) -> str:
    """What trains, as lines for people."""
    return "\n".join(f"{name:<20} {count:>13,}  {how}" for name, count, how in rows)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters, tied ones counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def flops_per_row(model: PreTrainedModel, seq_len: int, masked: int) -> float:
    """Floating-point operations of one row's forward and backward pass.

    6 per weight and token for matrix multiplications (2 forward, 4 backward: Kaplan et al. 2020, section 2.1), 4 for a
    frozen one, for the head on the masked tokens alone, and 12 * layers * hidden * seq_len per token for the attention
    scores and sums, counted over the whole row although documents are kept apart. Lookups, norms and activations count
    as nothing.
    """
    encoder = {id(m) for m in model.base_model.modules()}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    of_weights = {id(m): (6 if m.weight.requires_grad else 4) * m.weight.numel() for m in linears}
    in_encoder = sum(operations for module, operations in of_weights.items() if module in encoder)
    in_head = sum(operations for module, operations in of_weights.items() if module not in encoder)
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * seq_len
    return float(seq_len * (in_encoder + attention) + masked * in_head)

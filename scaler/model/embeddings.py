"""Freeze the token embeddings, and prove by checksums that they stayed as they were.

They are one matrix with the head's last layer where a model ties the two, as most do.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import xxhash
from transformers import PreTrainedModel

from scaler.core.errors import ScalerError

ROWS_AT_ONCE = 8192  # rows that are hashed together


def width(config: Any) -> int:
    """Return the width of an entry's vector, which in ALBERT and ELECTRA is less than the hidden size."""
    return int(getattr(config, "embedding_size", config.hidden_size))


def freeze(model: PreTrainedModel) -> None:
    """Freeze the token embeddings.

    Assigning `requires_grad` to a module freezes nothing; it has to be assigned to the parameter.
    """
    model.get_input_embeddings().weight.requires_grad_(False)


def digest(weight: torch.Tensor, dtype: torch.dtype) -> str:
    """Return a checksum of a matrix in the precision that a run holds it in."""
    state = xxhash.xxh3_128()
    for some in weight.detach().split(ROWS_AT_ONCE):
        state.update(some.to(dtype).float().cpu().contiguous().numpy().data)
    return state.hexdigest()


@dataclass(frozen=True)
class TokenEmbeddings:
    """The matrix at the beginning of a start, from a new model or a checkpoint.

    Attributes:
        name: name of the parameter.
        shape: entries and width.
        frozen: whether it must not change.
        dtype: precision in which the run holds it.
        xxh3: its checksum in that precision.
    """

    name: str
    shape: tuple[int, ...]
    frozen: bool
    dtype: torch.dtype
    xxh3: str

    def describe_change(self, state: Mapping[str, torch.Tensor]) -> str:
        """Say with checksums how the matrix changed. Raises ScalerError when it was frozen and is not the same."""
        found = digest(state[self.name], self.dtype)
        matrix = f"{self.name} ({self.shape[0]:,} x {self.shape[1]:,})"
        if self.frozen and found != self.xxh3:
            raise ScalerError(
                f"{matrix} was to stay frozen, but its checksum was {self.xxh3} and is {found}; nothing is exported"
            )
        return f"{matrix}: frozen, checksum {found}" if self.frozen else f"{matrix}: {self.xxh3} became {found}"


def note(model: PreTrainedModel, bf16: bool) -> TokenEmbeddings:
    """Remember the matrix as it is now, to compare it later."""
    weight = model.get_input_embeddings().weight
    dtype = torch.bfloat16 if bf16 else torch.float32
    name = next(name for name, parameter in model.named_parameters() if parameter is weight)
    return TokenEmbeddings(name, tuple(weight.shape), not weight.requires_grad, dtype, digest(weight, dtype))

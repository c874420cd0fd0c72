"""Save a model and its tokenizer as a Transformers folder that other versions, programs and accounts can read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from scaler.core.files import take_umask
from scaler.data.tokenizer import save_tokenizer


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, longest: int | None) -> None:
    """Write a Transformers folder.

    Args:
        longest: tokens of a text at which pipelines cut; None: any number.
    """
    # Vectors that two modules share, such as the bias of RoBERTa's head, get both their names. Transformers 5 would
    # write one, and 4.48 sets the parameter of the missing name to zero without a word, and with it the bias.
    state = {name: tensor.clone() if tensor.ndim == 1 else tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    save_tokenizer(tokenizer, folder, longest)
    for path in folder.glob("*.safetensors"):
        take_umask(path)

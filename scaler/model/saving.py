"""Save a model and its tokenizer as a Transformers folder that other versions, programs and accounts can read."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

import transformers
from transformers import PreTrainedConfig, PreTrainedModel

from scaler.core.files import read_json, take_umask, write_json
from scaler.data.tokenizer import save_tokenizer
from scaler.model.folder import CONFIG

# what tests/end_to_end/test_readers.py reads such folders with, each in an environment of its own, and of which types
READERS = (
    "transformers==4.48.3",
    "transformers==4.57.6",
    "transformers==5.0.0",
    "transformers==5.24.0",
    "sentence-transformers==5.1.2 transformers==4.57.6",
    "sentence-transformers==6.2.0",
    "onnxruntime==1.32.0 onnxscript==0.7.2 transformers==4.57.6",
)
MODEL_TYPES = {"roberta", "xlm-roberta", "bert", "distilbert", "albert", "electra", "modernbert"}


def save(model: PreTrainedModel, tokenizer: Any, folder: Path, longest: int | None) -> None:
    """Write a Transformers folder.

    Args:
        longest: tokens of a text at which pipelines cut; None: any number.
    """
    # Vectors that two modules share, such as the bias of RoBERTa's head, get both their names. Transformers 5 would
    # write one, and 4.48 sets the parameter of the missing name to zero without a word, and with it the bias.
    state = {name: tensor.clone() if tensor.ndim == 1 else tensor for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    write_json(folder / CONFIG, {**read_json(folder / CONFIG), **names_of_version_4(model.config)})
    save_tokenizer(tokenizer, folder, longest)
    for path in folder.glob("*.safetensors"):
        take_umask(path)


def names_of_version_4(config: PreTrainedConfig) -> dict[str, Any]:
    """Return settings that Transformers 4 knows by other names, because it takes defaults where they are missing."""
    if config.model_type != "modernbert":
        return {}
    rope, kinds = config.rope_parameters, [kind == "full_attention" for kind in config.layer_types]
    every = [n for n in range(1, len(kinds) + 1) if kinds == [number % n == 0 for number in range(len(kinds))]]
    return {
        "global_rope_theta": rope["full_attention"]["rope_theta"],
        "local_rope_theta": rope["sliding_attention"]["rope_theta"],
        **({"global_attn_every_n_layers": every[0]} if every else {}),
    }


def tried(model_type: str) -> str:
    """Return what a model card says about the programs that have read such folders."""
    written = f"Written by Transformers {transformers.__version__}."
    if model_type not in MODEL_TYPES:
        return f"{written} Other versions and programs were not tried with model type {model_type}."
    named = [reader.split()[0].split("==") for reader in READERS]
    programs = (
        f"{program} {', '.join(version for _, version in some)}"
        for program, some in groupby(named, key=lambda one: one[0])
    )
    return f"{written} Of this model type these programs read the same tokens and scores: {'; '.join(programs)}."

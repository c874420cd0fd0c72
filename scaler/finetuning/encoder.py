"""Load a pretrained encoder with a new head for a task, and its tokenizer, from a Transformers folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedModel,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from scaler.core.errors import ScalerError, one_line
from scaler.core.files import checksum
from scaler.data.tokenizer import from_pretrained
from scaler.finetuning.examples import MULTILABEL, TOKENS
from scaler.model.build import ATTENTION, positions

disable_progress_bar()  # of loading weights
set_verbosity_error()  # about new weights in a model: `load` checks them itself
MOST_TOKENS = 512  # of a text, unless the model has fewer positions
ROLES = ("pad", "bos", "eos", "cls", "sep", "mask")
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "sentencepiece.bpe.model")
SHOWN = 300  # characters of another library's error


def name_of(source: str) -> str:
    """Return the name of a model: its folder's; for an export the run's."""
    path = Path(source).resolve() if Path(source).exists() else Path(source)
    return path.parent.name if path.name == "export" else path.name


def identity(source: str) -> dict[str, str]:
    """Return the checksums of a local model's files; none for a hub id."""
    names = ("config.json", *TOKENIZER_FILES)
    files = sorted(
        [*(f for f in map(Path(source).joinpath, names) if f.is_file()), *Path(source).glob("*.safetensors")]
    )
    return {path.name: checksum(path) for path in files}


def configuration(source: str) -> Any:
    """Load the model's configuration. Raises ScalerError when it cannot be loaded."""
    try:
        return AutoConfig.from_pretrained(source, trust_remote_code=False)
    except Exception as error:  # of many kinds, for files that are damaged and for the hub
        raise ScalerError(
            f"{source}: no configuration that Transformers can load ({one_line(error)[:SHOWN]})"
        ) from error


def tokenizer(source: str, config: Any) -> Any:
    """Load the tokenizer, and check that it belongs to the model.

    Raises: ScalerError when there is none, it has more entries than the model's embedding, or its special ids are
    others than the configuration's.
    """
    folder = Path(source)
    if folder.is_dir() and not any((folder / name).is_file() for name in TOKENIZER_FILES):
        # Transformers would make one without entries, of the model's type
        raise ScalerError(f"{folder}: no tokenizer here; save there the one that the model was trained with")
    loaded = from_pretrained(source, "save it again")
    if not loaded.is_fast:
        raise ScalerError(f"{source}: the tokenizer has no tokenizer.json, which tells pieces apart; save it as one")
    entries = max(loaded.get_vocab().values(), default=-1) + 1
    if entries > config.vocab_size:
        raise ScalerError(
            f"{source}: the tokenizer has {entries:,} entries, but the model's embedding {config.vocab_size:,} rows; "
            "save the model's own tokenizer there"
        )
    if loaded.pad_token_id is None:
        raise ScalerError(f"{source}: the tokenizer has no pad token, which batches need; save one that has")
    for role in ROLES:
        of_model, of_tokenizer = (getattr(thing, f"{role}_token_id", None) for thing in (config, loaded))
        if None not in (of_model, of_tokenizer) and of_model != of_tokenizer:
            raise ScalerError(
                f"{source}: the model's {role}_token_id is {of_model}, the tokenizer's {of_tokenizer}; save the "
                "model's own tokenizer there"
            )
    return loaded


def most_tokens(config: Any, asked: int | None, source: str) -> int:
    """Return the longest text in tokens, special ones included. Raises ScalerError when the model takes fewer."""
    most = positions(config)
    if asked is None:
        return min(MOST_TOKENS, most or MOST_TOKENS)
    if asked < 3 or (most is not None and asked > most):
        raise ScalerError(f"--max_length {asked}: {source} takes 3 to {most} tokens; leave it out, or lower it")
    return asked


def load(source: str, task: str, labels: list[str], seed: int, from_scratch: bool) -> PreTrainedModel:
    """Load the encoder with a new head for the labels, in fp32; new weights depend on the seed alone.

    Args:
        from_scratch: keep the configuration, but draw all weights at random.

    Raises: ScalerError when the weights are absent, damaged, not safetensors, or those of another model.
    """
    kind = AutoModelForTokenClassification if task == TOKENS else AutoModelForSequenceClassification
    config = configuration(source)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    if task != TOKENS:
        config.problem_type = f"{'multi' if task == MULTILABEL else 'single'}_label_classification"
    set_seed(seed)
    settings: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": ATTENTION}
    try:
        if from_scratch:
            return kind.from_config(config, trust_remote_code=False, **settings)
        model, loaded = kind.from_pretrained(
            source, config=config, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **settings
        )
    except Exception as error:  # of many kinds, for a configuration or weights that are damaged or of another kind
        reason = one_line(error)[:SHOWN]
        raise ScalerError(f"{source}: no encoder that Transformers loads from safetensors ({reason})") from error
    inside = model.base_model_prefix + "."
    if missing := sorted(n for n in loaded["missing_keys"] if n.startswith(inside) and ".pooler." not in n):
        raise ScalerError(f"{source}: its weights lack {', '.join(missing[:3])}; fine-tune a whole encoder")
    return model

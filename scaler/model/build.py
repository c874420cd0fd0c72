"""Build any masked LM that Transformers has, with the settings of a recipe."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from scaler.config.recipe import Recipe
from scaler.core.errors import ScalerError, nearest
from scaler.data.tokenizer import Vocabulary
from scaler.model import embeddings

# Families after fairseq's RoBERTa count positions from pad_token_id + 1; others from 0.
POSITIONS_AFTER_PAD = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text"}
# Families with sliding attention that take one mask for each type of layer.
MASK_BY_LAYER_TYPE = {"modernbert"}
# The attention that takes an explicit boolean mask as it is; "eager" would add it to the scores as 0 and 1.
ATTENTION = "sdpa"
REFUSALS = (ValueError, TypeError, KeyError, StrictDataclassError)  # what Transformers raises for bad settings


def configuration(settings: Mapping[str, Any], vocabulary: Vocabulary, vocab_size: int, seq_len: int) -> Any:
    """Build the Transformers configuration of a recipe's `model` section.

    Args:
        settings: `model_type` and any keys of its configuration class.
        vocabulary: vocabulary with the special ids.
        vocab_size: embedding rows; at least the tokenizer's entries.
        seq_len: tokens of a row; the model must have as many positions.

    Raises: ScalerError for an unknown model type or key, one that cannot keep documents apart, or too few positions.
    """
    model_type = str(settings.get("model_type"))
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ScalerError(
            f"recipe: model.model_type={model_type!r} has no masked LM in Transformers; "
            + nearest(model_type, MODEL_FOR_MASKED_LM_MAPPING_NAMES)
        )
    special_ids = {
        **{"pad_token_id": vocabulary.pad_id, "mask_token_id": vocabulary.mask_id},
        **dict.fromkeys(("bos_token_id", "cls_token_id"), vocabulary.begin_id),
        **dict.fromkeys(("eos_token_id", "sep_token_id"), vocabulary.end_id),
    }
    owned = {"vocab_size": "tokenizer.vocab_size"} | dict.fromkeys(special_ids, "the tokenizer")
    known = {*CONFIG_MAPPING[model_type]().to_dict(), *CONFIG_MAPPING[model_type].attribute_map}
    for name in settings:
        if name in owned:
            raise ScalerError(f"recipe: model.{name} is decided by {owned[name]}; leave it out of the model section")
        if name not in known and name != "model_type":
            raise ScalerError(f"recipe: unknown key model.{name} for {model_type}; {nearest(str(name), known)}")
    if len(vocabulary.special_ids) and vocabulary.size > vocab_size:
        raise ScalerError(
            f"the tokenizer has {vocabulary.size:,} entries, tokenizer.vocab_size is {vocab_size:,}; make them agree"
        )
    try:
        config = AutoConfig.for_model(
            **dict(settings),
            vocab_size=vocab_size,
            **{name: value for name, value in special_ids.items() if name in known},
        )
    except REFUSALS as error:
        raise _refused(error) from error
    check_rows_fit(config, seq_len, "recipe: model.")
    return config


def configuration_of(recipe: Recipe, vocabulary: Vocabulary) -> Any:
    """Build the configuration of a recipe's model. Raises ScalerError as `configuration` does."""
    return configuration(recipe.model, vocabulary, recipe.tokenizer.vocab_size, recipe.data.seq_len)


def check_rows_fit(config: PreTrainedConfig, seq_len: int, where: str) -> None:
    """Check that a model can take packed rows of `seq_len` tokens.

    Raises: ScalerError, which begins with `where`, when it cannot.
    """
    # an encoder-decoder's mask is another; MobileBERT's trigrams join a token's neighbours, whatever the mask
    cannot = config.is_encoder_decoder or getattr(config, "trigram_input", False)
    if cannot or (has_sliding_layers(config) and config.model_type not in MASK_BY_LAYER_TYPE):
        raise ScalerError(f"{where}model_type={config.model_type!r} cannot keep the documents of a row apart")
    needed = seq_len + first_position(config)
    if getattr(config, "max_position_embeddings", needed) < needed:
        raise ScalerError(
            f"{where}max_position_embeddings={config.max_position_embeddings}, but data.seq_len={seq_len} "
            f"needs {needed} positions with {config.model_type}"
        )


def first_position(config: PreTrainedConfig) -> int:
    """Return the position id of a document's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PAD else 0


def positions(config: PreTrainedConfig) -> int | None:
    """Return how many tokens of a text the model has positions for; None: any number."""
    embedded = getattr(config, "max_position_embeddings", None)
    return None if embedded is None else int(embedded) - first_position(config)


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Build a model in fp32, with weights that depend on `seed` alone and are the same on every rank."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForMaskedLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
        except REFUSALS as error:
            raise _refused(error) from error
    return model


def from_recipe(recipe: Recipe, config: PreTrainedConfig) -> PreTrainedModel:
    """Build a recipe's model, with its token embeddings frozen where the recipe freezes them.

    Args:
        config: from `configuration_of`, or a smaller one.
    """
    model = build(config, recipe.seed)
    if recipe.optimizer.frozen_embeddings:
        embeddings.freeze(model)
    return model


def _refused(error: Exception) -> ScalerError:
    return ScalerError(f"recipe: Transformers refuses this model section: {' '.join(str(error).split())}")


def has_sliding_layers(config: PreTrainedConfig) -> bool:
    """Return whether some layers attend to a window of positions alone."""
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())

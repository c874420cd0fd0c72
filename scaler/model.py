"""Any masked LM that Transformers can build, with its head on the masked positions only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from scaler.batches import Batch, Vocabulary
from scaler.errors import ScalerError, nearest

# Families after fairseq's RoBERTa count positions from pad_token_id + 1; others from 0.
POSITIONS_AFTER_PAD = {"roberta", "xlm-roberta", "camembert", "xlm-roberta-xl", "roberta-prelayernorm", "data2vec-text"}
# The attention that takes an explicit boolean mask as it is; "eager" would add it to the scores as 0 and 1.
ATTENTION = "sdpa"


def configuration(settings: Mapping[str, Any], vocabulary: Vocabulary, vocab_size: int, seq_len: int) -> Any:
    """Build the Transformers configuration of a recipe's `model` section.

    Args:
        settings: `model_type` and any keys of its configuration class.
        vocabulary: gives the special ids.
        vocab_size: embedding rows; at least the tokenizer's entries.
        seq_len: tokens in a row; the model's positions must hold it.

    Raises: ScalerError for an unknown model type or key, or too few positions.
    """
    model_type = settings.get("model_type")
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ScalerError(
            f"recipe: model.model_type={model_type!r} has no masked LM in Transformers; "
            + nearest(str(model_type), MODEL_FOR_MASKED_LM_MAPPING_NAMES)
        )
    owned = {"vocab_size": "tokenizer.vocab_size"} | dict.fromkeys(
        ("pad_token_id", "bos_token_id", "eos_token_id"), "the tokenizer"
    )
    known = set(CONFIG_MAPPING[model_type]().to_dict())
    for name in settings:
        if name in owned:
            raise ScalerError(f"recipe: model.{name} is decided by {owned[name]}; leave it out of the model section")
        if name not in known and name != "model_type":
            raise ScalerError(f"recipe: unknown key model.{name} for {model_type}; {nearest(name, known)}")
    if len(vocabulary.special_ids) and vocabulary.size > vocab_size:
        raise ScalerError(
            f"the tokenizer has {vocabulary.size:,} entries, tokenizer.vocab_size is {vocab_size:,}; make them agree"
        )
    config = AutoConfig.for_model(
        **dict(settings),
        vocab_size=vocab_size,
        pad_token_id=vocabulary.pad_id,
        bos_token_id=vocabulary.begin_id,
        eos_token_id=vocabulary.end_id,
    )
    needed = seq_len + first_position(config)
    if getattr(config, "max_position_embeddings", needed) < needed:
        raise ScalerError(
            f"recipe: model.max_position_embeddings={config.max_position_embeddings}, but data.seq_len={seq_len} "
            f"needs {needed} positions with {model_type}"
        )
    return config


def first_position(config: PreTrainedConfig) -> int:
    """Position id of a document's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PAD else 0


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Build the model with weights that hang on `seed` alone (the same on every rank), in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForMaskedLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
        except (ValueError, TypeError) as error:
            raise ScalerError(f"recipe: Transformers refuses this model section: {error}") from error
    return model


class MaskedLM(nn.Module):
    """A Transformers masked LM whose head sees the masked positions alone.

    The encoder's output is narrowed from (rows, seq_len, hidden) to (rows, masked, hidden) on its way to the model's
    own head, whatever that is, so every architecture keeps its exact mathematics.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._positions: torch.Tensor | None = None
        model.base_model.register_forward_hook(self._narrow)

    def _narrow(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if self._positions is not None:
            hidden = output.last_hidden_state  # (rows, seq_len, hidden)
            index = self._positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)  # (rows, masked, hidden)
        return output

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Score the masked positions.

        Returns: the mean cross-entropy over them in nats (a scalar), and their detached logits
        (rows, masked, vocab_size).
        """
        self._positions = batch.masked_positions
        try:
            logits = self.model(
                input_ids=batch.input_ids,
                attention_mask=document_mask(batch.segment_ids),
                position_ids=batch.position_ids,
            ).logits
        finally:
            self._positions = None
        loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), batch.labels.flatten())
        return loss, logits.detach()


def document_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Attention mask that keeps documents apart: bool (rows, 1, seq_len, seq_len), True where a query may look.

    Transformers' own masks ignore restarting positions in bidirectional models, so it must be explicit.
    """
    return (segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)).unsqueeze(1)


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


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(all, trainable) parameters, tied ones counted once."""
    parameters = list(model.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def flops_per_row(model: PreTrainedModel, seq_len: int, masked: int) -> float:
    """Floating-point operations of one row's forward and backward pass.

    6 per weight and token for matrix multiplications (2 forward, 4 backward: Kaplan et al. 2020, section 2.1), for the
    head on the masked tokens alone, and 12 * layers * hidden * seq_len per token for the attention scores and sums,
    counted over the whole row although documents are kept apart. Lookups, norms and activations count as nothing.
    """
    encoder = {id(m) for m in model.base_model.modules()}
    linears = [m for m in model.modules() if isinstance(m, nn.Linear)]
    in_encoder = sum(m.weight.numel() for m in linears if id(m) in encoder)
    in_head = sum(m.weight.numel() for m in linears if id(m) not in encoder)
    config = model.config
    attention = 12 * config.num_hidden_layers * config.hidden_size * seq_len
    return float(seq_len * (6 * in_encoder + attention) + masked * 6 * in_head)

"""Any masked LM that Transformers can build, with its head on the masked positions only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from scaler.core.errors import ScalerError, nearest
from scaler.data.batches import Batch, Vocabulary
from scaler.model import head
from scaler.model.kernels import attention, dropout

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
        vocabulary: gives the special ids.
        vocab_size: embedding rows; at least the tokenizer's entries.
        seq_len: tokens in a row; the model's positions must hold it.

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


def check_rows_fit(config: PreTrainedConfig, seq_len: int, where: str) -> None:
    """Raises ScalerError, which begins with `where`, for a model that cannot take packed rows of so many tokens."""
    # an encoder-decoder's mask is another; MobileBERT's trigrams join a token's neighbours, whatever the mask
    cannot = config.is_encoder_decoder or getattr(config, "trigram_input", False)
    if cannot or (_has_sliding_layers(config) and config.model_type not in MASK_BY_LAYER_TYPE):
        raise ScalerError(f"{where}model_type={config.model_type!r} cannot keep the documents of a row apart")
    needed = seq_len + first_position(config)
    if getattr(config, "max_position_embeddings", needed) < needed:
        raise ScalerError(
            f"{where}max_position_embeddings={config.max_position_embeddings}, but data.seq_len={seq_len} "
            f"needs {needed} positions with {config.model_type}"
        )


def first_position(config: PreTrainedConfig) -> int:
    """Position id of a document's first token."""
    return int(config.pad_token_id) + 1 if config.model_type in POSITIONS_AFTER_PAD else 0


def build(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    """Build the model with weights that hang on `seed` alone (the same on every rank), in fp32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            model = AutoModelForMaskedLM.from_config(config, attn_implementation=ATTENTION, dtype=torch.float32)
        except REFUSALS as error:
            raise _refused(error) from error
    return model


def _refused(error: Exception) -> ScalerError:
    return ScalerError(f"recipe: Transformers refuses this model section: {' '.join(str(error).split())}")


class MaskedLM(nn.Module):
    """A Transformers masked LM whose head sees the masked positions alone, and scores some of them at a time.

    The encoder's output is narrowed from (rows, seq_len, hidden) to (rows, masked, hidden) on its way to the model's
    own head, whatever that is, so every architecture keeps its exact mathematics. The head's last layer, where it is
    linear and its scores are the model's logits, gives the loss instead of them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        attention.use(model)
        dropout.use(model)
        _look_up_sparsely(model)
        self.model = model
        self._positions: torch.Tensor | None = None
        model.base_model.register_forward_hook(self._narrow)
        self.train(model.training)
        if isinstance(next(model.parameters()), FakeTensor):  # of which nothing can be compared
            self.whole_scores = not isinstance(model.get_output_embeddings(), nn.Linear)
        else:
            on_paper = next(model.parameters()).device.type == "meta"
            self.whole_scores = on_paper or not self._last_layer_gives_the_logits()

    def _narrow(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if self._positions is not None:
            hidden = output.last_hidden_state  # (rows, seq_len, hidden)
            index = self._positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)  # (rows, masked, hidden)
        return output

    def _last_layer_gives_the_logits(self) -> bool:
        """Found out on two tokens, for some models add to their last layer's scores (ESM), or have none."""
        if not isinstance(self.model.get_output_embeddings(), nn.Linear):
            return False
        ids = torch.arange(2, device=self.model.device).unsqueeze(0)
        tokens = Batch(ids, ids + first_position(self.model.config), torch.ones_like(ids), ids, ids)
        training = self.training
        self.eval()
        with torch.no_grad():
            expected = self._loss_and_scores(tokens)[0]
            found = self._logits(tokens, lambda hidden: self._head(hidden, tokens.labels)[0])
        self.train(training)
        return found.ndim == 0 and torch.allclose(found, expected, rtol=1e-4)

    def forward(self, batch: Batch) -> tuple[torch.Tensor, head.Scores | None]:
        """Score the masked positions.

        Returns: the mean cross-entropy over them in nats (a scalar); and, but for training, what is to know of each
        position, row by row.
        """
        if self.whole_scores:
            return self._loss_and_scores(batch)
        scores: list[head.Scores | None] = []

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            loss, found = self._head(hidden, batch.labels)
            scores.append(found)
            return loss

        return self._logits(batch, loss_of), scores[0]

    def _logits(self, batch: Batch, last_layer: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """What the model gives as its logits, (rows, masked, vocab_size), or what another last layer makes of them."""
        own = self.model.get_output_embeddings()
        self._positions = batch.masked_positions
        try:
            if last_layer is not None:
                own.forward = last_layer  # within the module's call, where ZeRO-3 has gathered its weights
            output = self.model(
                input_ids=batch.input_ids,
                attention_mask=attention_mask(self.model.config, batch.segment_ids),
                position_ids=batch.position_ids,
            )
        finally:
            self._positions = None
            if last_layer is not None:
                del own.forward
        return cast(torch.Tensor, output.logits)

    def _head(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, head.Scores | None]:
        """Loss and scores of the last layer's inputs (rows, masked, width)."""
        own, flat, truth = self.model.get_output_embeddings(), hidden.flatten(0, 1), labels.flatten()
        if not self.training:
            step = head.positions_at_once(own.out_features)
            scores = head.score(lambda some: nn.functional.linear(some, own.weight, own.bias), flat, truth, step)
            return scores.losses.mean(), scores
        step = head.entries_at_once(len(flat))
        if own.out_features > step:
            return head.WideCrossEntropy.apply(flat, own.weight, own.bias, truth, step), None
        logits = nn.functional.linear(flat, own.weight, own.bias)
        return nn.functional.cross_entropy(logits.float(), truth), None

    def _loss_and_scores(self, batch: Batch) -> tuple[torch.Tensor, head.Scores | None]:
        """The same from all logits at once."""
        logits, truth = self._logits(batch).flatten(0, 1), batch.labels.flatten()
        if self.training:
            return nn.functional.cross_entropy(logits.float(), truth), None
        scores = head.score(lambda some: some, logits, truth, head.positions_at_once(logits.shape[-1]))
        return scores.losses.mean(), scores


def _look_up_sparsely(model: PreTrainedModel) -> None:
    """Let the gradient of a lookup be of the rows that were looked up, where the head has one of the same matrix.

    Autograd has the head's, of all entries, by then, and adds these rows to it. From a dense lookup it would get a
    second matrix of that size, nearly all zeros.
    """
    lookup, own = model.get_input_embeddings(), model.get_output_embeddings()
    tied = isinstance(own, nn.Linear) and own.weight is lookup.weight
    if tied and isinstance(lookup, nn.Embedding) and lookup.weight.device.type == "cpu":
        lookup.sparse = True


def document_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Attention mask that keeps documents apart: bool (rows, 1, seq_len, seq_len), True where a query may look.

    Transformers' own masks ignore restarting positions in bidirectional models, so it must be explicit.
    """
    return (segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)).unsqueeze(1)


def attention_mask(config: PreTrainedConfig, segment_ids: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """What the model takes as its attention mask: the document mask, or one for each of its types of layer.

    Of an explicit mask Transformers leaves out a model's own sliding window (ModernBERT's local attention).
    """
    everywhere = document_mask(segment_ids)
    if not _has_sliding_layers(config):
        return everywhere
    positions = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    near = (positions.unsqueeze(1) - positions).abs() <= config.sliding_window  # (seq_len, seq_len)
    return {"full_attention": everywhere, "sliding_attention": everywhere & near}


def _has_sliding_layers(config: PreTrainedConfig) -> bool:
    return "sliding_attention" in (getattr(config, "layer_types", None) or ())


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

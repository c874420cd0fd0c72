"""Wrap a Transformers masked LM so that its head sees the masked positions alone, some of them at a time.

With 256,000 entries the scores of one batch take more memory than all else. So a wide head computes its loss and
gradient some entries at a time (kernels/cross_entropy.py); where entries are ranked, it takes some positions at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedConfig, PreTrainedModel

from scaler.core import switches
from scaler.data.batches import Batch
from scaler.model.build import first_position, has_sliding_layers
from scaler.model.kernels import attention, cross_entropy, dropout, sparse_lookup

SCORES_TO_RANK = 1 << 26  # in fp32 268 MB: 262 positions of 256,000 entries
TOP = 3  # guesses kept for each position


@dataclass(frozen=True)
class Scores:
    """A summary of the scores at `positions` masked positions, in the order of the labels.

    Attributes:
        losses: fp32 (positions,), cross-entropy in nats.
        guesses: int64 (positions, TOP), the entries with the highest scores, best first.
        probabilities: fp32 (positions, TOP), those of the guesses.
    """

    losses: torch.Tensor
    guesses: torch.Tensor
    probabilities: torch.Tensor


def positions_at_once(entries: int) -> int:
    """Return how many positions are ranked at once over so many entries."""
    return max(1, SCORES_TO_RANK // entries)


def score(
    logits_of: Callable[[torch.Tensor], torch.Tensor], hidden: torch.Tensor, labels: torch.Tensor, step: int
) -> Scores:
    """Score some positions at a time.

    Args:
        logits_of: function from hidden states (some, width) to logits (some, entries).
        hidden: (positions, width).
        labels: int64 (positions,).
        step: positions scored at once.
    """
    parts = []
    for some, wanted in zip(hidden.split(step), labels.split(step), strict=True):
        logits = logits_of(some).float()
        losses = nn.functional.cross_entropy(logits, wanted, reduction="none")
        best = logits.topk(min(TOP, logits.shape[-1]))
        parts.append((losses, best.indices, (best.values - logits.logsumexp(-1, keepdim=True)).exp()))
    return Scores(*map(torch.cat, zip(*parts, strict=True)))


class MaskedLM(nn.Module):
    """A Transformers masked LM whose head sees the masked positions alone, and scores some of them at a time.

    A hook narrows the encoder's output from (rows, seq_len, hidden) to (rows, masked, hidden) before the model's own
    head. So every architecture keeps its exact mathematics. Where the head's last layer is linear and its scores are
    the model's logits, that layer returns the loss instead of logits.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        cpu_only = "not measured on cuda" if torch.cuda.is_available() else None
        switches.apply("attention", partial(attention.install, model), cpu_only)
        switches.apply("dropout", partial(dropout.install, model), cpu_only)
        switches.apply("sparse_lookup", partial(sparse_lookup.install, model), cpu_only)
        self.model = model
        self._positions: torch.Tensor | None = None
        model.base_model.register_forward_hook(self._narrow)
        self.train(model.training)
        self.whole_scores = not switches.apply("wide_head", self._why_whole_scores)

    def _narrow(self, module: nn.Module, arguments: Any, output: Any) -> Any:
        if self._positions is not None:
            hidden = output.last_hidden_state  # (rows, seq_len, hidden)
            index = self._positions.unsqueeze(-1).expand(-1, -1, hidden.shape[-1])
            output.last_hidden_state = hidden.gather(1, index)  # (rows, masked, hidden)
        return output

    def _why_whole_scores(self) -> str | None:
        """Return why the loss cannot be computed from the inputs of the last layer, or None.

        Two tokens show it, because some models change their last layer's scores (ESM) or have no such layer.
        """
        weight = next(self.model.parameters())
        if weight.device.type == "meta":
            return "the model has no weights"
        if not isinstance(self.model.get_output_embeddings(), nn.Linear):
            return "the model's last layer is not linear"
        if isinstance(weight, FakeTensor):  # it has no values that could be compared
            return None
        ids = torch.arange(2, device=self.model.device).unsqueeze(0)
        tokens = Batch(ids, ids + first_position(self.model.config), torch.ones_like(ids), ids, ids)
        training = self.training
        self.eval()
        with torch.no_grad():
            expected = self._loss_and_scores(tokens)[0]
            found = self._logits(tokens, lambda hidden: self._head(hidden, tokens.labels)[0])
        self.train(training)
        if found.ndim == 0 and torch.allclose(found, expected, rtol=1e-4):
            return None
        return "the model changes the scores of its last layer"

    def forward(self, batch: Batch) -> tuple[torch.Tensor, Scores | None]:
        """Score the masked positions.

        Returns: the mean cross-entropy over them in nats (a scalar); and in evaluation the scores of each position, row
        by row.
        """
        if self.whole_scores:
            return self._loss_and_scores(batch)
        scores: list[Scores | None] = []

        def loss_of(hidden: torch.Tensor) -> torch.Tensor:
            loss, found = self._head(hidden, batch.labels)
            scores.append(found)
            return loss

        return self._logits(batch, loss_of), scores[0]

    def _logits(self, batch: Batch, last_layer: Callable[[torch.Tensor], torch.Tensor] | None = None) -> torch.Tensor:
        """Return the model's logits (rows, masked, vocab_size), or what another last layer returns instead."""
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

    def _head(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, Scores | None]:
        """Return loss and scores from the last layer's inputs (rows, masked, width)."""
        own = self.model.get_output_embeddings()
        if self.training and own.out_features > (step := cross_entropy.entries_at_once(labels.numel())):
            flat = hidden.flatten(0, 1)
            return cross_entropy.WideCrossEntropy.apply(flat, own.weight, own.bias, labels.flatten(), step), None
        return self._score(
            lambda some: nn.functional.linear(some, own.weight, own.bias), hidden, labels, own.out_features
        )

    def _score(
        self,
        logits_of: Callable[[torch.Tensor], torch.Tensor],
        hidden: torch.Tensor,
        labels: torch.Tensor,
        entries: int,
    ) -> tuple[torch.Tensor, Scores | None]:
        """Return the loss of hidden states (rows, masked, width), and in evaluation their scores."""
        flat, truth = hidden.flatten(0, 1), labels.flatten()
        if self.training:
            return nn.functional.cross_entropy(logits_of(flat).float(), truth), None
        scores = score(logits_of, flat, truth, positions_at_once(entries))
        return scores.losses.mean(), scores

    def _loss_and_scores(self, batch: Batch) -> tuple[torch.Tensor, Scores | None]:
        """Return loss and scores from all logits at once."""
        logits = self._logits(batch)
        return self._score(lambda some: some, logits, batch.labels, logits.shape[-1])


def document_mask(segment_ids: torch.Tensor) -> torch.Tensor:
    """Return the attention mask that keeps documents apart.

    It must be explicit, because Transformers' own masks ignore restarting positions in bidirectional models.

    Returns: bool (rows, 1, seq_len, seq_len), True where a query may attend.
    """
    return (segment_ids.unsqueeze(2) == segment_ids.unsqueeze(1)).unsqueeze(1)


def attention_mask(config: PreTrainedConfig, segment_ids: torch.Tensor) -> torch.Tensor | dict[str, torch.Tensor]:
    """Return a model's attention mask: the document mask, or one for each of its types of layer.

    With an explicit mask Transformers drops a model's sliding window (ModernBERT's local attention); it is added here.
    """
    everywhere = document_mask(segment_ids)
    if not has_sliding_layers(config):
        return everywhere
    positions = torch.arange(segment_ids.shape[1], device=segment_ids.device)
    near = (positions.unsqueeze(1) - positions).abs() <= config.sliding_window  # (seq_len, seq_len)
    return {"full_attention": everywhere, "sliding_attention": everywhere & near}

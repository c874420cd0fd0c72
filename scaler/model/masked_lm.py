"""Wrap a Transformers masked LM so that its head sees the masked positions only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from transformers import PreTrainedConfig, PreTrainedModel

from scaler.data.batches import Batch
from scaler.model import head
from scaler.model.build import _has_sliding_layers, first_position
from scaler.model.kernels import attention, cross_entropy, dropout


class MaskedLM(nn.Module):
    """A Transformers masked LM whose head sees the masked positions alone, and scores some of them at a time.

    The encoder's output is narrowed from (rows, seq_len, hidden) to (rows, masked, hidden) on its way to the model's
    own head, whatever that is, so every architecture keeps its exact mathematics. The head's last layer, where it is
    linear and its scores are the model's logits, gives the loss instead of them.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        attention.install(model)
        dropout.install(model)
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
        step = cross_entropy.entries_at_once(len(flat))
        if own.out_features > step:
            return cross_entropy.WideCrossEntropy.apply(flat, own.weight, own.bias, truth, step), None
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

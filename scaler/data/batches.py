"""Read rows from disk into masked micro-batches. The only state is the caller's `consumed_rows`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scaler.core.errors import ScalerError
from scaler.data import masking, order
from scaler.data.token_rows import TokenRows
from scaler.data.tokenizer import Vocabulary


@dataclass(frozen=True)
class Batch:
    """A micro-batch; all tensors int64.

    Attributes:
        input_ids: (rows, seq_len), masked.
        position_ids: (rows, seq_len), restarting at each document.
        segment_ids: (rows, seq_len), the document's number in its row from 1 on, 0 for padding.
        masked_positions: (rows, masked), ascending.
        labels: (rows, masked), the ids before masking.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    masked_positions: torch.Tensor
    labels: torch.Tensor

    @classmethod
    def of_documents(
        cls,
        input_ids: torch.Tensor,
        segment_ids: torch.Tensor,
        masked_positions: torch.Tensor,
        labels: torch.Tensor,
        first_position: int,
    ) -> Batch:
        """Build a batch whose position ids restart at `first_position` in each document."""
        index = torch.arange(segment_ids.shape[1])
        begins = torch.ones_like(segment_ids, dtype=torch.bool)
        begins[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
        starts = torch.where(begins, index, 0).cummax(1).values
        positions = torch.where(segment_ids > 0, index - starts + first_position, padding_position(first_position))
        return cls(input_ids, positions, segment_ids, masked_positions, labels)

    def to(self, device: torch.device) -> Batch:
        """Return the same batch on a device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


def padding_position(first_position: int) -> int:
    """Return the position id of padding, where documents begin at `first_position`."""
    return max(0, first_position - 1)


def digest(batch: Batch, consumed_rows: int) -> int:
    """Return a 64-bit hash of a batch that begins at `consumed_rows`: of each masked row, its labels, and its place.

    Digests of a run's batches add up, modulo 2**64, to the same sum at every world size.
    """
    rows = len(batch.input_ids)
    parts = [batch.input_ids.numpy(), batch.masked_positions.numpy(), batch.labels.numpy()]
    content = np.concatenate(parts, axis=1).astype(np.uint64)  # (rows, seq_len + 2 * masked)
    with np.errstate(over="ignore"):
        places = order.mix64(np.arange(content.shape[1]) + 1)
        of_row = (content + np.uint64(1)) * places
        when = order.key(np.arange(consumed_rows, consumed_rows + rows))
        return int(order.mix64(of_row.sum(axis=1) ^ when).sum())


class RowReader:
    """A reader of the packed rows of one split, which masks them.

    Args:
        rows: of the split.
        vocabulary: special ids of the tokenizer.
        masked: masked positions a row, unless a call asks for fewer.
        first_position: position id at which each document starts (RoBERTa: pad id + 1; BERT, DistilBERT: 0).
        seed: of order and masks.
    """

    def __init__(
        self,
        rows: TokenRows,
        vocabulary: Vocabulary,
        masked: int,
        first_position: int,
        seed: int,
    ) -> None:
        self.rows, self.vocabulary = rows, vocabulary
        self.masked, self.first_position, self.seed = masked, first_position, seed
        self._ordinary_ids = vocabulary.ordinary_ids()
        self._is_ordinary = np.ones(vocabulary.size, dtype=bool)
        self._is_ordinary[list(vocabulary.special_ids)] = False

    def at(self, consumed_rows: int, count: int, masked: int | None = None) -> Batch:
        """Return the next `count` rows of a run that has consumed `consumed_rows`, with `masked` positions each."""
        return self.read(*order.rows_at(consumed_rows, count, len(self.rows), self.seed), masked)

    def read(self, epochs: np.ndarray, rows: np.ndarray, masked: int | None = None) -> Batch:
        """Read rows and mask them with the masks of their epochs: both int64 (rows,).

        A smaller number `masked` masks a subset of the positions that a larger one masks.

        Raises: ScalerError when a row has fewer ordinary tokens than that.
        """
        masked = self.masked if masked is None else masked
        input_ids, position_ids, segment_ids = self.assemble(rows)
        maskable = np.take(self._is_ordinary, input_ids)
        if maskable.sum(axis=1).min(initial=masked) < masked:
            raise ScalerError(
                f"a row has fewer than {masked} tokens to mask, because its documents hold special tokens; "
                "prepare the data without them"
            )
        row_keys = order.key(self.seed, epochs, rows)
        positions = masking.choose_positions(maskable, masked, row_keys)
        labels = masking.mask_rows(input_ids, positions, row_keys, self.vocabulary.mask_id, self._ordinary_ids)
        return Batch(*map(torch.from_numpy, (input_ids, position_ids, segment_ids, positions, labels)))

    def fixed(self, rows: np.ndarray) -> Batch:
        """Return the given rows masked as in epoch 0, so that figures can be compared: int64 (rows,)."""
        return self.read(np.zeros_like(rows), rows)

    def assemble(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows, unmasked, as input ids, position ids and segment ids, each int64 (rows, seq_len).

        A begin token opens a document wherever it stands, and each row begins with one.
        """
        narrow = self.rows.take(rows)
        flat = narrow.reshape(-1)
        starts = np.flatnonzero(flat == self.vocabulary.begin_id)  # (documents,), padding belongs to the one before it
        sizes = np.diff(starts, append=len(flat))
        row = starts // self.rows.seq_len
        number = np.arange(len(starts)) - np.searchsorted(starts, row * self.rows.seq_len)
        segment_ids = np.repeat(number + 1, sizes)
        position_ids = np.repeat(self.first_position - starts, sizes)
        position_ids += np.arange(len(flat))
        padding = np.flatnonzero(flat == self.vocabulary.pad_id)
        segment_ids[padding] = 0
        position_ids[padding] = padding_position(self.first_position)
        return narrow.astype(np.int64), position_ids.reshape(narrow.shape), segment_ids.reshape(narrow.shape)

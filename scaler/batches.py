"""From shards to micro-batches: order, packing and masking put together. No state but `consumed_rows`."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from scaler import masking, order
from scaler.errors import ScalerError
from scaler.packing import SPECIAL_TOKENS, RowTable
from scaler.token_shards import TokenDataset


@dataclass(frozen=True)
class Vocabulary:
    """What the rows need to know of the tokenizer: its special ids and its size."""

    size: int
    begin_id: int
    end_id: int
    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    def ordinary_ids(self) -> np.ndarray:
        """Ids that are no special token, int64 (n,)."""
        return np.setdiff1d(np.arange(self.size, dtype=np.int64), np.asarray(self.special_ids, dtype=np.int64))


@dataclass(frozen=True)
class Batch:
    """One micro-batch; all tensors int64.

    Attributes:
        input_ids: (rows, seq_len), masked.
        position_ids: (rows, seq_len), restarting at each document.
        segment_ids: (rows, seq_len), the document's number in its row from 1 on, 0 for padding.
        masked_positions: (rows, masked), ascending.
        labels: (rows, masked), the ids that stood there.
    """

    input_ids: torch.Tensor
    position_ids: torch.Tensor
    segment_ids: torch.Tensor
    masked_positions: torch.Tensor
    labels: torch.Tensor

    def to(self, device: torch.device) -> Batch:
        """The same batch on a device."""
        return Batch(**{name: tensor.to(device, non_blocking=True) for name, tensor in vars(self).items()})


class RowReader:
    """Reads packed rows of one split and masks them.

    Args:
        dataset: the split's shards.
        table: its rows.
        vocabulary: special ids of the tokenizer.
        masked: masked positions a row.
        first_position: position id at which each document starts (RoBERTa: pad id + 1; BERT, DistilBERT: 0).
        seed: of order and masks.
    """

    def __init__(
        self,
        dataset: TokenDataset,
        table: RowTable,
        vocabulary: Vocabulary,
        masked: int,
        first_position: int,
        seed: int,
    ) -> None:
        self.dataset, self.table, self.vocabulary = dataset, table, vocabulary
        self.masked, self.first_position, self.seed = masked, first_position, seed
        self._ordinary_ids = vocabulary.ordinary_ids()
        self._is_ordinary = np.ones(vocabulary.size, dtype=bool)
        self._is_ordinary[list(vocabulary.special_ids)] = False

    def at(self, consumed_rows: int, count: int) -> Batch:
        """The next `count` rows of a run that has consumed `consumed_rows`."""
        return self.read(*order.rows_at(consumed_rows, count, self.table.n_rows, self.seed))

    def read(self, epochs: np.ndarray, rows: np.ndarray) -> Batch:
        """Read and mask the given rows as they are in the given epochs: both int64 (rows,)."""
        input_ids, position_ids, segment_ids = self.assemble(rows)
        maskable = np.take(self._is_ordinary, input_ids)
        if maskable.sum(axis=1).min(initial=self.masked) < self.masked:
            raise ScalerError(
                f"a row has fewer than {self.masked} tokens to mask, for its documents hold special tokens; "
                "prepare the data without them"
            )
        row_keys = order.key(self.seed, epochs, rows)
        positions = masking.choose_positions(maskable, self.masked, row_keys)
        labels = masking.mask_rows(input_ids, positions, row_keys, self.vocabulary.mask_id, self._ordinary_ids)
        return Batch(*map(torch.from_numpy, (input_ids, position_ids, segment_ids, positions, labels)))

    def assemble(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Lay the chunks of each row end to end: unmasked input ids, position ids, segment ids.

        Each int64 (rows, seq_len). A row is a run of pieces: its chunks, each with its two special tokens, and a last
        piece of padding, possibly empty, so that the pieces of a batch cover it without a gap.
        """
        table, seq_len = self.table, self.table.seq_len
        counts = table.row_starts[rows + 1] - table.row_starts[rows]  # (rows,), chunks in each
        first = np.cumsum(counts + 1) - (counts + 1)  # (rows,), each row's first piece
        pads = first + counts  # (rows,), each row's last piece
        n_pieces = int(counts.sum()) + len(rows)
        number = np.arange(n_pieces) - np.repeat(first, counts + 1)  # (pieces,), place in its row
        is_chunk = np.ones(n_pieces, dtype=bool)
        is_chunk[pads] = False
        chunk = (np.repeat(table.row_starts[rows], counts + 1) + number)[is_chunk]
        lengths = table.chunk_lengths[chunk]  # (chunks,), without special tokens
        sizes = np.zeros(n_pieces, dtype=np.int64)
        sizes[is_chunk] = lengths + SPECIAL_TOKENS
        sizes[pads] = seq_len - np.add.reduceat(sizes, first)
        starts = np.cumsum(sizes) - sizes  # (pieces,), in the flattened batch
        places = starts[is_chunk]
        segments = number + 1
        segments[pads] = 0
        origins = self.first_position - starts  # (pieces,), position id less place in the batch
        total = len(rows) * seq_len

        input_ids = np.full(total, self.vocabulary.pad_id, dtype=np.int64)
        input_ids[places] = self.vocabulary.begin_id
        input_ids[places + lengths + 1] = self.vocabulary.end_id
        self.dataset.copy_into(input_ids, places + 1, table.chunk_offsets[chunk], lengths)
        segment_ids = np.repeat(segments, sizes)
        position_ids = np.repeat(origins, sizes)
        position_ids += np.arange(total)
        position_ids[segment_ids == 0] = max(0, self.first_position - 1)
        shape = (len(rows), seq_len)
        return input_ids.reshape(shape), position_ids.reshape(shape), segment_ids.reshape(shape)

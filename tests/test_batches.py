"""Micro-batches from real shards, against a reader that takes one row and one token at a time."""

from pathlib import Path

import numpy as np
import pytest
import torch

from scaler import masking, order
from scaler.batches import RowReader, Vocabulary
from scaler.packing import pack
from scaler.token_shards import Manifest, TokenDataset, write_shard

BEGIN, PAD, END, UNKNOWN, MASK = SPECIAL = (0, 1, 2, 3, 4)
VOCABULARY = Vocabulary(400, BEGIN, END, PAD, MASK, SPECIAL)


def make_documents(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Documents of random ids; the unknown token is among them now and then, as in text."""
    chance = np.random.default_rng(seed)
    return [np.where(chance.random(n) < 0.05, UNKNOWN, chance.integers(5, 400, n)) for n in lengths]


def make_reader(
    folder: Path, documents: list[np.ndarray], seq_len: int, masked: int, shards: int = 1, first: int = 0, seed: int = 0
) -> RowReader:
    """A reader over documents that were written to so many shards."""
    parts = np.array_split(np.arange(len(documents)), shards)
    entries = [
        write_shard(folder / f"train-{number}", (documents[i] for i in part), np.dtype(np.uint16), VOCABULARY.size)
        for number, part in enumerate(parts)
    ]
    dataset = TokenDataset(Manifest(folder, VOCABULARY.size, "", {"train": entries}, []), "train")
    table = pack(*dataset.documents(), seq_len, masked)
    return RowReader(dataset, table, VOCABULARY, masked, first, seed)


def naive_row(reader: RowReader, epoch: int, row: int) -> tuple[list[int], ...]:
    """One row, token by token: input ids, position ids, segment ids, masked positions, labels."""
    tokens = np.concatenate([shard.ids for shard in reader.dataset.shards])
    ids, positions, segments = [], [], []
    table = reader.table
    for segment, chunk in enumerate(range(table.row_starts[row], table.row_starts[row + 1]), start=1):
        start, size = table.chunk_offsets[chunk], table.chunk_lengths[chunk]
        for place, token in enumerate([BEGIN, *tokens[start : start + size], END]):
            ids.append(int(token))
            positions.append(reader.first_position + place)
            segments.append(segment)
    while len(ids) < table.seq_len:
        ids.append(PAD)
        positions.append(max(0, reader.first_position - 1))
        segments.append(0)
    keys = order.key(reader.seed, np.array([epoch]), np.array([row]))
    maskable = np.array([[segment > 0 and token not in SPECIAL for token, segment in zip(ids, segments, strict=True)]])
    masked_positions = masking.choose_positions(maskable, reader.masked, keys)
    array = np.array([ids])
    labels = masking.mask_rows(array, masked_positions, keys, MASK, np.arange(5, 400))
    return array[0].tolist(), positions, segments, masked_positions[0].tolist(), labels[0].tolist()


@pytest.mark.parametrize("shards", [1, 4])
@pytest.mark.parametrize("first", [0, 2])
def test_rows_are_those_of_a_reader_that_goes_token_by_token(shards, first, tmp_path):
    lengths = np.random.default_rng(1).integers(1, 90, 60).tolist()
    reader = make_reader(tmp_path, make_documents(lengths), 32, 4, shards, first)
    epochs, rows = order.rows_at(reader.table.n_rows - 20, 40, reader.table.n_rows, reader.seed)  # across an epoch
    batch = reader.at(reader.table.n_rows - 20, 40)
    for place, (epoch, row) in enumerate(zip(epochs, rows, strict=True)):
        assert tuple(tensor[place].tolist() for tensor in vars(batch).values()) == naive_row(reader, epoch, row)


def test_all_rows_together_hold_every_document_once(tmp_path):
    documents = make_documents([5, 70, 1, 28, 29, 300, 12], seed=2)
    reader = make_reader(tmp_path, documents, 32, 1, shards=3)
    ids, _, segments = reader.assemble(np.arange(reader.table.n_rows))
    inside = ids[(segments > 0) & (ids != BEGIN) & (ids != END)]
    assert sorted(inside.tolist()) == sorted(np.concatenate(documents).tolist())


def test_positions_start_anew_at_each_document_and_padding_has_its_own(tmp_path):
    documents = [np.full(n, 7) for n in (3, 5, 4)]
    for first, padding in ((0, 0), (2, 1)):
        ids, positions, segments = make_reader(tmp_path, documents, 24, 1, first=first).assemble(np.array([0]))
        assert segments[0].tolist() == [1] * 7 + [2] * 6 + [3] * 5 + [0] * 6
        ramps = [list(range(first, first + n)) for n in (7, 6, 5)]
        assert positions[0].tolist() == [*ramps[0], *ramps[1], *ramps[2], *[padding] * 6]
        document = [BEGIN, 7, 7, 7, END]
        assert ids[0, -11:].tolist() == document + [PAD] * 6


def test_tensors_are_integers_of_the_stated_shapes(tmp_path):
    batch = make_reader(tmp_path, make_documents([50] * 30), 32, 4).at(0, 6)
    assert {name: tuple(tensor.shape) for name, tensor in vars(batch).items()} == {
        **dict.fromkeys(("input_ids", "position_ids", "segment_ids"), (6, 32)),
        **dict.fromkeys(("masked_positions", "labels"), (6, 4)),
    }
    assert {tensor.dtype for tensor in vars(batch).values()} == {torch.int64}


def test_a_row_is_masked_the_same_in_any_batch_and_at_any_place(tmp_path):
    reader = make_reader(tmp_path, make_documents([50] * 60), 32, 4)
    rows = np.array([3, 9, 4, 0])
    together = reader.read(np.full(4, 5), rows)
    for place, row in enumerate(rows):
        alone = reader.read(np.array([5]), np.array([row]))
        assert all(
            torch.equal(a[place], b[0]) for a, b in zip(vars(together).values(), vars(alone).values(), strict=True)
        )


@pytest.mark.parametrize("changed", ["epoch", "seed"])
def test_another_epoch_or_seed_masks_the_same_row_otherwise(changed, tmp_path):
    documents = make_documents([50] * 60)
    rows = np.arange(20)
    first = make_reader(tmp_path, documents, 32, 4, seed=0).read(np.zeros_like(rows), rows)
    other = make_reader(tmp_path, documents, 32, 4, seed=int(changed == "seed"))
    second = other.read(np.full_like(rows, changed == "epoch"), rows)
    assert torch.equal(first.segment_ids, second.segment_ids)
    same = (first.masked_positions == second.masked_positions).all(dim=1)
    assert same.sum() <= 2


@pytest.mark.parametrize("ranks, micro_rows", [(1, 12), (1, 4), (2, 3), (3, 2), (3, 4), (4, 3), (4, 1), (12, 1)])
def test_the_rows_of_a_step_are_the_same_at_any_number_of_ranks(ranks, micro_rows, tmp_path):
    reader = make_reader(tmp_path, make_documents([50] * 20), 32, 4)
    global_rows, step = 12, 2
    accumulation = global_rows // ranks // micro_rows
    parts = []
    for rank in range(ranks):  # as in train.py
        first_row = step * global_rows + rank * micro_rows * accumulation
        parts += [reader.at(first_row + micro * micro_rows, micro_rows) for micro in range(accumulation)]
    whole = reader.at(step * global_rows, global_rows)
    for name, tensor in vars(whole).items():
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), tensor)


def test_ordinary_ids_are_all_but_the_special_ones():
    vocabulary = Vocabulary(8, 0, 2, 1, 7, (0, 1, 2, 7))
    assert vocabulary.ordinary_ids().tolist() == [3, 4, 5, 6]

"""Micro-batches from rows on disk, against a reader that takes one row and one token at a time."""

import numpy as np
import pytest
import torch
from packed import BEGIN, END, MASK, PAD, SPECIAL, UNKNOWN, make_documents, make_reader, open_rows, pack_documents

from data_prep.tokens.packing import RowTable
from scaler.core.errors import ScalerError
from scaler.data import masking, order, prepared
from scaler.data.batches import RowReader, digest
from scaler.data.tokenizer import Vocabulary


def naive_row(
    reader: RowReader, documents: list[np.ndarray], table: RowTable, epoch: int, row: int
) -> tuple[list[int], ...]:
    """One row, token by token: input ids, position ids, segment ids, masked positions, labels."""
    tokens = np.concatenate(documents)
    ids, positions, segments = [], [], []
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


@pytest.mark.parametrize("files", [1, 4])
@pytest.mark.parametrize("first", [0, 2])
def test_rows_are_those_of_a_reader_that_goes_token_by_token(files, first, tmp_path):
    documents = make_documents(np.random.default_rng(1).integers(1, 90, 60).tolist())
    table = pack_documents(documents, 32, 4)
    reader = make_reader(tmp_path, documents, 32, 4, files, first)
    assert len(reader.rows) == table.n_rows
    epochs, rows = order.rows_at(table.n_rows - 20, 40, table.n_rows, reader.seed)  # across an epoch
    batch = reader.at(table.n_rows - 20, 40)
    for place, (epoch, row) in enumerate(zip(epochs, rows, strict=True)):
        expected = naive_row(reader, documents, table, epoch, row)
        assert tuple(tensor[place].tolist() for tensor in vars(batch).values()) == expected


def test_all_rows_together_hold_every_document_once(tmp_path):
    documents = make_documents([5, 70, 1, 28, 29, 300, 12], seed=2)
    reader = make_reader(tmp_path, documents, 32, 1, files=3)
    ids, _, segments = reader.assemble(np.arange(len(reader.rows)))
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


def test_a_begin_token_opens_a_document_wherever_it_stands(tmp_path):
    rows = [[BEGIN, 7, END, BEGIN, BEGIN, 8, END, PAD], [BEGIN, 7, 8, 9, 7, 8, 9, END], [BEGIN, END, *[PAD] * 6]]
    reader = open_rows(tmp_path, [np.array(rows[:1]), np.array(rows[1:])], 1, first=2)
    for wanted in ([0, 1, 2], [2, 0], [1]):
        ids, positions, segments = reader.assemble(np.array(wanted))
        assert ids.tolist() == [rows[row] for row in wanted]
        at = [[2, 3, 4, 2, 2, 3, 4, 1], [2, 3, 4, 5, 6, 7, 8, 9], [2, 3, *[1] * 6]]
        assert positions.tolist() == [at[row] for row in wanted]
        of = [[1, 1, 1, 2, 3, 3, 3, 0], [1] * 8, [1, 1, *[0] * 6]]
        assert segments.tolist() == [of[row] for row in wanted]


def test_wider_ids_on_disk_change_nothing(tmp_path):
    rows = np.pad(np.random.default_rng(0).integers(5, 400, (20, 30)), ((0, 0), (1, 1)), constant_values=(BEGIN, END))
    narrow, wide = (open_rows(tmp_path, [rows], 4, vocab_size=size).at(0, 40) for size in (400, 70_000))
    assert all(torch.equal(a, b) for a, b in zip(vars(narrow).values(), vars(wide).values(), strict=True))


def test_a_row_of_too_few_ordinary_tokens_is_refused(tmp_path):
    rows = np.array([[BEGIN, 7, 8, 9, 7, 8, 9, END], [BEGIN, 7, UNKNOWN, 8, MASK, END, PAD, PAD]])
    reader = open_rows(tmp_path, [rows], 3)
    reader.read(np.array([0]), np.array([0]))
    with pytest.raises(ScalerError, match=r"a row has fewer than 3 tokens to mask, .*prepare the data without them"):
        reader.read(np.array([0, 0]), np.array([0, 1]))


@pytest.mark.parametrize("rows", [0, 1, 6])
def test_tensors_are_integers_of_the_stated_shapes(rows, tmp_path):
    batch = make_reader(tmp_path, make_documents([50] * 30), 32, 4).at(0, rows)
    assert {name: tuple(tensor.shape) for name, tensor in vars(batch).items()} == {
        **dict.fromkeys(("input_ids", "position_ids", "segment_ids"), (rows, 32)),
        **dict.fromkeys(("masked_positions", "labels"), (rows, 4)),
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


def test_fewer_masks_are_some_of_the_many(tmp_path):
    reader = make_reader(tmp_path, make_documents([50] * 60), 32, 8)
    many, few = reader.at(24, 12), reader.at(24, 12, 3)
    assert many.labels.shape == (12, 8) and few.labels.shape == (12, 3)
    hidden = [
        torch.full((12, 32), -1).scatter(1, batch.masked_positions, batch.labels)  # the label where there is one
        for batch in (many, few)
    ]
    both = hidden[1] >= 0
    assert torch.equal(hidden[0][both], hidden[1][both])
    alike = both | (hidden[0] < 0)
    assert torch.equal(many.input_ids[alike], few.input_ids[alike])


def test_ordinary_ids_are_all_but_the_special_ones():
    vocabulary = Vocabulary(8, 0, 2, 1, 7, (0, 1, 2, 7))
    assert vocabulary.ordinary_ids().tolist() == [3, 4, 5, 6]


def test_digests_add_up_to_the_same_however_rows_are_shared(tiny_recipe):
    reader = prepared.open_prepared(tiny_recipe).rows("train", tiny_recipe, 2)
    whole = digest(reader.at(24, 12), 24)
    for ranks in (2, 3, 4):
        share = 12 // ranks
        parts = [digest(reader.at(24 + rank * share, share), 24 + rank * share) for rank in range(ranks)]
        assert sum(parts) % 2**64 == whole


def test_the_digest_sees_another_mask_another_order_and_another_place(tiny_recipe):
    reader = prepared.open_prepared(tiny_recipe).rows("train", tiny_recipe, 2)
    batch = reader.at(24, 12)
    other = RowReader(reader.rows, reader.vocabulary, reader.masked, 2, seed=1)
    assert digest(batch, 24) not in {digest(batch, 36), digest(reader.at(36, 12), 24), digest(other.at(24, 12), 24)}
    batch.labels[0, 0] += 1
    assert digest(batch, 24) != digest(reader.at(24, 12), 24)

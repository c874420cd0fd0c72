"""Packing: nothing lost, nothing twice, no row too long, hardly any padding; the same on every machine."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.tokens.packing import FINEST_CUT, SPECIAL_TOKENS, RowTable, pack


def packed(lengths: np.ndarray | list[int], seq_len: int, min_tokens: int = 1) -> RowTable:
    lengths = np.asarray(lengths, dtype=np.int64)
    return pack(np.cumsum(lengths) - lengths, lengths, seq_len, min_tokens)


def row_sums(table: RowTable, of_chunks: np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate([[0], np.cumsum(of_chunks)])[table.row_starts])


def realistic(count: int, median: float) -> np.ndarray:
    return np.maximum(1, np.random.default_rng(0).lognormal(np.log(median), 1.0, count)).astype(np.int64)


@settings(deadline=None)
@given(
    lengths=st.lists(st.one_of(st.integers(0, 30), st.integers(0, 1000)), max_size=60),
    seq_len=st.integers(8, 200),
)
def test_every_token_is_in_one_chunk_no_chunk_crosses_documents_and_no_row_is_empty_or_too_long(lengths, seq_len):
    table = packed(lengths, seq_len)
    sizes = row_sums(table, table.chunk_lengths + SPECIAL_TOKENS)
    assert ((sizes > SPECIAL_TOKENS) & (sizes <= seq_len)).all()
    ends = table.chunk_offsets + table.chunk_lengths
    by_place = np.argsort(table.chunk_offsets)
    boundaries = np.concatenate([[0], ends[by_place]])
    assert table.dropped_rows == 0
    assert (table.chunk_lengths > 0).all()
    assert np.array_equal(table.chunk_offsets[by_place], boundaries[:-1])  # end to end, so without gap or overlap
    assert boundaries[-1] == sum(lengths)
    assert set(np.cumsum(lengths).tolist()) <= set(boundaries.tolist())


@settings(deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=60), seq_len=st.integers(8, 200))
def test_documents_are_cut_only_as_finely_as_an_eighth_of_a_row(lengths, seq_len):
    table = packed(lengths, seq_len)
    longest = max(seq_len // FINEST_CUT - SPECIAL_TOKENS, 1)
    pieces = np.searchsorted(np.cumsum(lengths), np.sort(table.chunk_offsets), side="right")
    assert (np.bincount(pieces, minlength=len(lengths)) <= -(-np.asarray(lengths) // longest)).all()


@settings(deadline=None)
@given(
    lengths=st.lists(st.integers(0, 300), max_size=60),
    seq_len=st.integers(8, 100),
    share=st.floats(0.05, 0.9),
)
def test_rows_with_too_few_tokens_are_dropped_and_counted(lengths, seq_len, share):
    min_tokens = max(1, round(share * seq_len))
    table = packed(lengths, seq_len, min_tokens)
    assert (row_sums(table, table.chunk_lengths) >= min_tokens).all()
    lost = sum(lengths) - table.chunk_lengths.sum()
    assert table.dropped_rows <= lost <= table.dropped_rows * (min_tokens - 1)


@pytest.mark.parametrize("seq_len", [64, 128, 512, 1024])
@pytest.mark.parametrize("relative_length", [1 / 8, 1, 5])
def test_hardly_any_padding_on_realistic_lengths(seq_len, relative_length):
    table = packed(realistic(6000, seq_len * relative_length), seq_len, min_tokens=round(0.15 * seq_len))
    assert table.n_rows > 500
    assert table.real_fraction >= 0.99


@pytest.mark.parametrize("length, seq_len, longest", [(126, 128, 126), (65, 128, 62), (260, 512, 254), (300, 512, 126)])
def test_lengths_that_fill_badly_are_cut_finer_and_others_are_not(length, seq_len, longest):
    table = packed([length] * 3000, seq_len, min_tokens=round(0.15 * seq_len))
    assert table.chunk_lengths.max() == longest
    assert table.real_fraction >= 0.99


def test_a_finer_cut_that_fills_no_better_is_not_taken():
    # sizes of 181 and 183 fit a row of 512 twice; cut into eighths, documents of 179 leave 3.6 percent empty
    table = packed([179] * 2000, 512, min_tokens=77)
    assert table.real_fraction > 0.985


def test_a_finer_cut_that_loses_rows_is_not_taken():
    # two halves fill a row to the last place, but hold 12 tokens only, for each takes two special tokens
    table = packed([13] * 1000, 16, min_tokens=13)
    assert table.dropped_rows == 0
    assert table.n_rows == 1000


def test_a_cut_that_fills_its_rows_by_dropping_others_is_not_taken():
    # whole rows leave ends of 1 token, of which a row holds 21, too few to mask 29
    table = packed([63] * 1000, 64, min_tokens=29)
    assert table.dropped_rows <= 1


def test_a_row_mixes_distant_documents():
    table = packed([14] * 4000, 64)
    documents = np.sort(table.chunk_offsets.reshape(-1, 4) // 14, axis=1)
    assert np.diff(documents, axis=1).min() > 100


@pytest.mark.parametrize("lengths", [[], [0], [0, 0, 0]])
def test_nothing_to_pack_gives_no_rows(lengths):
    table = packed(lengths, 32)
    assert (table.n_rows, len(table.chunk_offsets), table.real_fraction) == (0, 0, 0.0)


def test_empty_documents_change_nothing():
    with_empty, without = packed([5, 0, 9, 0, 0, 30], 16), packed([5, 9, 30], 16)
    assert np.array_equal(np.sort(with_empty.chunk_lengths), np.sort(without.chunk_lengths))
    assert with_empty.n_rows == without.n_rows


def test_end_of_document_tokens_between_documents_are_left_alone():
    table = pack(np.array([0, 11, 22]), np.array([10, 10, 10]), 16, 1)
    chunks = zip(table.chunk_offsets, table.chunk_offsets + table.chunk_lengths, strict=True)
    assert {place for begin, end in chunks for place in range(begin, end)} == set(range(33)) - {10, 21, 32}


def test_the_rows_are_the_ones_they_always_were():
    table = packed([3, 40, 7, 0, 12, 25, 1, 1, 9, 6], 16, min_tokens=2)
    assert table.chunk_offsets.tolist() == [3, 62, 17, 31, 50, 76, 87, 89, 0, 43, 88, 98]
    assert table.chunk_lengths.tolist() == [14, 14, 14, 12, 12, 11, 1, 9, 3, 7, 1, 6]
    assert table.row_starts.tolist() == [0, 1, 2, 3, 4, 5, 7, 9, 11, 12]
    assert table.dropped_rows == 0

"""Token shards: Megatron-LM's bytes on disk, read back unchanged, and damage is noticed and named."""

import os
import struct
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import at_most
from on_disk import content, names
from refusals import refused

from data_prep.formats import token_shards
from data_prep.formats.token_shards import Shard, count_tokens, write_shard
from scaler.core.files import checksum
from scaler.data.token_rows import dtype_for

VOCABULARY = {np.uint8: 200, np.uint16: 60_000, np.int32: 100_000, np.int64: 1 << 40}
DOCUMENTS = [[5, 6, 7], [8], [9, 10]]


def write(folder, *groups, dtype=np.uint16, vocab_size=100):
    """Write the shard `folder`/a."""
    return write_shard(folder / "a", batches(*(groups or [DOCUMENTS])), dtype, vocab_size)


def batches(*groups):
    """Each group of documents as write_shard takes it: ids end to end, and lengths."""
    for documents in groups:
        ids = np.array([token for document in documents for token in document], dtype=np.int64)
        yield ids, np.array([len(document) for document in documents], dtype=np.int64)


def documents_of(shard, strip_ids=()):
    return [shard.ids[start : start + size].tolist() for start, size in zip(*shard.documents(strip_ids), strict=True)]


@pytest.mark.parametrize("dtype", VOCABULARY)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_documents_are_read_back_as_written(tmp_path_factory, dtype, data):
    ids = st.integers(0, VOCABULARY[dtype] - 1)
    groups = data.draw(st.lists(st.lists(st.lists(ids, max_size=20), max_size=5), max_size=4))
    prefix = tmp_path_factory.mktemp("shard") / "a"
    entry = write_shard(prefix, batches(*groups), dtype, VOCABULARY[dtype])
    shard = Shard(prefix)
    documents = [document for group in groups for document in group]
    found = documents_of(shard)
    assert found == [document for document in documents if document]  # empty ones are left out
    assert shard.ids.dtype == dtype
    assert (entry["documents"], entry["tokens"]) == (len(found), sum(map(len, documents)))
    assert shard.document_lengths.tolist() == [len(document) for document in found]
    assert shard.document_ends.tolist() == np.cumsum([len(document) for document in found]).tolist()
    assert entry["bin_xxh3"] == checksum(prefix.with_suffix(".bin"))
    assert entry["idx_xxh3"] == checksum(prefix.with_suffix(".idx"))


def test_the_bytes_are_megatrons(tmp_path):
    write(tmp_path)
    assert (tmp_path / "a.bin").read_bytes() == struct.pack("<6H", 5, 6, 7, 8, 9, 10)
    assert (tmp_path / "a.idx").read_bytes() == (
        b"MMIDIDX\x00\x00"
        + struct.pack("<Q", 1)  # version
        + struct.pack("<B", 8)  # uint16
        + struct.pack("<Q", 3)  # sequences
        + struct.pack("<Q", 4)  # document indices
        + struct.pack("<3i", 3, 1, 2)  # lengths
        + struct.pack("<3q", 0, 6, 8)  # byte offsets
        + struct.pack("<4q", 0, 1, 2, 3)  # first sequence of each document, and one past the last
    )


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.integers(0, 99), max_size=9), max_size=9), st.lists(st.integers(0, 9), max_size=4))
def test_the_bytes_are_the_same_however_documents_come_in_batches(tmp_path_factory, documents, cuts):
    folder = tmp_path_factory.mktemp("shard")
    edges = sorted({0, len(documents), *(cut for cut in cuts if cut <= len(documents))})
    groups = [documents[begin:end] for begin, end in pairwise(edges)]
    whole = write(folder, documents)
    assert whole == write_shard(folder / "b", batches(*groups), np.uint16, 100) | {"name": "a"}


@pytest.mark.parametrize(("dtype", "code"), [(np.uint8, 1), (np.int32, 4), (np.int64, 5), (np.uint16, 8)])
def test_the_dtype_has_megatrons_code(tmp_path, dtype, code):
    write(tmp_path, dtype=dtype)
    assert (tmp_path / "a.idx").read_bytes()[17] == code


def write_index(prefix, lengths, starts, first_sequences, ids, modes=b""):
    """A shard of uint16 ids, its index written by hand."""
    header = b"MMIDIDX\x00\x00" + struct.pack("<QBQQ", 1, 8, len(lengths), len(first_sequences))
    parts = (np.asarray(lengths, np.int32), np.asarray(starts, np.int64), np.asarray(first_sequences, np.int64))
    prefix.with_suffix(".idx").write_bytes(header + b"".join(part.tobytes() for part in parts) + modes)
    prefix.with_suffix(".bin").write_bytes(np.asarray(ids, np.uint16).tobytes())


@pytest.mark.parametrize("modes", [b"", bytes(4)])  # Megatron's multimodal data has a byte a sequence more
def test_a_document_of_several_sequences_is_one_document(tmp_path, modes):
    write_index(tmp_path / "a", [3, 1, 2, 2], [0, 6, 8, 12], [0, 2, 2, 4], range(8), modes)
    shard = Shard(tmp_path / "a")
    assert shard.document_ends.tolist() == [4, 4, 8]
    assert shard.document_lengths.tolist() == [4, 0, 4]
    assert shard.ids.tolist() == list(range(8))


@pytest.mark.parametrize(
    ("lengths", "starts", "first_sequences"),
    [
        ([3, 3], [0, 8], [0, 1, 2]),  # a gap between the sequences
        ([3, 3], [6, 0], [0, 1, 2]),  # in another order
        ([7, -1], [0, 14], [0, 1, 2]),
        ([3, 3], [0, 6], [0, 1, 9]),  # a document past the end
        ([3, 3], [0, 6], [0, 1]),  # a sequence in no document
        ([3, 3], [0, 6], [0, 2, 1, 2]),
        ([3, 3], [0, 6], []),
    ],
)
def test_an_index_that_makes_no_sense_is_refused(tmp_path, lengths, starts, first_sequences):
    write_index(tmp_path / "a", lengths, starts, first_sequences, range(6))
    with refused(r"a\.idx: its sequences do not lie end to end"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("size", [0, 10, 33, 34, 60, -1])
@pytest.mark.parametrize("extension", [".bin", ".idx"])
def test_a_shard_cut_short_is_named(tmp_path, extension, size):
    write(tmp_path, [range(20)] * 5)
    path = tmp_path / f"a{extension}"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with refused(rf"a\{extension}: .* bytes.*prepare the shards again"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("extension", [".bin", ".idx"])
def test_a_missing_half_of_a_shard_is_named(tmp_path, extension):
    write(tmp_path)
    (tmp_path / f"a{extension}").unlink()
    with refused(rf"a\{extension}: missing; prepare the shards again"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("place", [0, 9, 17])  # magic, version, dtype
def test_an_index_of_another_kind_is_refused(tmp_path, place):
    write(tmp_path)
    index = bytearray((tmp_path / "a.idx").read_bytes())
    index[place] ^= 64
    (tmp_path / "a.idx").write_bytes(index)
    with refused(r"a\.idx: not a Megatron index"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (65_535, np.uint16), (65_536, np.int32)])
def test_a_vocabulary_gets_a_dtype_that_holds_it(vocab_size, dtype):
    assert dtype_for(vocab_size) == dtype
    assert vocab_size - 1 <= np.iinfo(dtype_for(vocab_size)).max


def test_a_vocabulary_larger_than_the_dtype_is_refused(tmp_path):
    with refused(r"70,000 vocabulary entries do not fit in uint16 .*use int32"):
        write(tmp_path, vocab_size=70_000)
    assert names(tmp_path) == []


@pytest.mark.parametrize("outside", [100, 65_536, -1])
def test_an_id_outside_the_vocabulary_is_named_and_leaves_nothing(tmp_path, outside):
    said = rf"a: holds the id {outside}, but the tokenizer has 100 entries; name the tokenizer"
    with refused(said):
        write(tmp_path, [[1, 2]], [[99, outside, 0]])
    assert names(tmp_path) == []


def test_a_failure_leaves_the_shard_that_was_there(tmp_path):
    write(tmp_path)
    before = content(tmp_path)
    with refused("100"):
        write(tmp_path, [[1]], [[100]])
    assert content(tmp_path) == before


def test_an_error_among_the_documents_leaves_nothing(tmp_path):
    def failing():
        yield from batches(DOCUMENTS)
        raise RuntimeError("of the reader")

    with pytest.raises(RuntimeError, match="of the reader"):
        write_shard(tmp_path / "a", failing(), np.uint16, 100)
    assert names(tmp_path) == []


@pytest.mark.parametrize("at_once", [1, 4, 5, 1000])
def test_tokens_are_counted_whatever_is_counted_at_once(monkeypatch, tmp_path, at_once):
    monkeypatch.setattr(token_shards, "TOKENS_AT_ONCE", at_once)
    ids = np.array([3, 0, 3, 7, 3, 0], dtype=np.uint16)
    assert count_tokens(ids, 8, tmp_path / "a").tolist() == [2, 0, 0, 3, 0, 0, 0, 1]
    assert count_tokens(ids[:0], 3, tmp_path / "a").tolist() == [0, 0, 0]
    with refused("a: holds the id 7, but the tokenizer has 7 entries"):
        count_tokens(ids, 7, tmp_path / "a")


def test_counting_does_not_load_the_shard(monkeypatch, tmp_path):
    monkeypatch.setattr(token_shards, "TOKENS_AT_ONCE", 1 << 12)
    np.zeros(1 << 22, np.uint16).tofile(tmp_path / "a.bin")
    ids = np.asarray(np.memmap(tmp_path / "a.bin", np.uint16, "r"))
    with at_most(1 << 20):
        assert count_tokens(ids, 8, tmp_path / "a")[0] == 1 << 22


def test_ids_that_others_put_around_documents_are_left_out(tmp_path):
    documents = [[5, 2], [2], [2, 6, 0, 7], [0, 7, 2, 2], [0, 2, 0]]
    write(tmp_path, documents)
    shard = Shard(tmp_path / "a")
    assert documents_of(shard, (0, 2)) == [[5], [], [6, 0, 7], [7], []]
    assert documents_of(shard, (2,)) == [[5], [], [6, 0, 7], [0, 7], [0, 2, 0]]
    assert documents_of(shard) == documents


@settings(deadline=None, max_examples=100)
@given(
    documents=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=6), max_size=6),
    strip=st.sets(st.integers(0, 4)),
)
def test_only_the_ends_of_documents_are_stripped(tmp_path_factory, documents, strip):
    prefix = tmp_path_factory.mktemp("shard") / "a"
    write_shard(prefix, batches(documents), np.uint16, 5)
    marks = "".join(map(str, strip)) or "no digit"
    expected = ["".join(map(str, document)).strip(marks) for document in documents]
    assert ["".join(map(str, found)) for found in documents_of(Shard(prefix), sorted(strip))] == expected


@pytest.mark.parametrize("strip_ids", [(), (0,)])
def test_a_shard_without_documents_can_be_read(tmp_path, strip_ids):
    entry = write(tmp_path, [[], []])
    assert (entry["documents"], entry["tokens"]) == (0, 0)
    assert documents_of(Shard(tmp_path / "a"), strip_ids) == []

"""Token shards: Megatron-LM's bytes on disk, read back unchanged, and damage is noticed and named."""

import json
import os
import re
import struct

import numpy as np
import pytest
from conftest import read_span
from hypothesis import given, settings
from hypothesis import strategies as st

from scaler.errors import ScalerError
from scaler.token_shards import (
    Shard,
    TokenDataset,
    checksum,
    dtype_for,
    read_manifest,
    verify,
    write_json,
    write_shard,
)

VOCABULARY = {np.uint8: 200, np.uint16: 60_000, np.int32: 100_000, np.int64: 1 << 40}
MANIFEST = {"format": 1, "kind": "shards", "vocab_size": 100, "tokenizer_xxh3": "0", "sources": []}
DOCUMENTS = [[5, 6, 7], [8], [9, 10]]


def arrays(documents):
    return [np.asarray(ids, dtype=np.int64) for ids in documents]


@pytest.fixture
def folder(tmp_path):
    """A dataset of two training shards and one that is held out."""
    shards = {"train": ["train-00000", "train-00001"], "heldout": ["heldout-00000"]}
    splits = {
        split: [write_shard(tmp_path / name, arrays(DOCUMENTS), np.uint16, 100) for name in names]
        for split, names in shards.items()
    }
    np.save(tmp_path / "unigram.npy", np.arange(100))
    write_json(
        tmp_path / "manifest.json", {**MANIFEST, "splits": splits, "unigram_xxh3": checksum(tmp_path / "unigram.npy")}
    )
    return tmp_path


def change_manifest(folder, **changes):
    content = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**content, **changes})


@pytest.mark.parametrize("dtype", VOCABULARY)
@settings(deadline=None, max_examples=50)
@given(data=st.data())
def test_documents_are_read_back_as_written(tmp_path_factory, dtype, data):
    ids = st.integers(0, VOCABULARY[dtype] - 1)
    documents = data.draw(st.lists(st.lists(ids, max_size=20), max_size=10))
    prefix = tmp_path_factory.mktemp("shard") / "a"
    entry = write_shard(prefix, arrays(documents), dtype, VOCABULARY[dtype])
    shard = Shard(prefix)
    found = [part.tolist() for part in np.split(shard.ids, shard.document_ends[:-1])] if entry["documents"] else []
    assert found == [document for document in documents if document]  # empty ones are left out
    assert shard.ids.dtype == dtype
    assert (entry["documents"], entry["tokens"]) == (len(found), sum(map(len, documents)))
    assert shard.document_lengths.tolist() == [len(document) for document in found]


def test_the_bytes_are_megatrons(tmp_path):
    write_shard(tmp_path / "a", arrays(DOCUMENTS), np.uint16, 100)
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


@pytest.mark.parametrize(("dtype", "code"), [(np.uint8, 1), (np.int32, 4), (np.int64, 5), (np.uint16, 8)])
def test_the_dtype_has_megatrons_code(tmp_path, dtype, code):
    write_shard(tmp_path / "a", arrays(DOCUMENTS), dtype, 100)
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
    with pytest.raises(ScalerError, match=r"a\.idx: its sequences do not lie end to end"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("size", [0, 10, 33, 34, 60, -1])
@pytest.mark.parametrize("extension", [".bin", ".idx"])
def test_a_shard_cut_short_is_named(tmp_path, extension, size):
    write_shard(tmp_path / "a", arrays([range(20)] * 5), np.uint16, 100)
    path = tmp_path / f"a{extension}"
    os.truncate(path, size if size >= 0 else path.stat().st_size - 1)
    with pytest.raises(ScalerError, match=rf"a\{extension}: .* bytes.*prepare the shards again"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("extension", [".bin", ".idx"])
def test_a_missing_half_of_a_shard_is_named(tmp_path, extension):
    write_shard(tmp_path / "a", arrays(DOCUMENTS), np.uint16, 100)
    (tmp_path / f"a{extension}").unlink()
    with pytest.raises(ScalerError, match=rf"a\{extension}: missing; prepare the shards again"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize("place", [0, 9, 17])  # magic, version, dtype
def test_an_index_of_another_kind_is_refused(tmp_path, place):
    write_shard(tmp_path / "a", arrays(DOCUMENTS), np.uint16, 100)
    index = bytearray((tmp_path / "a.idx").read_bytes())
    index[place] ^= 64
    (tmp_path / "a.idx").write_bytes(index)
    with pytest.raises(ScalerError, match=r"a\.idx: not a Megatron index"):
        Shard(tmp_path / "a")


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, np.uint16), (65_535, np.uint16), (65_536, np.int32)])
def test_a_vocabulary_gets_a_dtype_that_holds_it(vocab_size, dtype):
    assert dtype_for(vocab_size) == dtype
    assert vocab_size - 1 <= np.iinfo(dtype_for(vocab_size)).max


def test_a_vocabulary_larger_than_the_dtype_is_refused(tmp_path):
    with pytest.raises(ScalerError, match=r"70,000 vocabulary entries do not fit in uint16 .*use int32"):
        write_shard(tmp_path / "a", arrays(DOCUMENTS), np.uint16, 70_000)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outside", [100, 65_536, -1])
def test_an_id_outside_the_vocabulary_is_named_and_leaves_nothing(tmp_path, outside):
    with pytest.raises(ScalerError, match=rf"document 1 holds the id {outside}, but the vocabulary has 100 entries"):
        write_shard(tmp_path / "a", arrays([[1, 2], [99, outside, 0]]), np.uint16, 100)
    assert list(tmp_path.iterdir()) == []


def test_an_error_among_the_documents_leaves_nothing(tmp_path):
    def documents():
        yield from arrays(DOCUMENTS)
        raise RuntimeError("of the reader")

    with pytest.raises(RuntimeError, match="of the reader"):
        write_shard(tmp_path / "a", documents(), np.uint16, 100)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["train-00000.bin", "train-00001.idx", "heldout-00000.bin"])
@pytest.mark.parametrize("parts", [1, 2, 5])
def test_one_flipped_bit_is_found_by_whoever_checks_that_shard(folder, name, parts):
    manifest = read_manifest(folder)
    for part in range(parts):
        verify(manifest, part, parts)
    damaged = bytearray((folder / name).read_bytes())
    damaged[-1] ^= 1
    (folder / name).write_bytes(damaged)
    said = []
    for part in range(parts):
        try:
            verify(manifest, part, parts)
        except ScalerError as error:
            said.append(str(error))
    assert len(said) == 1
    assert re.match(rf"{folder}/{re.escape(name)}: its checksum is not the manifest's.*delete its folder", said[0])


def test_a_missing_shard_is_found(folder):
    (folder / "train-00001.bin").unlink()
    with pytest.raises(ScalerError, match=r"train-00001\.bin: missing"):
        verify(read_manifest(folder))


def test_the_manifest_is_read_and_counts_by_split(folder):
    manifest = read_manifest(folder)
    assert (manifest.vocab_size, manifest.strip_ids) == (100, ())
    assert [manifest.count(split, "tokens") for split in ("train", "heldout", "none")] == [12, 6, 0]
    assert [manifest.count(split, "documents") for split in ("train", "heldout")] == [6, 3]


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    with pytest.raises(ScalerError, match=r"no token shards here .*make data"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [({"kind": "corpus"}, "kind 'corpus'"), ({"format": 2}, "format 2"), ({"format": None}, "format None")],
)
def test_a_manifest_of_another_kind_or_format_is_refused(folder, changes, said):
    change_manifest(folder, **changes)
    with pytest.raises(ScalerError, match=rf"manifest\.json: .*{said}.*token shards are needed"):
        read_manifest(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"format": 1, "kind": "shards"}'])
def test_garbage_is_no_manifest(folder, content):
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(ScalerError, match=r"manifest\.json: not a shards manifest"):
        read_manifest(folder)


def test_token_counts_are_read_and_their_damage_is_noticed(folder):
    assert read_manifest(folder).unigram_counts().tolist() == list(range(100))
    np.save(folder / "unigram.npy", np.ones(100))
    with pytest.raises(ScalerError, match=r"unigram\.npy: missing or damaged"):
        read_manifest(folder).unigram_counts()


def dataset_of(folder, shards, strip_ids=()):
    entries = [
        write_shard(folder / f"train-{number:05d}", arrays(documents), np.uint16, 100)
        for number, documents in enumerate(shards)
    ]
    content = {**MANIFEST, "splits": {"train": entries}, "strip_ids": list(strip_ids)}
    write_json(folder / "manifest.json", content)
    return TokenDataset(read_manifest(folder), "train")


@settings(deadline=None, max_examples=50)
@given(
    shards=st.lists(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), max_size=4), min_size=1, max_size=4)
)
def test_several_shards_read_as_their_concatenation(tmp_path_factory, shards):
    dataset = dataset_of(tmp_path_factory.mktemp("shards"), shards)
    documents = [ids for shard in shards for ids in shard]
    starts, lengths = dataset.documents()
    whole = np.array([token for ids in documents for token in ids], dtype=np.int64)
    assert dataset.bases[-1] == len(whole)
    assert lengths.tolist() == [len(ids) for ids in documents]
    found = [read_span(dataset, start, size).tolist() for start, size in zip(starts, lengths, strict=True)]
    assert found == documents
    out = np.zeros(len(whole), dtype=np.int64)
    dataset.copy_into(out, starts, starts, lengths)
    assert np.array_equal(out, whole)


def test_no_id_is_lost_when_the_shards_have_several_dtypes(tmp_path):
    entries = [
        write_shard(tmp_path / "a", arrays([[1, 65_535]]), np.uint16, 65_536),
        write_shard(tmp_path / "b", arrays([[70_000, 2]]), np.int32, 100_000),
    ]
    write_json(tmp_path / "manifest.json", {**MANIFEST, "splits": {"train": entries}})
    dataset = TokenDataset(read_manifest(tmp_path), "train")
    assert [*read_span(dataset, 0, 2), *read_span(dataset, 2, 2)] == [1, 65_535, 70_000, 2]


def test_ids_that_others_put_around_documents_are_left_out(tmp_path):
    dataset = dataset_of(tmp_path, [[[5, 2], [2], [2, 6, 0, 7]], [[0, 7, 2, 2], [0, 2, 0]]], strip_ids=(0, 2))
    starts, lengths = dataset.documents()
    found = [read_span(dataset, start, size).tolist() for start, size in zip(starts, lengths, strict=True)]
    assert found == [[5], [], [6, 0, 7], [7], []]


def test_a_split_without_shards_is_refused(folder):
    with pytest.raises(ScalerError, match=r"the split 'test' has no shards; prepare the data again"):
        TokenDataset(read_manifest(folder), "test")


def test_a_file_of_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"old": "Größe"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"old": "Größe"}

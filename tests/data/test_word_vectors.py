"""A folder of word vectors is opened whole and fitting, or refused with a line that says what to do."""

import json

import numpy as np
import pytest
from refusals import refused

from scaler.core.files import checksum, write_json
from scaler.data import word_vectors
from scaler.data.arrays import write_array
from scaler.data.word_vectors import COUNTS, VECTORS

VALUES = np.random.default_rng(0).standard_normal((7, 4)).astype(np.float32)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "word2vec"
    folder.mkdir()
    write_json(
        folder / "manifest.json",
        {
            "format": 2,
            "kind": "word2vec",
            "vocab_size": 7,
            "vector_size": 4,
            "tokenizer_xxh3": "a" * 32,
            "made_from": {"settings": {"vector_size": 4}},
            "vectors_xxh3": write_array(folder / VECTORS, VALUES),
            "counts_xxh3": write_array(folder / COUNTS, np.arange(7)),
        },
    )
    return folder


def change(folder, **changes):
    content = {**json.loads((folder / "manifest.json").read_text()), **changes}
    write_json(folder / "manifest.json", {key: value for key, value in content.items() if value is not None})


def refuses(folder, said, tokenizer_xxh3="a" * 32, vector_size=4):
    with refused(said):
        word_vectors.read(folder, tokenizer_xxh3, vector_size)


def test_what_was_written_is_read_and_only_mapped(folder):
    found = word_vectors.read(folder, "a" * 32, 4)
    np.testing.assert_array_equal(found.vectors, VALUES)
    assert found.counts.tolist() == list(range(7)) and found.settings == {"vector_size": 4}
    assert (found.vectors.dtype, found.counts.dtype) == (np.float32, np.int64)
    with pytest.raises(ValueError, match="read-only"):
        found.vectors[0] = 0


@pytest.mark.parametrize("array", [VALUES, np.arange(5), np.empty((0, 3), np.float32), VALUES[:, ::2]])
def test_an_array_is_numpys_own_bytes_with_their_checksum(tmp_path, array):
    np.save(tmp_path / "theirs.npy", np.ascontiguousarray(array))
    assert write_array(tmp_path / "ours.npy", array) == checksum(tmp_path / "ours.npy")
    assert (tmp_path / "ours.npy").read_bytes() == (tmp_path / "theirs.npy").read_bytes()


def test_a_missing_folder_is_named_with_the_remedy(tmp_path):
    refuses(tmp_path / "word2vec", r"word2vec: no word2vec here .*run `scaler prepare` with a `word2vec` section")


@pytest.mark.parametrize("name", [VECTORS, COUNTS])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_file_is_named(folder, name, damage):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    refuses(folder, rf"{name}: {'missing' if damage == 'remove' else 'its checksum is not the manifest'}")


def test_vectors_of_another_tokenizer_are_refused(folder):
    refuses(folder, "vectors of the tokenizer aaaaaaaa, but the data's is bbbbbbbb", tokenizer_xxh3="b" * 32)


def test_vectors_of_another_width_are_refused(folder):
    refuses(folder, "vectors of 4 numbers, but 768 are needed; set word2vec.vector_size", vector_size=768)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (VALUES[:6], r"float32 \(6, 4\), where float32 \(7, 4\) belongs"),
        (VALUES.astype(np.float64), r"float64 \(7, 4\), where float32 \(7, 4\) belongs"),
        (VALUES.ravel(), r"float32 \(28,\), where float32 \(7, 4\) belongs"),
    ],
)
def test_an_array_of_another_shape_or_type_is_refused(folder, array, said):
    change(folder, vectors_xxh3=write_array(folder / VECTORS, array))
    refuses(folder, rf"{VECTORS}: {said}")


def test_a_file_that_is_no_array_or_a_pickle_is_refused(folder):
    (folder / VECTORS).write_bytes(b"no array")
    change(folder, vectors_xxh3=checksum(folder / VECTORS))
    refuses(folder, f"{VECTORS}: not an .npy file")
    np.save(folder / VECTORS, np.array([{}], dtype=object), allow_pickle=True)
    change(folder, vectors_xxh3=checksum(folder / VECTORS))
    refuses(folder, f"{VECTORS}: not an .npy file")


@pytest.mark.parametrize("changes", [{"vector_size": None}, {"vocab_size": "many"}, {"counts_xxh3": None}])
def test_a_manifest_that_lacks_something_is_refused(folder, changes):
    change(folder, **changes)
    refuses(folder, "not a manifest of word vectors")


def test_a_folder_of_another_kind_is_refused(folder):
    change(folder, kind="rows")
    refuses(folder, "its manifest is rows, format 2; word2vec, format 2, is needed")

"""Rows on disk: read back as they were written, opened without being read, and damage is noticed and named."""

import json
import os
import re
import resource
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of

from scaler.core.errors import ScalerError
from scaler.core.files import FORMAT, checksum, read_manifest, write_json
from scaler.data import token_rows
from scaler.data.token_rows import TokenRows, dtype_for, read, verify, write_rows

SEQ_LEN, VOCABULARY = 8, 100
AGAIN = "delete its folder and prepare the data again"


def block(rows, seed=0, vocab_size=VOCABULARY, seq_len=SEQ_LEN):
    """Random rows, int64 (rows, seq_len), with the largest id among them."""
    ids = np.random.default_rng(seed).integers(0, vocab_size, (rows, seq_len))
    ids.flat[-1:] = vocab_size - 1
    return ids


def write_folder(folder, splits, vocab_size=VOCABULARY, seq_len=SEQ_LEN):
    """A folder of rows, each split a mapping of file names to blocks of rows; return what reads it."""
    entries = {split: [] for split in splits}
    for split, files in splits.items():
        for name, blocks in files.items():
            xxh3 = write_rows(folder / f"{name}.rows", iter(blocks), dtype_for(vocab_size))
            rows = sum(map(len, blocks))
            counts = {
                "rows": rows,
                "tokens": rows * 6,
                "documents": rows * 2,
                "dropped_rows": 1,
                "least_maskable": 9 - len(name),
            }
            entries[split].append({"name": name, "source": "a", **counts, "xxh3": xxh3})
    np.save(folder / "unigram.npy", np.arange(VOCABULARY))
    content = {
        **{"format": FORMAT, "kind": "rows", "seq_len": seq_len, "vocab_size": vocab_size, "tokenizer_xxh3": "0"},
        **{"unigram_xxh3": checksum(folder / "unigram.npy"), "sources": [{"source": "my/texts"}]},
        "splits": entries,
    }
    write_json(folder / "manifest.json", content)
    return read(folder)


@pytest.fixture
def folder(tmp_path):
    """Three files of training rows, one of held-out ones."""
    train = {f"train-a-{number}": [block(5, seed=number)] for number in range(3)}
    write_folder(tmp_path, {"train": train, "heldout": {"heldout-a-0": [block(3)]}})
    return tmp_path


@pytest.mark.parametrize(("vocab_size", "dtype"), [(300, "<u2"), (65_535, "<u2"), (65_536, "<i4"), (1 << 31, "<i4")])
@settings(deadline=None, max_examples=50)
@given(sizes=st.lists(st.integers(0, 9), max_size=6), seq_len=st.integers(8, 40), seed=st.integers(0, 1 << 32))
def test_rows_are_read_back_as_written(tmp_path_factory, vocab_size, dtype, sizes, seq_len, seed):
    blocks = [block(size, seed + place, vocab_size, seq_len) for place, size in enumerate(sizes)]
    folder = tmp_path_factory.mktemp("rows")
    manifest = write_folder(folder, {"train": {"a": blocks}}, vocab_size, seq_len)
    verify(manifest)
    rows = TokenRows(manifest, "train")
    found = rows.take(np.arange(len(rows)))
    assert np.array_equal(found, np.concatenate([np.empty((0, seq_len), np.int64), *blocks]))
    assert found.dtype == np.dtype(dtype)


@pytest.mark.parametrize(("dtype", "code"), [("<u2", "H"), ("<i4", "i")])
def test_a_file_is_nothing_but_its_ids_in_little_endian(dtype, code, tmp_path):
    write_rows(tmp_path / "a.rows", [np.array([[5, 6], [7, 8]]), np.array([[9, 10]])], np.dtype(dtype))
    assert (tmp_path / "a.rows").read_bytes() == struct.pack(f"<6{code}", 5, 6, 7, 8, 9, 10)


@settings(deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=1, max_size=6), data=st.data())
def test_rows_are_taken_from_any_file_in_any_order(tmp_path_factory, sizes, data):
    blocks = [block(size, seed) for seed, size in enumerate(sizes)]
    files = {f"train-{number}": [rows] for number, rows in enumerate(blocks)}
    rows = TokenRows(write_folder(tmp_path_factory.mktemp("rows"), {"train": files}), "train")
    assert len(rows) == sum(sizes)
    wanted = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=20) if len(rows) else st.just([]))
    found = rows.take(np.array(wanted, dtype=np.int64))
    assert np.array_equal(found, np.concatenate(blocks)[wanted])
    assert (found.shape, found.dtype) == ((len(wanted), SEQ_LEN), np.uint16)


def test_what_is_taken_may_be_written_to_and_the_file_stays(folder):
    rows = TokenRows(read(folder), "train")
    for wanted in ([1, 2], [1, 7]):  # of one file and of two
        rows.take(np.array(wanted))[:] = 0
    verify(read(folder))


@pytest.mark.parametrize("row", [-1, 15])
def test_a_row_that_is_not_there_is_no_other_row(folder, row):
    with pytest.raises(IndexError):
        TokenRows(read(folder), "train").take(np.array([row]))


def test_opening_reads_no_rows(tmp_path):
    gigabytes, seq_len = 50, 1 << 20
    manifest = write_folder(tmp_path, {"train": {"a": [], "b": [block(2, seq_len=seq_len)]}}, seq_len=seq_len)
    entry = manifest.splits["train"][0]
    entry["rows"] = gigabytes * (1 << 30) // (2 * seq_len)
    os.truncate(tmp_path / "a.rows", gigabytes << 30)  # a hole, which takes no place on the disk
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows = TokenRows(manifest, "train")
    found = rows.take(np.array([entry["rows"] + 1, entry["rows"] - 1, 0]))
    assert np.array_equal(found, [block(2, seq_len=seq_len)[1], np.zeros(seq_len), np.zeros(seq_len)])
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) << 10 < 1 << 30


@pytest.mark.parametrize("size", [0, 1, 79, 81, 160])
def test_a_file_of_another_size_is_named(folder, size):
    os.truncate(folder / "train-a-1.rows", size)
    said = error_of(TokenRows, read(folder), "train")
    assert said == f"{folder}/train-a-1.rows: {size} bytes where 80 belong; {AGAIN}"
    assert error_of(verify, read(folder)).startswith(f"{folder}/train-a-1.rows: ")
    TokenRows(read(folder), "heldout")


def test_a_missing_file_is_named(folder):
    (folder / "train-a-1.rows").unlink()
    said = f"{folder}/train-a-1.rows: missing; {AGAIN}"
    assert error_of(TokenRows, read(folder), "train") == error_of(verify, read(folder)) == said


@pytest.mark.parametrize("name", ["train-a-0", "train-a-2", "heldout-a-0"])
@pytest.mark.parametrize("parts", [1, 2, 6])
def test_one_flipped_bit_is_found_by_whoever_checks_that_file(folder, name, parts):
    manifest = read(folder)
    for part in range(parts):
        verify(manifest, part, parts)
    damaged = bytearray((folder / f"{name}.rows").read_bytes())
    damaged[-1] ^= 1
    (folder / f"{name}.rows").write_bytes(damaged)
    said = []
    for part in range(parts):
        try:
            verify(manifest, part, parts)
        except ScalerError as error:
            said.append(str(error))
    assert said == [f"{folder}/{name}.rows: its checksum is not the manifest's, the file is damaged; {AGAIN}"]


def test_an_error_among_the_rows_leaves_the_file_that_was_there(tmp_path):
    def blocks(failing):
        yield block(3)
        if failing:
            raise RuntimeError("of the packer")

    for name in ("new.rows", "old.rows"):
        if name == "old.rows":
            write_rows(tmp_path / name, blocks(failing=False), dtype_for(VOCABULARY))
        with pytest.raises(RuntimeError, match="of the packer"):
            write_rows(tmp_path / name, blocks(failing=True), dtype_for(VOCABULARY))
    assert not (tmp_path / "new.rows").exists()
    assert (tmp_path / "old.rows").stat().st_size == 3 * SEQ_LEN * 2


def test_the_manifest_is_read_and_counts_by_split(folder):
    manifest = read(folder)
    assert (manifest.seq_len, manifest.vocab_size) == (SEQ_LEN, VOCABULARY)
    assert [manifest.least_maskable(split) for split in ("train", "heldout", "none")] == [0, -2, SEQ_LEN]
    assert manifest.sources == [{"source": "my/texts"}]
    for what, train, heldout in (("rows", 15, 3), ("tokens", 90, 18), ("documents", 30, 6), ("dropped_rows", 3, 1)):
        assert [manifest.count(split, what) for split in ("train", "heldout", "none")] == [train, heldout, 0]
    assert [manifest.real_fraction(split) for split in ("train", "none")] == [6 / 8, 0]


def test_a_split_knows_its_padding_and_what_was_dropped(folder):
    rows = TokenRows(read(folder), "train")
    assert (len(rows), rows.seq_len, rows.real_fraction, rows.dropped_rows) == (15, SEQ_LEN, 6 / 8, 3)
    nothing = TokenRows(read(folder), "none")
    assert (len(nothing), nothing.real_fraction, nothing.dropped_rows) == (0, 0, 0)


def test_a_folder_without_a_manifest_says_how_to_make_one(tmp_path):
    said = error_of(read, tmp_path)
    assert said == f"{tmp_path}: no rows here (no readable manifest.json); run `make data` or `scaler prepare`"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b'{"format": 2, "kind": "ro', b"[]", b"null", b"[" * 50_000]
)
def test_a_manifest_that_is_no_json_is_refused(folder, content):
    (folder / "manifest.json").write_bytes(content)
    assert re.match(rf"{folder}: no rows here \(no readable manifest\.json\); run `make data`", error_of(read, folder))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ({}, "None, format None"),
        ({"kind": "shards", "format": FORMAT}, f"shards, format {FORMAT}"),
        ({"kind": "rows", "format": 1}, "rows, format 1"),
        ({"kind": "rows"}, "rows, format None"),
    ],
)
def test_a_manifest_of_another_kind_or_format_is_refused(folder, content, said):
    write_json(folder / "manifest.json", content)
    expected = f"{folder}: its manifest is {said}; rows, format {FORMAT}, is needed; run `make data`"
    assert error_of(read, folder).startswith(expected)


def test_a_file_is_open_for_each_file_of_rows(folder, monkeypatch):
    asked = []
    monkeypatch.setattr(token_rows, "allow_open_files", lambda count, what: asked.append((count, what)))
    manifest = read(folder)
    TokenRows(manifest, "train")
    assert asked == [(len(manifest.splits["train"]), str(folder))]


@pytest.mark.parametrize("key", ["seq_len", "vocab_size", "tokenizer_xxh3", "unigram_xxh3", "sources", "splits"])
def test_a_manifest_without_one_of_its_keys_is_refused(folder, key):
    content = read_manifest(folder, "rows")
    del content[key]
    write_json(folder / "manifest.json", content)
    assert error_of(read, folder) == f"{folder}: not a manifest of rows (KeyError('{key}')); {AGAIN}"


@pytest.mark.parametrize("key", ["name", "rows", "tokens", "documents", "dropped_rows", "least_maskable", "xxh3"])
def test_an_entry_without_one_of_its_keys_is_refused(folder, key):
    content = read_manifest(folder, "rows")
    del content["splits"]["train"][1][key]
    write_json(folder / "manifest.json", content)
    assert error_of(read, folder) == f"{folder}: not a manifest of rows (KeyError('{key}')); {AGAIN}"


@pytest.mark.parametrize("changes", [{"seq_len": "long"}, {"splits": []}, {"splits": {"train": [5]}}, {"sources": 5}])
def test_a_manifest_whose_values_make_no_sense_is_refused(folder, changes):
    write_json(folder / "manifest.json", {**read_manifest(folder, "rows"), **changes})
    assert re.match(rf"{folder}: not a manifest of rows \(.*\); {AGAIN}", error_of(read, folder))


@pytest.mark.parametrize("rows", [4, 6, 0, -5, 1 << 62])
def test_a_manifest_that_states_another_number_of_rows_is_refused(folder, rows):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"][1]["rows"] = rows
    write_json(folder / "manifest.json", content)
    said = f"{folder}/train-a-1.rows: 80 bytes where {rows * SEQ_LEN * 2} belong; {AGAIN}"
    assert error_of(TokenRows, read(folder), "train") == said


def test_token_counts_are_read_and_their_damage_is_noticed(folder):
    assert read(folder).unigram_counts().tolist() == list(range(VOCABULARY))
    np.save(folder / "unigram.npy", np.ones(VOCABULARY))
    said = error_of(read(folder).unigram_counts)
    assert said == f"{folder}/unigram.npy: its checksum is not the manifest's, the file is damaged; {AGAIN}"
    (folder / "unigram.npy").unlink()
    assert error_of(read(folder).unigram_counts) == f"{folder}/unigram.npy: missing; {AGAIN}"


def test_each_row_has_the_source_of_its_file(folder):
    content = json.loads((folder / "manifest.json").read_text())
    for entry, source in zip(content["splits"]["train"], ("one", "none", "two", "one"), strict=False):
        entry["source"] = source
    write_json(folder / "manifest.json", content)
    manifest = read(folder)
    rows = TokenRows(manifest, "train")
    expected = [e["source"] for e in manifest.splits["train"] for _ in range(e["rows"])]
    assert [rows.sources[place] for place in rows.source_of(np.arange(len(rows))).tolist()] == expected
    assert set(rows.sources) == set(expected)
    assert TokenRows(manifest, "none").sources == []


@pytest.mark.parametrize("known", [{}, {"characters": None}, {"characters": 50}])
def test_characters_of_a_split_are_known_where_those_of_all_its_files_are(folder, known):
    content = json.loads((folder / "manifest.json").read_text())
    for number, entry in enumerate(content["splits"]["train"]):
        entry |= {"text_tokens": 10, **({"characters": 50} if number else known)}
    write_json(folder / "manifest.json", content)
    count = len(content["splits"]["train"])
    rows = TokenRows(read(folder), "train")
    assert rows.text_tokens == 10 * count
    assert rows.characters == (50 * count if known.get("characters") else None)


def test_checksums_of_the_test_split_are_left_to_evaluation(folder):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["test"] = [{**content["splits"]["heldout"][0], "name": "test-a-0"}]
    write_json(folder / "manifest.json", content)
    manifest = read(folder)
    verify(manifest)
    with pytest.raises(ScalerError, match=r"test-a-0\.rows: missing"):
        verify(manifest, splits=["test"])

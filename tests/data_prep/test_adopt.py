"""Shards that others wrote are taken over as they are, with their tokenizer, and used from then on."""

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, make_documents
from transformers import AutoTokenizer

from data_prep.formats.token_shards import Shard, write_shard
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.adopt import adopt
from data_prep.prepared.prepare import prepare
from data_prep.tokens import rows
from scaler.config.data_sections import Corpus, Source
from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.core.files import check_file, checksum, read_manifest
from scaler.data import token_rows

END = 2  # the id of </s>


@pytest.fixture(scope="module")
def tokenizer(tiny_recipe):
    return tiny_recipe.tokenizer_folder


@pytest.fixture(scope="module")
def documents(tokenizer):
    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True)
    return [loaded(text, add_special_tokens=False).input_ids for text in make_documents(90)]


def batch(documents):
    return np.concatenate(documents), np.array([len(document) for document in documents])


@pytest.fixture
def shards(tmp_path, documents):
    """Write three shards of others, 30 documents each; a function from what follows each document to their prefixes."""

    def write(ends=lambda number: [END]):
        prefixes = [tmp_path / f"their_{number}_text_document" for number in range(3)]
        for shard, prefix in enumerate(prefixes):
            numbers = range(shard * 30, shard * 30 + 30)
            write_shard(prefix, [batch([np.array(documents[n] + ends(n)) for n in numbers])], np.int32, 400)
        return prefixes

    return write


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def tokens(folder, split):
    manifest = read_manifest(folder / "shards", "shards")
    found = []
    for entry in manifest["splits"][split]:
        shard = Shard(folder / "shards" / entry["name"])
        spans = zip(*shard.documents(manifest["strip_ids"]), strict=True)
        found += [shard.ids[start : start + size].tolist() for start, size in spans]
    return found


def nothing(number):
    return []


def the_end(number):
    return [END]


def one_of_two(number):
    return [END if number % 2 else 1]


@pytest.mark.parametrize(("ends", "found"), [(nothing, []), (the_end, [END]), (one_of_two, [1, END])])
def test_special_tokens_around_documents_are_found_and_left_out(tmp_path, tokenizer, documents, shards, ends, found):
    first, second, third = shards(ends)
    mine = tmp_path / "mine"
    adopt(tokenizer, [first, second], [third], mine)
    assert read_manifest(mine / "shards", "shards")["strip_ids"] == found
    assert tokens(mine, "train") == documents[:60]
    assert tokens(mine, "heldout") == documents[60:]
    rows.make(
        mine / "shards",
        mine / "tokenizer",
        mine / "rows",
        32,
        {"train": 1, "heldout": 1},  # and no test split
        Corpus(sources=(Source("a"),)),
        WorkerPool(),
    )
    counts = np.bincount(np.concatenate(documents[:60]), minlength=400)
    assert np.array_equal(token_rows.read(mine / "rows").unigram_counts(), counts)


def test_one_ordinary_token_at_the_end_of_every_document_is_text(tmp_path, tokenizer, shards):
    first, second, third = shards(lambda number: [17])
    adopt(tokenizer, [first, second], [third], tmp_path / "mine")
    assert read_manifest(tmp_path / "mine" / "shards", "shards")["strip_ids"] == []


def test_files_and_tokenizer_are_taken_byte_for_byte_and_the_originals_stay(tmp_path, tokenizer, shards):
    prefixes = shards()
    before = {path: path.read_bytes() for prefix in prefixes for path in tmp_path.glob(f"{prefix.name}.*")}
    adopt(tokenizer, prefixes[:2], prefixes[2:], tmp_path / "mine")
    assert {path: path.read_bytes() for path in before} == before
    mine = tmp_path / "mine" / "shards"
    manifest = read_manifest(mine, "shards")
    entries = [entry for split in ("train", "heldout") for entry in manifest["splits"][split]]
    assert [entry["name"] for entry in entries] == ["train-00000", "train-00001", "heldout-00000"]
    for entry, prefix in zip(entries, prefixes, strict=True):
        for extension in (".bin", ".idx"):
            path = mine / (entry["name"] + extension)
            assert path.read_bytes() == before[prefix.with_name(prefix.name + extension)]
            check_file(path, entry[f"{extension[1:]}_xxh3"])
        assert entry["documents"] == 30
        assert entry["tokens"] == len(Shard(prefix).ids)
    assert manifest["tokenizer_xxh3"] == checksum(tmp_path / "mine" / "tokenizer" / "tokenizer.json")
    assert manifest["tokenizer_xxh3"] == checksum(tokenizer / "tokenizer.json")
    assert manifest["vocab_size"] == 400


def test_symbolic_links_are_followed(tmp_path, tokenizer, documents, shards):
    for prefix in shards(nothing):
        for extension in (".bin", ".idx"):
            (tmp_path / "store").mkdir(exist_ok=True)
            path = prefix.with_name(prefix.name + extension)
            path.rename(tmp_path / "store" / path.name)
            path.symlink_to(os.path.join("store", path.name))
    prefixes = [tmp_path / f"their_{number}_text_document" for number in range(3)]
    adopt(tokenizer, prefixes[:2], prefixes[2:], tmp_path / "mine")
    assert tokens(tmp_path / "mine", "heldout") == documents[60:]


def test_data_preparation_leaves_adopted_shards_alone_and_packs_them(
    tmp_path, tokenizer, shards, tiny_recipe_file, capsys
):
    prefixes = shards()
    adopt(tokenizer, prefixes[:2], prefixes[2:], tmp_path / "mine")
    before = files(tmp_path / "mine")
    recipe = load(str(tiny_recipe_file), [f"data.folder={tmp_path / 'mine'}"])
    prepare(recipe, WorkerPool())
    assert "adopted, used as it is; train 60 documents" in capsys.readouterr().out
    after = files(tmp_path / "mine")
    assert {path: after[path] for path in before} == before
    assert {path.parent for path in after.keys() - before.keys()} == {recipe.rows_folder}
    prepare(recipe, WorkerPool())
    assert files(tmp_path / "mine") == after


def test_others_can_be_adopted_in_their_place(tmp_path, tokenizer, documents, shards):
    first, second, third = shards(nothing)
    adopt(tokenizer, [first, second], [third], tmp_path / "mine")
    originals = {path: path.read_bytes() for path in tmp_path.glob("their_*")}
    adopt(tokenizer, [third], [first], tmp_path / "mine")
    assert tokens(tmp_path / "mine", "train") == documents[60:]
    assert tokens(tmp_path / "mine", "heldout") == documents[:30]
    assert sorted(path.name for path in (tmp_path / "mine" / "shards").glob("*-0*")) == [
        "heldout-00000.bin",
        "heldout-00000.idx",
        "train-00000.bin",
        "train-00000.idx",
    ]
    assert {path: path.read_bytes() for path in originals} == originals


KILLED = """
import os, sys
from pathlib import Path
from data_prep.prepared import adopt
adopt.write_manifest = lambda *arguments: os.kill(os.getpid(), 9)
tokenizer, first, second, third, out = map(Path, sys.argv[1:])
adopt.adopt(tokenizer, [first, second], [third], out)
"""


def test_after_a_killed_run_others_are_adopted_and_the_originals_stay(tmp_path, tokenizer, documents, shards):
    first, second, third = shards(nothing)
    originals = {path: path.read_bytes() for path in tmp_path.glob("their_*")}
    arguments = (tokenizer, first, second, third, tmp_path / "mine")
    killed = subprocess.run([sys.executable, "-c", KILLED, *arguments], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert list((tmp_path / "mine").iterdir()) == [tmp_path / "mine" / "shards.partial"]
    adopt(tokenizer, [third], [first], tmp_path / "mine")
    assert {path: path.read_bytes() for path in originals} == originals
    assert tokens(tmp_path / "mine", "train") == documents[60:]
    assert tokens(tmp_path / "mine", "heldout") == documents[:30]
    assert sorted(path.name for path in (tmp_path / "mine" / "shards").glob("train-*")) == [
        "train-00000.bin",
        "train-00000.idx",
    ]


def test_two_runs_never_adopt_into_one_folder(tmp_path, tokenizer, shards):
    first, second, third = shards()
    said = r"shards\.partial: another run is writing here"
    with folders.staged(tmp_path / "mine" / "shards", "shards", {}), pytest.raises(ScalerError, match=said):
        adopt(tokenizer, [first, second], [third], tmp_path / "mine")


@pytest.mark.parametrize(("outside", "dtype"), [(400, np.int32), (70_000, np.int32), (-7, np.int32), (400, np.uint16)])
def test_ids_outside_the_vocabulary_are_refused_and_nothing_is_left(tmp_path, tokenizer, shards, outside, dtype):
    first, second, third = shards()
    path = second.with_name(second.name + ".bin")
    ids = np.fromfile(path, np.int32)
    ids[len(ids) // 2] = outside
    ids.tofile(path)
    if dtype != np.int32:
        write_shard(second, [batch([ids])], dtype, 1000)
    with pytest.raises(ScalerError, match=rf"their_1.*holds the id {outside}, but the tokenizer has 400 entries"):
        adopt(tokenizer, [first, second], [third], tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_shard_that_is_missing_or_damaged_is_named_and_nothing_is_left(tmp_path, tokenizer, shards):
    first, second, third = shards()
    os.truncate(third.with_name(third.name + ".bin"), 8)
    with pytest.raises(ScalerError, match=r"their_2_text_document\.bin: 8 bytes where"):
        adopt(tokenizer, [first, second], [third], tmp_path / "mine")
    with pytest.raises(ScalerError, match=r"nowhere\.idx: missing"):
        adopt(tokenizer, [first, tmp_path / "nowhere"], [third], tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_without_a_tokenizer_nothing_is_adopted(tmp_path, shards, content):
    first, second, third = shards()
    (tmp_path / "tokenizer").mkdir()
    if content is not None:
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(content)
    with pytest.raises(
        ScalerError, match=r"tokenizer: (no tokenizer here|the tokenizer cannot be read).*; save it there"
    ) as raised:
        adopt(tmp_path / "tokenizer", [first, second], [third], tmp_path / "mine")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "mine").exists()


def test_the_command_adopts_and_its_errors_are_one_line(tmp_path, tokenizer, shards, run_command):
    shards()
    command = [sys.executable, "-m", "data_prep.adopt", "--tokenizer", tokenizer, "--out", "mine"]
    command += ["--train", "their_0_text_document", "their_1_text_document", "--heldout"]
    good, bad = (
        run_command(*command, heldout, cwd=tmp_path, PYTHONPATH=str(ROOT))
        for heldout in ("their_2_text_document", "nowhere")
    )
    assert good.returncode == 0, good.stderr
    assert good.stdout == "mine written; train with data.folder=mine\n"
    assert bad.returncode == 2
    assert bad.stderr == "error: nowhere.idx: missing; prepare the shards again\n"
    # the failure has not touched what was adopted before
    assert json.loads((tmp_path / "mine" / "shards" / "manifest.json").read_text())["strip_ids"] == [END]

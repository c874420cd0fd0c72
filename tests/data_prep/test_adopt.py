"""Shards that others wrote are taken over as they are, with their tokenizer, and used from then on."""

import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, make_documents
from on_disk import content, names
from refusals import refusal, refused
from transformers import AutoTokenizer

from data_prep.formats.token_shards import Shard, write_shard
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.adopt import adopt
from data_prep.prepared.prepare import prepare
from data_prep.tokens import rows
from scaler.config.data_sections import Corpus, Source
from scaler.config.recipe import load
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


def tokens(folder, split):
    manifest = read_manifest(folder / "shards", "shards")
    found = []
    for entry in manifest["splits"][split]:
        shard = Shard(folder / "shards" / entry["name"])
        spans = zip(*shard.documents(manifest["strip_ids"]), strict=True)
        found += [shard.ids[start : start + size].tolist() for start, size in spans]
    return found


@pytest.fixture
def adopted(tmp_path, tokenizer):
    """Adopt shards into tmp_path/mine, and return it."""

    def adopted(train, heldout):
        adopt(tokenizer, train, heldout, tmp_path / "mine")
        return tmp_path / "mine"

    return adopted


def nothing(number):
    return []


@pytest.mark.parametrize(
    ("ends", "found"), [(nothing, []), (lambda _: [END], [END]), (lambda number: [END if number % 2 else 1], [1, END])]
)
def test_special_tokens_around_documents_are_found_and_left_out(adopted, documents, shards, ends, found):
    first, second, third = shards(ends)
    mine = adopted([first, second], [third])
    assert read_manifest(mine / "shards", "shards")["strip_ids"] == found
    assert tokens(mine, "train") == documents[:60]
    assert tokens(mine, "heldout") == documents[60:]
    least = {"train": 1, "heldout": 1}  # and no test split
    not_mixed = Corpus(sources=(Source("a"),))
    rows.make(mine / "shards", mine / "tokenizer", mine / "rows", 32, least, not_mixed, WorkerPool())
    counts = np.bincount(np.concatenate(documents[:60]), minlength=400)
    assert np.array_equal(token_rows.read(mine / "rows").unigram_counts(), counts)


def test_one_ordinary_token_at_the_end_of_every_document_is_text(adopted, shards):
    first, second, third = shards(lambda number: [17])
    assert read_manifest(adopted([first, second], [third]) / "shards", "shards")["strip_ids"] == []


def test_files_and_tokenizer_are_taken_byte_for_byte_and_the_originals_stay(tmp_path, adopted, tokenizer, shards):
    prefixes = shards()
    before = content(tmp_path)
    mine = adopted(prefixes[:2], prefixes[2:]) / "shards"
    assert before.items() <= content(tmp_path).items()
    manifest = read_manifest(mine, "shards")
    entries = [entry for split in ("train", "heldout") for entry in manifest["splits"][split]]
    assert [entry["name"] for entry in entries] == ["train-00000", "train-00001", "heldout-00000"]
    for entry, prefix in zip(entries, prefixes, strict=True):
        for extension in (".bin", ".idx"):
            path = mine / (entry["name"] + extension)
            assert path.read_bytes() == before[prefix.name + extension]
            check_file(path, entry[f"{extension[1:]}_xxh3"])
        assert entry["documents"] == 30
        assert entry["tokens"] == len(Shard(prefix).ids)
    assert manifest["tokenizer_xxh3"] == checksum(tmp_path / "mine" / "tokenizer" / "tokenizer.json")
    assert manifest["tokenizer_xxh3"] == checksum(tokenizer / "tokenizer.json")
    assert manifest["vocab_size"] == 400


def test_symbolic_links_are_followed(tmp_path, adopted, documents, shards):
    prefixes = shards(nothing)
    for prefix in prefixes:
        for extension in (".bin", ".idx"):
            (tmp_path / "store").mkdir(exist_ok=True)
            path = prefix.with_name(prefix.name + extension)
            path.rename(tmp_path / "store" / path.name)
            path.symlink_to(os.path.join("store", path.name))
    assert tokens(adopted(prefixes[:2], prefixes[2:]), "heldout") == documents[60:]


def test_data_preparation_leaves_adopted_shards_alone_and_packs_them(adopted, shards, tiny_recipe_file, capsys):
    prefixes = shards()
    mine = adopted(prefixes[:2], prefixes[2:])
    before = content(mine)
    recipe = load(str(tiny_recipe_file), [f"data.folder={mine}"])
    prepare(recipe, WorkerPool())
    assert "adopted, used as it is; train 60 documents" in capsys.readouterr().out
    after = content(mine)
    assert before.items() <= after.items()
    assert {(mine / path).parent for path in after.keys() - before.keys()} == {recipe.rows_folder}
    prepare(recipe, WorkerPool())
    assert content(mine) == after


KILLED = """
import os, sys
from pathlib import Path
from data_prep.prepared import adopt
adopt.write_manifest = lambda *arguments: os.kill(os.getpid(), 9)
tokenizer, first, second, third, out = map(Path, sys.argv[1:])
adopt.adopt(tokenizer, [first, second], [third], out)
"""


@pytest.mark.parametrize("killed", [False, True])
def test_others_can_be_adopted_in_place_of_a_whole_or_a_killed_run(
    tmp_path, adopted, tokenizer, documents, shards, run_command, killed
):
    first, second, third = shards(nothing)
    originals = content(tmp_path)
    if killed:
        program = (sys.executable, "-c", KILLED, tokenizer, first, second, third, tmp_path / "mine")
        run_command(*program, cwd=ROOT, status=-signal.SIGKILL)
        assert names(tmp_path / "mine") == ["shards.partial"]
    else:
        adopted([first, second], [third])
    mine = adopted([third], [first])
    assert originals.items() <= content(tmp_path).items()
    assert tokens(mine, "train") == documents[60:] and tokens(mine, "heldout") == documents[:30]
    assert {path.name for path in (mine / "shards").glob("*-0*")} == {
        f"{split}-00000.{extension}" for split in ("heldout", "train") for extension in ("bin", "idx")
    }


def test_two_runs_never_adopt_into_one_folder(tmp_path, adopted, shards):
    first, second, third = shards()
    said = r"shards\.partial: another run is writing here"
    with folders.staged(tmp_path / "mine" / "shards", "shards", {}), refused(said):
        adopted([first, second], [third])


@pytest.mark.parametrize(("outside", "dtype"), [(400, np.int32), (70_000, np.int32), (-7, np.int32), (400, np.uint16)])
def test_ids_outside_the_vocabulary_are_refused_and_nothing_is_left(tmp_path, adopted, shards, outside, dtype):
    first, second, third = shards()
    path = second.with_name(second.name + ".bin")
    ids = np.fromfile(path, np.int32)
    ids[len(ids) // 2] = outside
    ids.tofile(path)
    if dtype != np.int32:
        write_shard(second, [batch([ids])], dtype, 1000)
    with refused(rf"their_1.*holds the id {outside}, but the tokenizer has 400 entries"):
        adopted([first, second], [third])
    assert names(tmp_path / "mine") == []


def test_a_shard_that_is_missing_or_damaged_is_named_and_nothing_is_left(tmp_path, adopted, shards):
    first, second, third = shards()
    os.truncate(third.with_name(third.name + ".bin"), 8)
    with refused(r"their_2_text_document\.bin: 8 bytes where"):
        adopted([first, second], [third])
    with refused(r"nowhere\.idx: missing"):
        adopted([first, tmp_path / "nowhere"], [third])
    for name in ("/", ".", "a/.."):
        with refused(r": no file has this name; give the path of a shard"):
            adopted([Path(name)], [third])
    assert names(tmp_path / "mine") == []


@pytest.mark.parametrize("content", [None, "{}", "no JSON"])
def test_without_a_tokenizer_nothing_is_adopted(tmp_path, shards, content):
    first, second, third = shards()
    (tmp_path / "tokenizer").mkdir()
    if content is not None:
        (tmp_path / "tokenizer" / "tokenizer.json").write_text(content)
    with refused(r"tokenizer: (no tokenizer here|the tokenizer cannot be read).*; save it there"):
        adopt(tmp_path / "tokenizer", [first, second], [third], tmp_path / "mine")
    assert not (tmp_path / "mine").exists()


def test_the_command_adopts_and_its_errors_are_one_line(tmp_path, tokenizer, shards, run_command):
    shards()
    command = [sys.executable, "-m", "data_prep.adopt", "--tokenizer", tokenizer, "--out", "mine"]
    command += ["--train", "their_0_text_document", "their_1_text_document", "--heldout"]
    good = run_command(*command, "their_2_text_document", cwd=tmp_path, status=0)
    assert good.stdout == "mine written; train with data.folder=mine\n"
    bad = refusal(run_command(*command, "nowhere", cwd=tmp_path))
    assert bad == "error: nowhere.idx: missing; prepare the shards again\n"
    # the failure has not touched what was adopted before
    assert json.loads((tmp_path / "mine" / "shards" / "manifest.json").read_text())["strip_ids"] == [END]

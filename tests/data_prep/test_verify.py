"""Verification finds any damage of prepared data, names it, and says nothing of data that is whole."""

import json
import shutil

import numpy as np
import pytest
from conftest import make_documents
from refusals import refusal
from small_data import write_documents

from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared import verify
from data_prep.prepared.prepare import prepare
from scaler.config.recipe import load
from scaler.core.files import checksum, read_manifest, write_json
from scaler.data.token_rows import EXTENSION

FOLDERS = ("corpus", "clean", "dedup", "tokenizer", "shards", "rows-32")


@pytest.fixture(scope="module")
def whole(tiny_recipe_file, tmp_path_factory):
    """Data that went through every stage."""
    folder = tmp_path_factory.mktemp("whole")
    text = write_documents(folder / "text.jsonl", make_documents(600))
    settings = [f"data.folder={folder / 'data'}", f"corpus.sources=[{text}]"]
    prepare(load(str(tiny_recipe_file), [*settings, "cleaning.min_characters=8", "dedup.exact=true"]), WorkerPool())
    return folder / "data"


@pytest.fixture
def data(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "data")
    return tmp_path / "data"


def problems(folder):
    return [problem for stage in verify.stages(folder) for problem in verify.problems(stage, WorkerPool())]


def entry_of(folder):
    """Name of a training file of a folder, whose index is damaged below."""
    kind = folder.name.partition("-")[0]
    return read_manifest(folder, kind)["splits"]["train"][0]


def change_entry(folder, **changes):
    content = json.loads((folder / "manifest.json").read_text())
    content["splits"]["train"][0].update(changes)
    write_json(folder / "manifest.json", content)


def change_ids(path, place, value, dtype="<u2"):
    """Change an id and the checksum with it: damage of meaning, not of bytes."""
    ids = np.fromfile(path, dtype)
    ids[place] = value
    ids.tofile(path)
    key = {".bin": "bin_xxh3", EXTENSION: "xxh3"}[path.suffix]
    change_entry(path.parent, **{key: checksum(path)})


def test_whole_data_has_no_problems_in_any_folder(whole):
    assert [stage.name for stage in verify.stages(whole)] == list(FOLDERS)
    assert problems(whole) == []
    assert [problems(whole / name) for name in FOLDERS] == [[]] * len(FOLDERS)


@pytest.mark.parametrize(
    ("folder", "extension"),
    [
        *((name, ".jsonl.zst") for name in ("corpus", "clean", "dedup")),
        *(("shards", extension) for extension in (".bin", ".idx")),
        ("rows-32", EXTENSION),
    ],
)
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_every_damaged_file_is_named_once(data, folder, extension, damage):
    path = data / folder / (entry_of(data / folder)["name"] + extension)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(content if damage == "flip" else content[:-1])
    (found,) = problems(data)
    assert found.startswith(f"{path}: {'missing' if damage == 'remove' else 'its checksum is not the manifest'}")
    assert "\n" not in found


@pytest.mark.parametrize(
    ("folder", "changes", "said"),
    [
        ("dedup", {"documents": 1}, "documents, but the manifest says 1"),
        ("clean", {"characters": 1}, "characters, but the manifest says 1"),
        ("shards", {"tokens": 1}, "tokens, but the manifest says 1"),
        ("rows-32", {"tokens": 1}, "tokens, but the manifest says 1"),
        ("rows-32", {"least_maskable": 31}, "ordinary tokens, 31 is the least"),
    ],
)
def test_counts_that_are_not_the_files_are_named(data, folder, changes, said):
    change_entry(data / folder, **changes)
    *lost, found = problems(data / folder)
    assert said in found
    assert ["counted as left out" in problem for problem in lost] == [True] * ("documents" in changes)


@pytest.mark.parametrize("folder", ["shards", "rows-32"])
def test_an_id_outside_of_the_vocabulary_is_named(data, folder):
    extension = ".bin" if folder == "shards" else EXTENSION
    change_ids(data / folder / (entry_of(data / folder)["name"] + extension), 5, 400)
    (found,) = problems(data / folder)
    assert "holds the id 400, but the tokenizer has 400 entries" in found


@pytest.mark.parametrize(("place", "value"), [(0, 9), (32, 1), (31, 9)])  # no begin token; padding first; no end
def test_a_row_that_is_not_made_of_whole_documents_is_named(data, place, value):
    path = data / "rows-32" / (entry_of(data / "rows-32")["name"] + EXTENSION)
    rows = np.fromfile(path, "<u2").reshape(-1, 32)
    full = int(np.flatnonzero(rows[:-1, -1] == 2)[0])
    change_ids(path, full * 32 + place, value)
    (found,) = problems(data / "rows-32")
    assert f"row {full + place // 32} does not begin and end with a document" in found


def test_token_counts_that_are_not_the_rows_are_named(data):
    path = data / "rows-32" / "unigram.npy"
    counts = np.load(path)
    counts[100] += 1
    np.save(path, counts)
    content = json.loads((data / "rows-32" / "manifest.json").read_text())
    write_json(data / "rows-32" / "manifest.json", {**content, "unigram_xxh3": checksum(path)})
    (found,) = problems(data / "rows-32")
    assert found.startswith(f"{path}: not the counts of the training rows")


def test_a_tokenizer_that_is_another_or_gone_is_named_by_all_who_hang_on_it(data):
    path = data / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert [found.partition(":")[0] for found in problems(data)] == [
        str(path), str(data / "shards"), str(data / "rows-32")
    ]  # fmt: skip
    path.unlink()
    assert len(problems(data)) == 3


def test_a_damaged_manifest_and_a_folder_without_data_are_one_line_on_the_command_line(data, tmp_path, run_command):
    (tmp_path / "empty").mkdir()
    (data / "shards" / "manifest.json").write_text("{")
    for folder, said in ((data, "shards: its manifest.json is damaged"), (tmp_path / "empty", "no prepared data here")):
        assert said in refusal(run_command("python", "-m", "data_prep.verify", folder, cwd=tmp_path))


def test_the_command_names_every_problem_and_fails(data, tmp_path, run_command):
    for name in ("clean", "rows-32"):
        change_entry(data / name, xxh3="0")
    done = run_command("python", "-m", "data_prep.verify", data, "--processes", 2, cwd=tmp_path, status=2)
    assert done.stderr.count("error: ") == done.stderr.count("\n") == 2
    found = [line.rsplit(": ", 1)[1] for line in done.stdout.splitlines()]
    assert found == ["whole", "1 problem", "whole", "whole", "whole", "1 problem"]

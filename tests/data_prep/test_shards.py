"""From corpus and tokenizer to shards: the same for any number of processes, and whole or absent."""

import json
import os
import shutil
import signal
import sys

import numpy as np
import psutil
import pytest
from conftest import make_documents
from limits import limit, wait_until
from on_disk import content, flip, names
from refusals import refusal, refused
from small_data import make_corpus, write_documents
from tokenizers import Tokenizer

from data_prep.formats import texts
from data_prep.formats.token_shards import Shard
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool, worker_pool
from data_prep.tokens import shards
from data_prep.vocabulary import tokenizer
from scaler.config.data_sections import Tokenizer as TokenizerSettings
from scaler.core.errors import ScalerError
from scaler.core.files import check_file, checksum, read_manifest, write_json

PATIENCE = 200  # seconds that a command may take to get where a test waits for it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A corpus of several parts with its tokenizer, and shards that one process made of them."""
    folder = tmp_path_factory.mktemp("data")
    odd = ["<s> is <mask> spelled </s> <pad>", "Größe 大 🙂", "  spaces  "] * 20
    first = write_documents(folder / "a.jsonl", make_documents(18_000) + odd)
    second = write_documents(folder / "b.txt", make_documents(300, seed=1))
    make_corpus(folder, first, second, heldout_percent=10.0, test_percent=10.0, part_mib=1)
    tokenizer.make(folder / "corpus", folder / "tokenizer", TokenizerSettings(400))
    shards.make(folder / "corpus", folder / "tokenizer", folder / "shards", WorkerPool())
    return folder


@pytest.fixture
def inputs(data, tmp_path):
    """Copies of corpus and tokenizer that a test may damage."""
    for name in ("corpus", "tokenizer"):
        shutil.copytree(data / name, tmp_path / name)
    return tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "shards"


def read(folder):
    return read_manifest(folder, "shards")


def entries(manifest, split=None):
    return [entry for name, found in manifest["splits"].items() if split in (None, name) for entry in found]


def texts_of(folder, entry):
    return [document.text for document in texts.read(folder, entry)]


def ids_of(folder, split=None):
    return np.concatenate([Shard(folder / entry["name"]).ids for entry in entries(read(folder), split)])


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_makes_the_bytes_that_one_makes(data, tmp_path, processes):
    with worker_pool(processes) as pool:
        assert shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", pool)
    assert len(entries(read(data / "shards"), "train")) > 2
    assert content(tmp_path / "shards") == content(data / "shards")


def test_each_shard_holds_the_documents_of_one_file_of_text_in_order(data):
    decode = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json")).decode
    of_text = texts.manifest(data / "corpus")["splits"]
    for split, found in read(data / "shards")["splits"].items():
        for entry, file in zip(found, of_text[split], strict=True):
            assert all(entry[what] == file[what] for what in ("name", "source", "characters"))
            shard = Shard(data / "shards" / entry["name"])
            spans = zip(*shard.documents(), strict=True)
            decoded = [decode(shard.ids[at : at + size], skip_special_tokens=False) for at, size in spans]
            assert decoded == texts_of(data / "corpus", file)


@pytest.mark.parametrize("at_once", [1, 7, 100_000])
def test_the_bytes_are_the_same_however_many_documents_are_tokenised_at_once(data, tmp_path, monkeypatch, at_once):
    monkeypatch.setattr(shards, "DOCUMENTS_AT_ONCE", at_once)
    shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", WorkerPool())
    assert content(tmp_path / "shards") == content(data / "shards")


def test_no_special_token_is_in_the_shards_even_where_a_text_spells_one(data):
    entries = texts.entries(texts.manifest(data / "corpus"))
    assert any("<mask>" in text for entry in entries for text in texts_of(data / "corpus", entry))
    assert ids_of(data / "shards").min() >= 5


def test_the_manifest_tells_the_truth(data):
    manifest = read(data / "shards")
    of_text = texts.manifest(data / "corpus")
    for split in texts.SPLITS:
        assert sum(entry["documents"] for entry in entries(manifest, split)) == sum(
            entry["documents"] for entry in texts.entries(of_text, split)
        )
        for entry in entries(manifest, split):
            shard = Shard(data / "shards" / entry["name"])
            assert (entry["documents"], entry["tokens"]) == (len(shard.document_ends), len(shard.ids))
            assert shard.ids.dtype == np.uint16
            for extension in ("bin", "idx"):
                check_file(data / "shards" / f"{entry['name']}.{extension}", entry[f"{extension}_xxh3"])
    assert {entry["source"] for entry in entries(manifest)} == {"a", "b"}
    assert manifest["tokenizer_xxh3"] == checksum(data / "tokenizer" / "tokenizer.json")
    assert manifest["vocab_size"] == 400
    assert manifest["sources"] == of_text["sources"]
    assert manifest["strip_ids"] == []


def test_made_twice_they_are_up_to_date_and_left_alone(data):
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in (data / "shards").iterdir()}
    assert not shards.make(data / "corpus", data / "tokenizer", data / "shards", WorkerPool())
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in (data / "shards").iterdir()} == before


def test_another_tokenizer_has_them_made_anew(data, inputs):
    shutil.copytree(data / "shards", inputs[2])
    tokenizer.make(inputs[0], inputs[1], TokenizerSettings(350))
    assert shards.make(*inputs, WorkerPool())
    assert read(inputs[2])["vocab_size"] == 350
    assert ids_of(inputs[2]).max() < 350


def test_other_text_has_them_made_anew(data, inputs):
    shutil.copytree(data / "shards", inputs[2])
    manifest = read_manifest(inputs[0], "corpus")
    manifest["splits"]["train"].pop()
    write_json(inputs[0] / "manifest.json", manifest)
    assert shards.make(*inputs, WorkerPool())
    assert len(entries(read(inputs[2]))) == len(entries(read(data / "shards"))) - 1
    assert len(content(inputs[2])) == len(content(data / "shards")) - 2


@pytest.mark.parametrize("damage", [os.unlink, lambda path: os.truncate(path, 100)])
@pytest.mark.parametrize("name", ["train-a-00000-0000.bin", "heldout-b-00000-0000.idx"])
def test_a_shard_that_is_missing_or_cut_short_has_them_made_anew(data, inputs, name, damage):
    shutil.copytree(data / "shards", inputs[2])
    damage(inputs[2] / name)
    assert shards.make(*inputs, WorkerPool())
    assert content(inputs[2]) == content(data / "shards")


@pytest.mark.parametrize("damage", [flip, os.unlink, lambda path: os.truncate(path, 1000)])
@pytest.mark.parametrize("name", ["corpus/train-a-00001-0000.jsonl.zst", "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("processes", [1, 2])
def test_damaged_input_is_named_with_a_remedy(inputs, tmp_path, name, damage, processes):
    damage(tmp_path / name)
    with worker_pool(processes) as pool, pytest.raises(ScalerError) as raised:
        shards.make(*inputs, pool)
    said = "missing" if damage is os.unlink else "its checksum is not the manifest's, the file is damaged"
    assert str(raised.value) == f"{tmp_path / name}: {said}; delete its folder and prepare the data again"
    assert not inputs[2].exists()
    if "tokenizer" in name:
        assert names(tmp_path) == ["corpus", "tokenizer"]


def stop_half_way(inputs):
    """A run that finds a damaged file, which is then mended."""
    path = inputs[0] / "train-a-00001-0000.jsonl.zst"
    flip(path)
    with refused("damaged"):
        shards.make(*inputs, WorkerPool())
    flip(path)


def test_what_was_made_before_the_damage_is_kept_and_the_next_run_goes_on(data, inputs, tmp_path):
    stop_half_way(inputs)
    assert [path.stem for path in (tmp_path / "shards.partial" / folders.TASKS).iterdir()] == ["train-a-00000-0000"]
    kept = tmp_path / "shards.partial" / "train-a-00000-0000.bin"
    before = kept.stat().st_mtime_ns
    assert shards.make(*inputs, WorkerPool())
    assert (inputs[2] / kept.name).stat().st_mtime_ns == before
    assert content(inputs[2]) == content(data / "shards")
    assert names(tmp_path) == ["corpus", "shards", "tokenizer"]


def test_what_another_tokenizer_began_is_made_anew(data, inputs, tmp_path):
    stop_half_way(inputs)
    tokenizer.make(inputs[0], inputs[1], TokenizerSettings(350))
    assert shards.make(*inputs, WorkerPool())
    shards.make(*inputs[:2], tmp_path / "whole", WorkerPool())
    assert content(inputs[2]) == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["corpus", "tokenizer"])
def test_missing_input_is_named_with_a_remedy(inputs, tmp_path, name):
    shutil.rmtree(tmp_path / name)
    with refused(rf"{name}: no {name} here .*prepare it first"):
        shards.make(*inputs, WorkerPool())


def command(data, processes):
    options = ("--out", "shards", "--processes", processes)
    return sys.executable, "-m", "data_prep.shards", data / "corpus", data / "tokenizer", *options


def test_no_process_is_too_few(data, tmp_path, run_command):
    assert refusal(run_command(*command(data, 0), cwd=tmp_path)) == "error: --processes 0: 1 is the least\n"
    assert names(tmp_path) == []


def test_a_second_run_on_the_same_folder_is_one_line_and_the_first_goes_on(running, data, tmp_path, run_command):
    process, _ = running
    os.kill(process.pid, signal.SIGSTOP)
    try:
        said = refusal(run_command(*command(data, 1), cwd=tmp_path))
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert said == "error: shards.partial: another run is writing here; wait for it to end, or name another folder\n"
    process.communicate(timeout=limit(PATIENCE))
    assert process.returncode == 0
    assert content(tmp_path / "shards") == content(data / "shards")


@pytest.fixture
def running(data, tmp_path, start_command):
    """The command, stopped by nothing yet, with workers in the middle of a shard: (process, the workers)."""
    process = start_command(*command(data, 2))
    wait_until(lambda: list(tmp_path.glob("shards.partial/*.bin.partial")), process, PATIENCE)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    return process, workers


def wait_until_nobody_is_left(process):
    """Wait until all processes of the command have ended; orphans of it would stay in its session."""
    wait_until(lambda: not any(_is_of(other, process.pid) for other in psutil.process_iter()), seconds=PATIENCE)


def _is_of(process, session):
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def goes_on(data, folder, processes):
    """The next run makes the bytes of one that nothing has stopped."""
    with worker_pool(processes) as pool:
        assert shards.make(data / "corpus", data / "tokenizer", folder / "shards", pool)
    assert content(folder / "shards") == content(data / "shards")
    assert names(folder) == ["shards"]


def only_finished_shards_are_left(folder):
    """Nothing, or where shards are finished, NAME.partial with these."""
    assert names(folder) in ([], ["shards.partial"])
    if names(folder):
        records = [json.loads(path.read_text()) for path in (folder / "shards.partial" / folders.TASKS).glob("*.json")]
        assert records
        for record in records:
            for extension in ("bin", "idx"):
                path = folder / "shards.partial" / f"{record['name']}.{extension}"
                check_file(path, record[f"{extension}_xxh3"])


# to the command alone, and as a terminal does, to its workers too
@pytest.mark.parametrize("send", [os.kill, os.killpg])
def test_ctrl_c_leaves_nothing_but_finished_shards_and_no_processes(running, tmp_path, send):
    process, _ = running
    send(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=limit(PATIENCE))
    assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
    only_finished_shards_are_left(tmp_path)
    wait_until_nobody_is_left(process)


def test_a_killed_command_leaves_no_processes_and_nothing_that_the_next_trusts(running, data, tmp_path):
    process, _ = running
    process.kill()
    process.communicate(timeout=limit(PATIENCE))
    wait_until_nobody_is_left(process)
    assert names(tmp_path) == ["shards.partial"]
    goes_on(data, tmp_path, 2)


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_kill_the_next_run_keeps_the_shards_that_were_done(running, data, tmp_path, processes):
    process, _ = running
    wait_until(lambda: list(tmp_path.glob("shards.partial/tasks/*.json")), process, PATIENCE)
    process.kill()
    process.communicate(timeout=limit(PATIENCE))
    wait_until_nobody_is_left(process)
    done = [path.stem for path in (tmp_path / "shards.partial" / folders.TASKS).glob("*.json")]
    before = {name: (tmp_path / "shards.partial" / f"{name}.bin").stat().st_mtime_ns for name in done}
    goes_on(data, tmp_path, processes)
    assert {name: (tmp_path / "shards" / f"{name}.bin").stat().st_mtime_ns for name in done} == before


def test_a_killed_worker_is_one_clear_line_and_no_hang_and_the_next_run_goes_on(running, data, tmp_path):
    process, workers = running
    workers[0].kill()
    _, said = process.communicate(timeout=limit(PATIENCE))
    assert process.returncode == 2
    assert said.startswith("error: shards.partial: a process died while tokenising (out of memory?); run again")
    assert said.count("\n") == 1
    only_finished_shards_are_left(tmp_path)
    wait_until_nobody_is_left(process)
    goes_on(data, tmp_path, 1)

"""From corpus and tokenizer to shards: the same for any number of processes, and whole or absent."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest
from conftest import ROOT, make_documents
from limits import limit
from tokenizers import Tokenizer

from data_prep.formats import texts
from data_prep.formats.token_shards import Shard
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool, worker_pool
from data_prep.sources import corpus
from data_prep.tokens import shards
from data_prep.vocabulary import tokenizer
from scaler.config.data_sections import Corpus, Source
from scaler.config.data_sections import Tokenizer as TokenizerSettings
from scaler.core.errors import ScalerError
from scaler.core.files import check_file, checksum, read_manifest, write_json

PATIENCE = 200  # seconds that a command may take to get where a test waits for it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A corpus of several parts with its tokenizer, and shards that one process made of them."""
    folder = tmp_path_factory.mktemp("data")
    odd = ["<s> is <mask> spelled </s> <pad>", "Größe 大 🙂", "  spaces  "] * 20
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in make_documents(18_000) + odd))
    (folder / "b.txt").write_text("\n\n".join(make_documents(300, seed=1)))
    sources = (Source(str(folder / "a.jsonl")), Source(str(folder / "b.txt")))
    corpus.make(Corpus(sources, heldout_percent=10.0, test_percent=10.0, part_mib=1), folder / "corpus", WorkerPool())
    tokenizer.make(folder / "corpus", folder / "tokenizer", TokenizerSettings(400))
    shards.make(folder / "corpus", folder / "tokenizer", folder / "shards", WorkerPool())
    return folder


@pytest.fixture
def inputs(data, tmp_path):
    """Copies of corpus and tokenizer that a test may damage."""
    for name in ("corpus", "tokenizer"):
        shutil.copytree(data / name, tmp_path / name)
    return tmp_path / "corpus", tmp_path / "tokenizer", tmp_path / "shards"


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


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
            assert [entry[what] for what in ("name", "source", "characters")] == [
                file[what] for what in ("name", "source", "characters")
            ]
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
    found = [
        text for entry in texts.entries(texts.manifest(data / "corpus")) for text in texts_of(data / "corpus", entry)
    ]
    assert any("<mask>" in text for text in found)
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


def flip_a_bit(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("damage", [flip_a_bit, os.unlink, lambda path: os.truncate(path, 1000)])
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


def test_what_was_made_before_the_damage_is_kept_and_the_next_run_goes_on(data, inputs, tmp_path):
    path = inputs[0] / "train-a-00001-0000.jsonl.zst"
    good = path.read_bytes()
    flip_a_bit(path)
    with pytest.raises(ScalerError, match="damaged"):
        shards.make(*inputs, WorkerPool())
    assert [path.stem for path in (tmp_path / "shards.partial" / folders.TASKS).iterdir()] == ["train-a-00000-0000"]
    kept = tmp_path / "shards.partial" / "train-a-00000-0000.bin"
    before = kept.stat().st_mtime_ns
    path.write_bytes(good)
    assert shards.make(*inputs, WorkerPool())
    assert (inputs[2] / kept.name).stat().st_mtime_ns == before
    assert content(inputs[2]) == content(data / "shards")
    assert names(tmp_path) == ["corpus", "shards", "tokenizer"]


def test_what_another_tokenizer_began_is_made_anew(data, inputs, tmp_path):
    path = inputs[0] / "train-a-00001-0000.jsonl.zst"
    good = path.read_bytes()
    flip_a_bit(path)
    with pytest.raises(ScalerError, match="damaged"):
        shards.make(*inputs, WorkerPool())
    path.write_bytes(good)
    tokenizer.make(inputs[0], inputs[1], TokenizerSettings(350))
    assert shards.make(*inputs, WorkerPool())
    shards.make(*inputs[:2], tmp_path / "whole", WorkerPool())
    assert content(inputs[2]) == content(tmp_path / "whole")


@pytest.mark.parametrize("name", ["corpus", "tokenizer"])
def test_missing_input_is_named_with_a_remedy(inputs, tmp_path, name):
    shutil.rmtree(tmp_path / name)
    with pytest.raises(ScalerError, match=rf"{name}: no {name} here .*prepare it first"):
        shards.make(*inputs, WorkerPool())


def test_no_process_is_too_few(data, tmp_path, run_command):
    arguments = (data / "corpus", data / "tokenizer", "--out", "shards", "--processes", 0)
    result = run_command(sys.executable, "-m", "data_prep.shards", *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (result.returncode, result.stderr) == (2, "error: --processes 0: 1 is the least\n")
    assert names(tmp_path) == []


def test_a_second_run_on_the_same_folder_is_one_line_and_the_first_goes_on(running, data, tmp_path, run_command):
    process, _ = running
    arguments = (data / "corpus", data / "tokenizer", "--out", "shards", "--processes", 1)
    os.kill(process.pid, signal.SIGSTOP)
    try:
        result = run_command(sys.executable, "-m", "data_prep.shards", *arguments, cwd=tmp_path, PYTHONPATH=str(ROOT))
    finally:
        os.kill(process.pid, signal.SIGCONT)
    said = "error: shards.partial: another run is writing here; wait for it to end, or name another folder\n"
    assert (result.returncode, result.stderr) == (2, said)
    process.communicate(timeout=limit(PATIENCE))
    assert process.returncode == 0
    assert content(tmp_path / "shards") == content(data / "shards")


@pytest.fixture
def running(data, tmp_path):
    """The command, stopped by nothing yet, with workers in the middle of a shard: (process, the workers)."""
    arguments = (data / "corpus", data / "tokenizer", "--out", "shards", "--processes", "2")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.shards", *map(str, arguments)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + limit(PATIENCE)
    while not list(tmp_path.glob("shards.partial/*.bin.partial")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    workers = [child for child in psutil.Process(process.pid).children() if "spawn_main" in " ".join(child.cmdline())]
    assert len(workers) == 2
    yield process, workers
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def nobody_is_left(process):
    """Whether all processes of the command end; orphans of it would stay in its session."""
    deadline = time.monotonic() + limit(PATIENCE)
    while time.monotonic() < deadline:
        if not any(_session(other.pid) == process.pid for other in psutil.process_iter() if _is_alive(other)):
            return True
        time.sleep(0.02)
    return False


def _session(pid):
    try:
        return os.getsid(pid)
    except ProcessLookupError:
        return None


def _is_alive(process):
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


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


@pytest.mark.parametrize(
    "send", [os.kill, os.killpg]
)  # to the command alone, and as a terminal does, to its workers too
def test_ctrl_c_leaves_nothing_but_finished_shards_and_no_processes(running, tmp_path, send):
    process, _ = running
    send(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=limit(PATIENCE))
    assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
    only_finished_shards_are_left(tmp_path)
    assert nobody_is_left(process)


def test_a_killed_command_leaves_no_processes_and_nothing_that_the_next_trusts(running, data, tmp_path):
    process, _ = running
    process.kill()
    process.communicate(timeout=limit(PATIENCE))
    assert nobody_is_left(process)
    assert names(tmp_path) == ["shards.partial"]
    with worker_pool(2) as pool:
        assert shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", pool)
    assert content(tmp_path / "shards") == content(data / "shards")
    assert names(tmp_path) == ["shards"]


@pytest.mark.parametrize("processes", [1, 2])
def test_after_a_kill_the_next_run_keeps_the_shards_that_were_done(running, data, tmp_path, processes):
    process, _ = running
    deadline = time.monotonic() + limit(PATIENCE)
    while not list(tmp_path.glob("shards.partial/tasks/*.json")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.kill()
    process.communicate(timeout=limit(PATIENCE))
    assert nobody_is_left(process)
    done = [path.stem for path in (tmp_path / "shards.partial" / folders.TASKS).glob("*.json")]
    before = {name: (tmp_path / "shards.partial" / f"{name}.bin").stat().st_mtime_ns for name in done}
    with worker_pool(processes) as pool:
        assert shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", pool)
    assert {name: (tmp_path / "shards" / f"{name}.bin").stat().st_mtime_ns for name in done} == before
    assert content(tmp_path / "shards") == content(data / "shards")
    assert names(tmp_path) == ["shards"]


def test_a_killed_worker_is_one_clear_line_and_no_hang_and_the_next_run_goes_on(running, data, tmp_path):
    process, workers = running
    workers[0].kill()
    _, said = process.communicate(timeout=limit(PATIENCE))
    assert process.returncode == 2
    assert said.startswith("error: shards.partial: a process died while tokenising (out of memory?); run again")
    assert said.count("\n") == 1
    only_finished_shards_are_left(tmp_path)
    assert nobody_is_left(process)
    assert shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", WorkerPool())
    assert content(tmp_path / "shards") == content(data / "shards")
    assert names(tmp_path) == ["shards"]

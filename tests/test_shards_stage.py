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
from conftest import ROOT, make_documents, read_span
from tokenizers import Tokenizer

from data_prep import corpus, folders, shards, tokenizer
from data_prep.tokenizer import texts
from scaler import token_shards
from scaler.errors import ScalerError
from scaler.recipe import Corpus
from scaler.recipe import Tokenizer as TokenizerSettings
from scaler.token_shards import TokenDataset, checksum, read_manifest

PATIENCE = 60  # seconds that a command may take to get where a test waits for it


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A corpus of several parts with its tokenizer, and shards that one process made of them."""
    folder = tmp_path_factory.mktemp("data")
    odd = ["<s> is <mask> spelled </s> <pad>", "Größe 大 🙂", "  spaces  "] * 20
    (folder / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in make_documents(18_000) + odd))
    corpus.make(Corpus(str(folder / "a.jsonl"), heldout_percent=10, part_mib=1), folder / "corpus")
    tokenizer.make(folder / "corpus", folder / "tokenizer", TokenizerSettings(400))
    shards.make(folder / "corpus", folder / "tokenizer", folder / "shards", processes=1)
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


def test_two_processes_make_the_bytes_that_one_makes(data, tmp_path):
    shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", processes=2)
    assert len(read_manifest(data / "shards").splits["train"]) > 1
    assert content(tmp_path / "shards") == content(data / "shards")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_tokens_decode_to_the_documents_in_order(data, split):
    dataset = TokenDataset(read_manifest(data / "shards"), split)
    decode = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json")).decode
    found = [
        decode(read_span(dataset, start, length), skip_special_tokens=False)
        for start, length in zip(*dataset.documents(), strict=True)
    ]
    assert found == list(texts(data / "corpus", split))


def test_no_special_token_is_in_the_shards_even_where_a_text_spells_one(data):
    manifest = read_manifest(data / "shards")
    assert any("<mask>" in text for text in texts(data / "corpus", "train"))
    assert not manifest.unigram_counts()[:5].any()


def test_the_manifest_tells_the_truth(data):
    manifest = read_manifest(data / "shards")
    token_shards.verify(manifest)
    for split in ("train", "heldout"):
        dataset = TokenDataset(manifest, split)
        assert manifest.count(split, "tokens") == sum(len(shard.ids) for shard in dataset.shards)
        assert manifest.count(split, "documents") == sum(1 for _ in texts(data / "corpus", split))
        for entry, shard in zip(manifest.splits[split], dataset.shards, strict=True):
            assert (entry["documents"], entry["tokens"]) == (len(shard.document_ends), len(shard.ids))
            assert entry["bin_xxh3"] == checksum(data / "shards" / f"{entry['name']}.bin")
            assert entry["idx_xxh3"] == checksum(data / "shards" / f"{entry['name']}.idx")
    train = TokenDataset(manifest, "train")
    counts = np.bincount(np.concatenate([shard.ids for shard in train.shards]), minlength=400)
    assert np.array_equal(manifest.unigram_counts(), counts)
    assert manifest.tokenizer_xxh3 == checksum(data / "tokenizer" / "tokenizer.json")
    assert manifest.vocab_size == 400
    assert manifest.sources == folders.read_manifest(data / "corpus", "corpus")["sources"]
    assert manifest.strip_ids == ()


def test_made_twice_they_are_up_to_date_and_left_alone(data):
    before = {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in (data / "shards").iterdir()}
    assert not shards.make(data / "corpus", data / "tokenizer", data / "shards", processes=1)
    assert {file: (file.stat().st_mtime_ns, file.stat().st_ino) for file in (data / "shards").iterdir()} == before


def test_another_tokenizer_has_them_made_anew(data, inputs):
    shutil.copytree(data / "shards", inputs[2])
    tokenizer.make(inputs[0], inputs[1], TokenizerSettings(350))
    assert shards.make(*inputs, processes=1)
    manifest = read_manifest(inputs[2])
    assert manifest.vocab_size == len(manifest.unigram_counts()) == 350


def test_a_shard_that_is_missing_or_cut_short_has_them_made_anew(data, inputs):
    shutil.copytree(data / "shards", inputs[2])
    os.truncate(inputs[2] / "train-00000.bin", 100)
    assert shards.make(*inputs, processes=1)
    assert content(inputs[2]) == content(data / "shards")


def flip_a_bit(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize("damage", [flip_a_bit, os.unlink, lambda path: os.truncate(path, 1000)])
@pytest.mark.parametrize("name", ["corpus/train-00001.jsonl.zst", "tokenizer/tokenizer.json"])
def test_damaged_input_is_named_with_a_remedy(inputs, tmp_path, name, damage):
    damage(tmp_path / name)
    with pytest.raises(ScalerError) as raised:
        shards.make(*inputs, processes=1)
    folder = (tmp_path / name).parent
    assert str(raised.value).startswith(f"{tmp_path / name}: missing or damaged")
    assert f"delete {folder} and make it again" in str(raised.value)
    assert names(tmp_path) == ["corpus", "tokenizer"]


@pytest.mark.parametrize("name", ["corpus", "tokenizer"])
def test_missing_input_is_named_with_a_remedy(inputs, tmp_path, name):
    shutil.rmtree(tmp_path / name)
    with pytest.raises(ScalerError, match=rf"{name}: no {name} here .*prepare it first"):
        shards.make(*inputs, processes=1)


def test_no_process_is_too_few(data, tmp_path):
    with pytest.raises(ScalerError, match="processes=0, but at least 1"):
        shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", processes=0)


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
        # a shell that runs the tests in the background has them ignore SIGINT, and this command too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    deadline = time.monotonic() + PATIENCE
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
    deadline = time.monotonic() + PATIENCE
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


@pytest.mark.parametrize(
    "send", [os.kill, os.killpg]
)  # to the command alone, and as a terminal does, to its workers too
def test_ctrl_c_leaves_neither_files_nor_processes(running, tmp_path, send):
    process, _ = running
    send(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=PATIENCE)
    assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
    assert names(tmp_path) == []
    assert nobody_is_left(process)


def test_a_killed_command_leaves_no_processes_and_nothing_that_the_next_trusts(running, data, tmp_path):
    process, _ = running
    process.kill()
    process.communicate(timeout=PATIENCE)
    assert nobody_is_left(process)
    assert names(tmp_path) == ["shards.partial"]
    assert shards.make(data / "corpus", data / "tokenizer", tmp_path / "shards", processes=2)
    assert content(tmp_path / "shards") == content(data / "shards")
    assert names(tmp_path) == ["shards"]


def test_a_killed_worker_is_one_clear_line_and_no_hang(running, tmp_path):
    process, workers = running
    workers[0].kill()
    _, said = process.communicate(timeout=PATIENCE)
    assert process.returncode == 2
    assert said.startswith("error: shards: a tokenising process died")
    assert said.count("\n") == 1
    assert names(tmp_path) == []
    assert nobody_is_left(process)

"""The corpus folder: whole or absent, the same from the same source, and split so that no document ever moves."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time

import pyarrow
import pyarrow.parquet
import pytest
from conftest import ROOT, make_documents

from data_prep import corpus, folders
from data_prep.tokenizer import texts
from scaler.errors import ScalerError
from scaler.recipe import Corpus
from scaler.token_shards import checksum

COMMAND = (sys.executable, "-m", "data_prep.corpus")
MIB = 1 << 20


@pytest.fixture
def make(tmp_path):
    """Make tmp_path/corpus from documents, and say whether it was written."""

    def make(documents, name="source.jsonl", **settings):
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        return corpus.make(Corpus(**{"source": str(path), "heldout_percent": 10, **settings}), tmp_path / "corpus")

    return make


def split_of_each(folder):
    return {text: split for split in ("train", "heldout") for text in texts(folder, split)}


def state(folder):
    return {file.name: (checksum(file), file.stat().st_mtime_ns, file.stat().st_ino) for file in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_adding_removing_and_moving_documents_moves_none_between_splits(make, tmp_path):
    documents = make_documents(2000)
    make(documents[:1200])
    before = split_of_each(tmp_path / "corpus")
    others = documents[600:]
    random.Random(1).shuffle(others)
    make(others)
    after = split_of_each(tmp_path / "corpus")
    common = before.keys() & after.keys()
    assert len(common) > 400
    assert {before[text] for text in common} == {"train", "heldout"}
    assert all(before[text] == after[text] for text in common)


def test_exact_duplicates_are_in_the_same_split(make, tmp_path):
    documents = list(dict.fromkeys(make_documents(300)))
    make(documents * 3)
    heldout, train = (list(texts(tmp_path / "corpus", split)) for split in ("heldout", "train"))
    assert heldout
    assert not set(heldout) & set(train)
    assert sorted(heldout + train) == sorted(documents * 3)


def test_the_heldout_share_is_the_one_asked_for_and_a_larger_one_keeps_what_was_held_out():
    documents = [f"document {number}" for number in range(20_000)]
    one, five = ({text for text in documents if corpus.split_of(text, share) == "heldout"} for share in (1, 5))
    assert len(one) / len(documents) == pytest.approx(0.01, rel=0.2)
    assert len(five) / len(documents) == pytest.approx(0.05, rel=0.1)
    assert one < five


def test_documents_come_back_in_order_with_every_character(make, tmp_path):
    odd = [
        "a\nb",
        "a\r\nb\r",
        "tab\t\0\x1f",
        "\u2028 \u2029 \x85 \x0b",
        '"\\n"',
        "Größe 大 🙂",
        " both ends ",
        "\ufeffmark",
    ]
    documents = [f"{text} {number}" for number in range(20) for text in odd]
    make(documents, heldout_percent=20)
    for split in ("train", "heldout"):
        assert list(texts(tmp_path / "corpus", split)) == [
            text for text in documents if corpus.split_of(text, 20) == split
        ]


def test_a_part_ends_once_it_is_full(make, tmp_path):
    documents = [f"{number} " + "x" * 300_000 for number in range(30)]
    make(documents, part_mib=1)
    *full, last = folders.read_manifest(tmp_path / "corpus", "corpus")["splits"]["train"]
    assert len(full) >= 5
    assert all(MIB <= entry["bytes"] < MIB + 300_010 for entry in full)
    assert 0 < last["bytes"] < MIB + 300_010
    assert [entry["name"] for entry in full] == [f"train-{number:05d}.jsonl.zst" for number in range(len(full))]


def test_the_manifest_counts_what_is_there(make, tmp_path):
    documents = [*make_documents(500), "Größe"]
    make(["", "  ", "kurz", *documents], min_characters=5)
    manifest = folders.read_manifest(tmp_path / "corpus", "corpus")
    for split, entries in manifest["splits"].items():
        found = list(texts(tmp_path / "corpus", split))
        assert sum(entry["documents"] for entry in entries) == len(found)
        assert sum(entry["characters"] for entry in entries) == sum(map(len, found))
        assert sum(entry["bytes"] for entry in entries) == sum(len(text.encode()) for text in found)
        assert all(entry["xxh3"] == checksum(tmp_path / "corpus" / entry["name"]) for entry in entries)
    (source,) = manifest["sources"]
    assert source["documents"] + source["dropped_short"] == len(documents) + 3
    assert source["dropped_short"] == sum(len(text) < 5 for text in documents) + 3


def test_made_twice_it_is_up_to_date_and_left_alone(make, tmp_path):
    assert make(make_documents(100))
    before = state(tmp_path / "corpus")
    settings = Corpus(source=str(tmp_path / "source.jsonl"), heldout_percent=10)
    assert not corpus.make(settings, tmp_path / "corpus")
    assert state(tmp_path / "corpus") == before


def test_the_same_source_gives_the_same_bytes(make, tmp_path):
    make(make_documents(100))
    corpus.make(Corpus(source=str(tmp_path / "source.jsonl"), heldout_percent=10), tmp_path / "again")
    assert {name: kept[0] for name, kept in state(tmp_path / "again").items()} == {
        name: kept[0] for name, kept in state(tmp_path / "corpus").items()
    }


def test_a_changed_source_or_setting_is_made_anew(make, tmp_path):
    make(make_documents(100))
    assert make(make_documents(101))
    assert sum(entry["documents"] for entry in folders.read_manifest(tmp_path / "corpus", "corpus")["sources"]) == 101
    assert make(make_documents(101), heldout_percent=20)
    assert names(tmp_path) == ["corpus", "source.jsonl"]


@pytest.mark.parametrize("there_before", [False, True])
def test_an_error_in_the_middle_leaves_what_was_there_before(make, tmp_path, there_before):
    source = tmp_path / "source"
    source.mkdir()
    if there_before:
        make(make_documents(100))
    before = state(tmp_path / "corpus") if there_before else None
    (source / "a.txt").write_text("\n\n".join(make_documents(1000)))
    (source / "b.jsonl").write_text("no JSON")
    with pytest.raises(ScalerError, match=r"b\.jsonl, line 1"):
        corpus.make(Corpus(source=str(source)), tmp_path / "corpus")
    assert not (tmp_path / "corpus.partial").exists()
    assert (state(tmp_path / "corpus") if (tmp_path / "corpus").exists() else None) == before


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_in_the_middle_leaves_nothing_that_the_next_trusts(make, tmp_path, end):
    process = subprocess.Popen(
        [*COMMAND, "aws-docs", "--out", "corpus"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        # a shell that runs the tests in the background has them ignore SIGINT, and this command too
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("corpus.partial/*.zst")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(end)
    _, said = process.communicate(timeout=60)
    assert not (tmp_path / "corpus").exists()
    if end == signal.SIGINT:
        assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
        assert names(tmp_path) == []
    assert make(make_documents(100))
    assert names(tmp_path) == ["corpus", "source.jsonl"]


def a_foreign_file(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("the only copy")


def a_foreign_manifest(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my web page"}')


def another_stage(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text('{"kind": "tokenizer", "format": 1}')


def a_file(folder):
    folder.write_text("the only copy")


@pytest.mark.parametrize(
    ("put", "below"),
    [(a_foreign_file, ""), (a_foreign_manifest, ""), (another_stage, ""), (a_file, ""), (a_file, "corpus")],
)
def test_what_others_wrote_is_not_replaced(tmp_path, put, below):
    put(tmp_path / "out")
    before = [(path, path.read_bytes()) for path in tmp_path.rglob("*") if path.is_file()]
    (tmp_path / "a.txt").write_text("\n\n".join(make_documents(100)))
    with pytest.raises(ScalerError, match=r"out.*name another folder"):
        corpus.make(Corpus(source=str(tmp_path / "a.txt"), heldout_percent=10), tmp_path / "out" / below)
    assert all(path.read_bytes() == content for path, content in before)
    assert names(tmp_path) == ["a.txt", "out"]


def nothing(path):
    path.write_bytes(b"")


def blank_lines(path):
    path.write_bytes(b"\n  \n\t\n\n")


def no_rows(path):
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array([], "string")}), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("a.txt", nothing),
        ("a.txt", blank_lines),
        ("a.jsonl", blank_lines),
        ("a.jsonl.gz", nothing),
        ("a.parquet", no_rows),
    ],
)
def test_a_source_without_documents_is_named_with_a_remedy(tmp_path, name, write):
    write(tmp_path / name)
    with pytest.raises(ScalerError, match=rf"{name}: the train split would be empty .*bring more documents"):
        corpus.make(Corpus(source=str(tmp_path / name)), tmp_path / "corpus")
    assert names(tmp_path) == [name]


def test_one_document_cannot_fill_two_splits(make, tmp_path):
    with pytest.raises(ScalerError, match=r"the heldout split would be empty .*corpus\.heldout_percent=1"):
        make(["the only one"], heldout_percent=1)


def test_the_command_says_what_it_wrote_and_then_that_it_is_up_to_date(tmp_path, run_command):
    (tmp_path / "a.txt").write_text("\n".join(make_documents(200)))
    arguments = (*COMMAND, "a.txt", "--out", "mine/corpus", "--text_unit", "line", "--heldout_percent", "10")
    first, second = (run_command(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT)) for _ in range(2))
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    *counts, last = first.stdout.splitlines()
    assert [line.split()[0] for line in counts] == ["train", "heldout"]
    assert sum(int(line.split()[1]) for line in counts) == 200
    assert last == "mine/corpus written"
    assert second.stdout.splitlines() == [*counts, "mine/corpus is up to date"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\nno JSON\n', "a.jsonl, line 2: not JSON"),
        ("a.txt", b"\xff\xfe", "a.txt: not UTF-8"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2_on_the_command_line(tmp_path, run_command, name, content, said):
    (tmp_path / name).write_bytes(content)
    result = run_command(*COMMAND, name, "--out", "corpus", cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("stage", ["corpus", "shards"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, run_command, tiny_recipe, stage):
    # a small file system that only the command and its shell see, and that goes with them
    mounted = (
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=32k none disk && "$@"; status=$?; ls -A disk; exit $status',
        "sh",
    )
    (tmp_path / "disk").mkdir()
    if not shutil.which("unshare") or run_command(*mounted, "true", cwd=tmp_path).returncode:
        pytest.skip("no file system can be mounted here")
    data = tiny_recipe.tokenizer_folder.parent
    inputs = {"corpus": (tiny_recipe.corpus.source,), "shards": (data / "corpus", data / "tokenizer", "--processes", 2)}
    result = run_command(
        *mounted,
        sys.executable,
        "-m",
        f"data_prep.{stage}",
        *inputs[stage],
        "--out",
        "disk/out",
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert (
        result.stderr
        == "error: disk/out: the disk is full; nothing half-written counts; free some space and run again\n"
    )
    assert result.returncode == 2
    assert result.stdout == ""

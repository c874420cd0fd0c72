"""The corpus folder: whole or absent, the same from the same sources, and split so that no document ever moves."""

import dataclasses
import gzip
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from itertools import chain

import pyarrow
import pyarrow.parquet
import pytest
import xxhash
from conftest import ROOT, make_documents
from limits import limit

from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool, worker_pool
from data_prep.sources import corpus, readers
from scaler.config.data_sections import Corpus, Source
from scaler.core.errors import ScalerError
from scaler.core.files import check_file, checksum, read_manifest, write_json

COMMAND = (sys.executable, "-m", "data_prep.corpus")
MIB = 1 << 20
PATIENCE = 200  # seconds that a command may take to get where a test waits for it
OF_SOURCE = {field.name for field in dataclasses.fields(Source)}


def json_lines(documents):
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def corpus_of(*paths, **settings):
    """Settings of a corpus of these sources; a tenth of it is held out, another for the test."""
    of_source = {name: settings.pop(name) for name in OF_SOURCE & settings.keys()}
    listed = tuple(path if isinstance(path, Source) else Source(str(path), **of_source) for path in paths)
    return Corpus(sources=listed, **{"heldout_percent": 10.0, "test_percent": 10.0, **settings})


@pytest.fixture
def make(tmp_path):
    """Make tmp_path/corpus from documents, and say whether it was written."""

    def make(documents, name="source.jsonl", **settings):
        (tmp_path / name).write_bytes((gzip.compress if name.endswith(".gz") else bytes)(json_lines(documents)))
        return corpus.make(corpus_of(tmp_path / name, **settings), tmp_path / "corpus", WorkerPool())

    return make


def documents_of(folder, split):
    return [d for entry in texts.entries(texts.manifest(folder), split) for d in texts.read(folder, entry)]


def texts_of(folder, split):
    return [document.text for document in documents_of(folder, split)]


def split_of_each(folder):
    return {text: split for split in texts.SPLITS for text in texts_of(folder, split)}


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


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
    assert {before[text] for text in common} == set(texts.SPLITS)
    assert all(before[text] == after[text] for text in common)


def test_exact_duplicates_are_in_the_same_split(make, tmp_path):
    documents = list(dict.fromkeys(make_documents(300)))
    make(documents * 3)
    found = {split: texts_of(tmp_path / "corpus", split) for split in texts.SPLITS}
    assert all(found.values())
    assert sum(len(set(mine)) for mine in found.values()) == len(set(chain(*found.values())))
    assert sorted(chain(*found.values())) == sorted(documents * 3)


def in_split(split, heldout_percent, test_percent):
    documents = [f"document {number}" for number in range(20_000)]
    return {text for text in documents if corpus.split_of(text, heldout_percent, test_percent) == split}


def test_the_heldout_share_is_the_one_asked_for_and_a_larger_one_keeps_what_was_held_out():
    one, five = (in_split("heldout", share, 1) for share in (1, 5))
    assert len(one) / 20_000 == pytest.approx(0.01, rel=0.2)
    assert len(five) / 20_000 == pytest.approx(0.05, rel=0.1)
    assert one < five


def test_a_test_split_takes_its_share_of_the_training_documents_and_no_held_out_one():
    none, two, four = (in_split("test", 5, share) for share in (0, 2, 4))
    assert not none
    assert len(two) / 20_000 == pytest.approx(0.02, rel=0.15)
    assert len(four) / 20_000 == pytest.approx(0.04, rel=0.1)
    assert two < four < in_split("train", 5, 0)
    assert in_split("heldout", 5, 0) == in_split("heldout", 5, 2) == in_split("heldout", 5, 4)


def test_the_heldout_documents_are_the_ones_that_they_were_before_there_was_a_test_split():
    # by the rule of old: the least 1 % of the hash's low 32 bits
    of_old = {
        text
        for text in (f"document {number}" for number in range(20_000))
        if xxhash.xxh3_64_intdigest(text.encode()) % 2**32 < 0.01 * 2**32
    }
    assert in_split("heldout", 1, 1) == of_old


def test_without_a_test_split_a_folder_says_nothing_of_it(make, tmp_path):
    make(make_documents(100), test_percent=0)
    manifest = texts.manifest(tmp_path / "corpus")
    assert list(manifest["splits"]) == ["train", "heldout"]
    assert texts.entries(manifest, "test") == []
    assert [line.split()[0] for line in texts.describe(tmp_path / "corpus").splitlines()] == ["train", "heldout"]


def test_a_corpus_of_before_is_read_as_it_is_and_made_anew_with_its_settings(make, tmp_path):
    make(make_documents(300), test_percent=0)
    path = tmp_path / "corpus" / "manifest.json"
    content = json.loads(path.read_text())
    del content["made_from"]["settings"]["test_percent"]
    write_json(path, content)
    assert set(split_of_each(tmp_path / "corpus").values()) == {"train", "heldout"}
    assert make(make_documents(300))
    assert set(split_of_each(tmp_path / "corpus").values()) == set(texts.SPLITS)


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
    for split in texts.SPLITS:
        assert texts_of(tmp_path / "corpus", split) == [
            text for text in documents if corpus.split_of(text, 20, 10) == split
        ]


def test_documents_keep_their_ids(tmp_path):
    lines = [{"text": f"document {number}", "key": f"größe/{number}"} for number in range(100)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    corpus.make(corpus_of(tmp_path / "a.jsonl", id_field="key"), tmp_path / "corpus", WorkerPool())
    found = {d for split in texts.SPLITS for d in documents_of(tmp_path / "corpus", split)}
    assert found == {(line["text"], line["key"]) for line in lines}


@pytest.mark.parametrize("part_mib", [1, 64])  # in several pieces, and in one
def test_two_documents_of_one_id_are_refused(tmp_path, part_mib):
    lines = [{"text": f"{number} " + "x" * 500, "id": number} for number in range(4000)]
    lines[3999]["id"] = lines[17]["id"] = 3
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = corpus_of(tmp_path / "a.jsonl", id_field="id", part_mib=part_mib)
    said = r"a\.jsonl: 2 documents bear an id in 'id' that another one bears; make the ids unique"
    with pytest.raises(ScalerError, match=said):
        corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert not (tmp_path / "corpus").exists()
    assert corpus.make(corpus_of(tmp_path / "a.jsonl", part_mib=part_mib), tmp_path / "corpus", WorkerPool())


def test_two_sources_may_use_the_same_ids(tmp_path):
    for name in ("a", "b"):
        lines = [{"text": f"{name} {number}", "id": number} for number in range(100)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert corpus.make(corpus_of(*tmp_path.glob("*.jsonl"), id_field="id"), tmp_path / "corpus", WorkerPool())


@pytest.mark.parametrize("name", ["source.jsonl.gz", "source.jsonl"])  # read as one piece, and as many
def test_a_part_ends_once_it_is_full(make, tmp_path, name):
    documents = [f"{number} " + "x" * 300_000 for number in range(30)]
    make(documents, name, part_mib=1)
    entries = read_manifest(tmp_path / "corpus", "corpus")["splits"]["train"]
    assert len(entries) >= 5
    assert all(0 < entry["bytes"] < MIB + 300_010 for entry in entries)
    if name.endswith(".gz"):
        assert all(entry["bytes"] >= MIB for entry in entries[:-1])
        assert [entry["name"] for entry in entries] == [f"train-source-00000-{n:04d}" for n in range(len(entries))]
    assert texts_of(tmp_path / "corpus", "train") == [t for t in documents if corpus.split_of(t, 10, 10) == "train"]


def test_the_manifest_counts_what_is_there(make, tmp_path):
    documents = [*make_documents(500), "Größe"]
    make(["", "  ", "\n", *documents])
    manifest, path = read_manifest(tmp_path / "corpus", "corpus"), tmp_path / "source.jsonl"
    for split, entries in manifest["splits"].items():
        found = texts_of(tmp_path / "corpus", split)
        assert sum(entry["documents"] for entry in entries) == len(found)
        assert sum(entry["characters"] for entry in entries) == sum(map(len, found))
        assert sum(entry["bytes"] for entry in entries) == sum(len(text.encode()) for text in found)
        assert all(
            entry["xxh3"] == checksum(tmp_path / "corpus" / f"{entry['name']}{texts.EXTENSION}") for entry in entries
        )
    assert manifest["sources"] == [
        {
            "name": "source",
            "source": str(path),
            "documents": len(documents),
            "characters": sum(map(len, documents)),
            "bytes": sum(len(text.encode()) for text in documents),
            "documents_in": len(documents) + 3,
            "left_out": {"blank": 3},
            "first": {"blank": f"{path}, line 1"},
            "files": {"read": {".jsonl": [1, path.stat().st_size]}, "left_out": {}},
        }
    ]


@pytest.mark.parametrize(("max_mib", "name"), [(0.25, "source.jsonl"), (1.5, "source.jsonl"), (1.5, "source.jsonl.gz")])
def test_of_a_source_no_more_is_read_than_its_cap(make, tmp_path, max_mib, name):
    documents = [f"{number} " + "x" * 1000 for number in range(4000)]
    make(documents, name, max_mib=max_mib, part_mib=1)
    manifest = read_manifest(tmp_path / "corpus", "corpus")
    pieces = len(readers.plan(Source(str(tmp_path / name)), MIB).pieces)
    (source,) = manifest["sources"]
    # each piece ends with the document that reaches its share of the cap
    assert max_mib * MIB <= source["bytes"] < max_mib * MIB + pieces * 1010
    assert (
        source["documents"]
        == sum(e["documents"] for e in texts.entries(manifest))
        == len(split_of_each(tmp_path / "corpus"))
    )


def test_a_cap_above_what_is_there_caps_nothing(make, tmp_path):
    make(make_documents(300), max_mib=100)
    assert len(split_of_each(tmp_path / "corpus")) == 300


def test_several_sources_are_kept_apart_file_by_file(tmp_path):
    of_source = {name: [f"{name} {number}" for number in range(100)] for name in ("a", "b", "c")}
    (tmp_path / "a.jsonl").write_bytes(json_lines(of_source["a"]))
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.txt").write_text("\n".join(of_source["b"]))
    pyarrow.parquet.write_table(pyarrow.table({"body": of_source["c"]}), tmp_path / "c.parquet")
    settings = corpus_of(
        Source(str(tmp_path / "a.jsonl")),
        Source(str(tmp_path / "b"), text_unit="line"),
        Source(str(tmp_path / "c.parquet"), name="third", text_field="body"),
    )
    corpus.make(settings, tmp_path / "corpus", WorkerPool())
    manifest = read_manifest(tmp_path / "corpus", "corpus")
    assert [(s["name"], s["documents"]) for s in manifest["sources"]] == [("a", 100), ("b", 100), ("third", 100)]
    found = {name: [] for name in of_source}
    for split in texts.SPLITS:
        for entry in texts.entries(manifest, split):
            held = [document.text for document in texts.read(tmp_path / "corpus", entry)]
            name = {"third": "c"}.get(entry["source"], entry["source"])
            assert held == [text for text in of_source[name] if corpus.split_of(text, 10, 10) == split]
            found[name] += held
    assert {name: sorted(held) for name, held in found.items()} == {n: sorted(held) for n, held in of_source.items()}


def test_a_weight_that_changes_leaves_the_corpus_as_it_is(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_bytes(json_lines(f"{name} {number}" for number in range(100)))
    paths = [str(path) for path in sorted(tmp_path.glob("*.jsonl"))]
    assert corpus.make(corpus_of(*paths), tmp_path / "corpus", WorkerPool())
    for mix in ({"weight": 3.0}, {"epochs": 2.0}):
        assert not corpus.make(corpus_of(*paths, **mix), tmp_path / "corpus", WorkerPool())
    weighted = corpus_of(*paths, weight=1.0, tokens=100)
    assert not corpus.make(weighted, tmp_path / "corpus", WorkerPool())


def test_made_twice_it_is_up_to_date_and_left_alone(make, tmp_path):
    assert make(make_documents(100))
    before = state(tmp_path / "corpus")
    assert not corpus.make(corpus_of(tmp_path / "source.jsonl"), tmp_path / "corpus", WorkerPool())
    assert state(tmp_path / "corpus") == before


def test_the_same_source_gives_the_same_bytes(make, tmp_path):
    make(make_documents(100))
    corpus.make(corpus_of(tmp_path / "source.jsonl"), tmp_path / "again", WorkerPool())
    assert content(tmp_path / "again") == content(tmp_path / "corpus")


def test_a_changed_source_or_setting_is_made_anew(make, tmp_path):
    make(make_documents(100))
    assert make(make_documents(101))
    assert sum(entry["documents"] for entry in read_manifest(tmp_path / "corpus", "corpus")["sources"]) == 101
    assert make(make_documents(101), heldout_percent=20)
    assert make(make_documents(101), heldout_percent=20, test_percent=0)
    assert names(tmp_path) == ["corpus", "source.jsonl"]


# Errors, ends in the middle, and going on.


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    """A source of ten pieces of a mebibyte, and what an uninterrupted run in one process makes of it."""
    folder = tmp_path_factory.mktemp("large")
    chance = random.Random(0)
    (folder / "a").mkdir()
    for name in ("1.jsonl", "2.jsonl"):
        long = (f"{chance.getrandbits(400)} " * chance.choice((1, 5, 20)) for _ in range(4500))
        (folder / "a" / name).write_bytes(json_lines(long))
    settings = corpus_of(folder / "a", part_mib=1)
    assert len(readers.plan(settings.sources[0], MIB).pieces) >= 8
    corpus.make(settings, folder / "whole", WorkerPool())
    return settings, content(folder / "whole")


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_makes_the_same_bytes(large, tmp_path, processes):
    settings, whole = large
    with worker_pool(processes) as pool:
        assert corpus.make(settings, tmp_path / "corpus", pool)
    assert content(tmp_path / "corpus") == whole


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
        corpus.make(corpus_of(source), tmp_path / "corpus", WorkerPool())
    assert not (tmp_path / "corpus.partial").exists()  # no task was done
    assert (state(tmp_path / "corpus") if (tmp_path / "corpus").exists() else None) == before


class Reader:
    """Stands for `sources.read`: knows which pieces were begun, and fails at one of them, half-way."""

    def __init__(self, monkeypatch):
        self.began, self.fails_at, self.read = [], None, readers.read
        monkeypatch.setattr(readers, "read", self)

    def __call__(self, piece, max_bytes):
        self.began.append(piece)
        for number, document in enumerate(self.read(piece, max_bytes)):
            if len(self.began) == self.fails_at and number == 500:
                raise ScalerError("the network is down")
            yield document


@pytest.fixture
def reader(monkeypatch):
    return Reader(monkeypatch)


@pytest.mark.parametrize("fails_at", [2, 5])
@pytest.mark.parametrize("there_before", [False, True])
def test_after_an_error_the_next_run_goes_on_and_makes_the_same_bytes(large, reader, tmp_path, fails_at, there_before):
    settings, whole = large
    pieces = readers.plan(settings.sources[0], MIB).pieces
    if there_before:
        corpus.make(dataclasses.replace(settings, heldout_percent=20), tmp_path / "corpus", WorkerPool())
    before = state(tmp_path / "corpus") if there_before else None
    reader.began, reader.fails_at = [], fails_at
    with pytest.raises(ScalerError, match="the network is down"):
        corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert reader.began == pieces[:fails_at]
    assert (state(tmp_path / "corpus") if (tmp_path / "corpus").exists() else None) == before
    assert len(list((tmp_path / "corpus.partial" / folders.TASKS).glob("*.json"))) == fails_at - 1
    reader.began, reader.fails_at = [], None
    assert corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert reader.began == pieces[fails_at - 1 :]
    assert content(tmp_path / "corpus") == whole
    assert names(tmp_path) == ["corpus"]


@pytest.mark.parametrize(
    "change", [{"heldout_percent": 11}, {"test_percent": 11}, {"max_document_mib": 63}, {"part_mib": 2}]
)
def test_after_an_error_a_run_of_other_settings_starts_anew(large, reader, tmp_path, change):
    settings = dataclasses.replace(large[0], **change)
    reader.fails_at = 5
    with pytest.raises(ScalerError, match="the network is down"):
        corpus.make(large[0], tmp_path / "corpus", WorkerPool())
    reader.began, reader.fails_at = [], None
    assert corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert reader.began == readers.plan(settings.sources[0], settings.part_mib * MIB).pieces
    corpus.make(settings, tmp_path / "whole", WorkerPool())
    assert content(tmp_path / "corpus") == content(tmp_path / "whole")


def test_a_source_that_is_repaired_is_read_anew(tmp_path, reader):
    lines = [f"{number} " + "x" * 1000 for number in range(3000)]
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(lines) + b"no JSON\n")
    with pytest.raises(ScalerError, match=r"a\.jsonl, line 3001: not JSON"):
        corpus.make(corpus_of(path, part_mib=1), tmp_path / "corpus", WorkerPool())
    assert names(tmp_path) == ["a.jsonl", "corpus.partial"]
    path.write_bytes(json_lines(lines[5:]))
    reader.began = []
    assert corpus.make(corpus_of(path, part_mib=1), tmp_path / "corpus", WorkerPool())
    assert len(reader.began) == len(readers.plan(Source(str(path)), MIB).pieces)
    assert sorted(split_of_each(tmp_path / "corpus")) == sorted(lines[5:])


def test_an_error_in_one_of_two_processes_keeps_what_is_done_and_the_next_run_goes_on(tmp_path):
    folder = tmp_path / "source"
    folder.mkdir()
    for number in range(6):
        lines = [f"{number} {line} " + "x" * 1000 for line in range(1200)]
        (folder / f"{number}.jsonl").write_bytes(json_lines(lines))
    path, settings = folder / "5.jsonl", corpus_of(folder, part_mib=1)
    good, bad = path.read_bytes(), path.read_bytes()[:-3] + b"!!\n"

    def put(data):
        path.write_bytes(data)
        os.utime(path, (1, 1))  # the same source to a run that comes back

    put(good)
    corpus.make(settings, tmp_path / "whole" / "corpus", WorkerPool())
    put(bad)
    with worker_pool(2) as pool, pytest.raises(ScalerError, match=r"5\.jsonl, line 1200: not JSON"):
        corpus.make(settings, tmp_path / "corpus", pool)
    partial = tmp_path / "corpus.partial"
    done = [json.loads(record.read_text()) for record in (partial / folders.TASKS).glob("*.json")]
    files = [entry["name"] + texts.EXTENSION for record in done for _, entry in record["files"]]
    before = {name: (partial / name).stat().st_mtime_ns for name in files}
    assert before
    put(good)
    with worker_pool(2) as pool:
        assert corpus.make(settings, tmp_path / "corpus", pool)
    assert {name: (tmp_path / "corpus" / name).stat().st_mtime_ns for name in files} == before
    assert content(tmp_path / "corpus") == content(tmp_path / "whole" / "corpus")


def started(*arguments, cwd):
    return subprocess.Popen(
        [str(argument) for argument in arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(pattern, folder, process):
    deadline = time.monotonic() + limit(PATIENCE)
    while not list(folder.glob(pattern)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_run_that_is_ended_in_the_middle_leaves_nothing_that_the_next_trusts(make, tmp_path, end):
    process = started(*COMMAND, "aws-docs", "--out", "corpus", cwd=tmp_path)
    wait_for("corpus.partial/*.zst.partial", tmp_path, process)
    process.send_signal(end)
    _, said = process.communicate(timeout=limit(PATIENCE))
    assert not (tmp_path / "corpus").exists()
    if end == signal.SIGINT:
        assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
        done = list(tmp_path.glob("corpus.partial/tasks/*.json"))
        assert names(tmp_path) == ["corpus.partial"] * bool(done)
    assert make(make_documents(100))
    assert names(tmp_path) == ["corpus", "source.jsonl"]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_run_that_was_killed_goes_on_and_makes_the_same_bytes(large, tmp_path, processes):
    settings, whole = large
    arguments = (
        settings.sources[0].source,
        "--out",
        "corpus",
        "--part_mib",
        1,
        "--heldout_percent",
        10.0,
        "--test_percent",
        10.0,
    )
    command = (*COMMAND, *arguments, "--processes", processes)
    process = started(*command, cwd=tmp_path)
    wait_for("corpus.partial/tasks/*.json", tmp_path, process)
    process.kill()
    process.communicate(timeout=limit(PATIENCE))
    assert names(tmp_path) == ["corpus.partial"]
    time.sleep(0.5)  # the workers of the killed run end
    done = {path: path.stat().st_mtime_ns for path in (tmp_path / "corpus.partial").glob("*.zst")}
    assert done
    again = started(*command, cwd=tmp_path)
    assert (again.communicate(timeout=limit(PATIENCE))[1], again.returncode) == ("", 0)
    assert any((tmp_path / "corpus" / path.name).stat().st_mtime_ns == changed for path, changed in done.items())
    found = content(tmp_path / "corpus")
    assert found == whole
    assert names(tmp_path) == ["corpus"]


def test_a_second_run_on_the_same_folder_is_one_line_and_the_first_goes_on(make, tmp_path, run_command):
    (tmp_path / "a.txt").write_text("\n\n".join(make_documents(200)))
    with folders.staged(tmp_path / "corpus", "corpus", {}) as partial:
        (partial / "begun").write_text("by the first run")
        second = run_command(*COMMAND, "a.txt", "--out", "corpus", cwd=tmp_path, PYTHONPATH=str(ROOT))
        with pytest.raises(ScalerError, match="another run is writing here"):
            make(make_documents(100))
        assert (partial / "begun").read_text() == "by the first run"
    assert second.returncode == 2
    assert second.stderr == (
        "error: corpus.partial: another run is writing here; wait for it to end, or name another folder\n"
    )
    assert (tmp_path / "corpus" / "begun").exists()


def a_foreign_file(folder):
    folder.mkdir()
    (folder / "thesis.tex").write_text("the only copy")


def a_foreign_manifest(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text('{"name": "my web page"}')


def another_stage(folder):
    folder.mkdir()
    (folder / "manifest.json").write_text('{"kind": "tokenizer", "format": 2}')


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
        corpus.make(corpus_of(tmp_path / "a.txt"), tmp_path / "out" / below, WorkerPool())
    assert all(path.read_bytes() == content for path, content in before)
    assert names(tmp_path) == ["a.txt", "out"]


@pytest.mark.parametrize("below", [".", "corpus", "a/b/corpus"])
def test_a_source_that_would_hold_its_own_corpus_is_refused(tmp_path, below):
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "a.txt").write_text("\n\n".join(make_documents(100)))
    (tmp_path / "link").symlink_to("source")
    with pytest.raises(ScalerError, match=r"lies in the source .*name another folder"):
        corpus.make(corpus_of(tmp_path / "source"), tmp_path / "link" / below, WorkerPool())
    assert names(tmp_path / "source") == ["a.txt"]


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
@pytest.mark.parametrize("others", [False, True])
def test_a_source_without_documents_is_named_with_a_remedy(tmp_path, name, write, others):
    write(tmp_path / name)
    (tmp_path / "others.txt").write_text("\n\n".join(make_documents(100)))
    paths = [tmp_path / "others.txt", tmp_path / name] if others else [tmp_path / name]
    with pytest.raises(ScalerError, match=rf"{name}: holds no text.*; take it out of corpus\.sources, or bring its"):
        corpus.make(corpus_of(*paths), tmp_path / "corpus", WorkerPool())
    assert not (tmp_path / "corpus").exists()


def test_one_document_cannot_fill_two_splits(make, tmp_path):
    with pytest.raises(ScalerError, match=r"the heldout split would be empty.*corpus\.heldout_percent=1"):
        make(["the only one"], heldout_percent=1, test_percent=1)
    assert not (tmp_path / "corpus").exists()


def test_an_empty_test_split_is_refused_with_the_setting_that_leaves_it_out(make, tmp_path):
    said = r"the test split would be empty; .*corpus\.test_percent=0\.001\), or set corpus\.test_percent=0 to have no"
    with pytest.raises(ScalerError, match=said) as raised:
        make(make_documents(100), test_percent=0.001)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "corpus").exists()
    assert make(make_documents(100), test_percent=0)


def test_the_command_says_what_it_wrote_and_then_that_it_is_up_to_date(tmp_path, run_command):
    (tmp_path / "a.txt").write_text("\n".join(make_documents(200)))
    arguments = (*COMMAND, "a.txt", "--out", "mine/corpus", "--text_unit", "line", "--heldout_percent", "10")
    arguments += ("--test_percent", "5")
    first, second = (run_command(*arguments, cwd=tmp_path, PYTHONPATH=str(ROOT)) for _ in range(2))
    assert (first.returncode, second.returncode, first.stderr, second.stderr) == (0, 0, "", "")
    *counts, source, last = first.stdout.splitlines()
    said = r"a: 200 documents of \d+ characters on average; a line is a document; 1 file of [\d,]+ bytes \(1 .txt\)"
    assert re.fullmatch(said, source)
    assert [line.split()[0] for line in counts] == ["train", "heldout", "test"]
    assert sum(int(line.split()[1]) for line in counts) == 200
    assert last == "mine/corpus written"
    assert second.stdout.splitlines() == [*counts, source, "mine/corpus is up to date"]


def test_the_command_takes_several_sources(tmp_path, run_command):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("\n\n".join(f"{name} {number}" for number in range(100)))
    result = run_command(*COMMAND, "a.txt", "b.txt", "--out", "corpus", "--heldout_percent", 10, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    manifest = read_manifest(tmp_path / "corpus", "corpus")
    assert [(source["name"], source["documents"]) for source in manifest["sources"]] == [("a", 100), ("b", 100)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.jsonl", b'{"text": "a"}\nno JSON\n', "a.jsonl, line 2: not JSON"),
        ("a.txt", b"\xff\xfe", "a.txt: text in UTF-16 or UTF-32; convert it"),
    ],
)
@pytest.mark.parametrize("processes", [1, 2])
def test_bad_input_is_one_line_and_exit_status_2_on_the_command_line(
    tmp_path, run_command, name, content, said, processes
):
    (tmp_path / name).write_bytes(content)
    command = (*COMMAND, name, "--out", "corpus", "--processes", processes)
    result = run_command(*command, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {said}")
    assert result.stderr.count("\n") == 1
    assert names(tmp_path) == [name]


@pytest.mark.parametrize("stage", ["corpus", "shards"])
def test_a_full_disk_is_one_line_and_leaves_nothing_half_made(tmp_path, run_command, tiny_recipe, stage):
    # a small file system that only the command and its shell see, and that goes with them
    mounted = (
        "unshare",
        "-rm",
        "sh",
        "-c",
        'mount -t tmpfs -o size=32k none disk && "$@"; status=$?; ls -A disk; ls disk/*/tasks; exit $status',
        "sh",
    )
    (tmp_path / "disk").mkdir()
    if not shutil.which("unshare") or run_command(*mounted, "true", cwd=tmp_path).returncode:
        pytest.skip("no file system can be mounted here")
    data = tiny_recipe.tokenizer_folder.parent
    inputs = {
        "corpus": (tiny_recipe.corpus.sources[0].source,),
        "shards": (data / "corpus", data / "tokenizer", "--processes", 2),
    }
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
    said = "error: disk/out: the disk is full; nothing half-written counts; free some space and run again\n"
    assert result.returncode == 2
    assert result.stderr.startswith(said)
    if result.stdout:  # what is left has finished tasks
        assert result.stdout.startswith("out.partial\n")
        assert ".json\n" in result.stdout


# Manifests, of a corpus or another folder.


@pytest.mark.parametrize("stand_in", [None, b"", b"{", b"\xff\xfe", b"[]", b"null", b"{}", b'{"kind": "corpus"}'])
def test_garbage_is_no_manifest(tmp_path, stand_in):
    if stand_in is not None:
        (tmp_path / "manifest.json").write_bytes(stand_in)
    with pytest.raises(ScalerError, match=r"(no corpus here|its manifest is) .*; prepare it first") as raised:
        texts.manifest(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path}: ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "shards"}, "shards, format 2"),
        ({"format": 1}, "corpus, format 1"),
        ({"format": None}, "corpus, format None"),
    ],
)
def test_a_manifest_of_another_kind_or_format_is_refused_and_the_folder_is_made_anew(make, tmp_path, changes, said):
    make(make_documents(100))
    path = tmp_path / "corpus" / "manifest.json"
    write_json(path, {**json.loads(path.read_text()), **changes})
    with pytest.raises(ScalerError, match=rf"its manifest is {said}; corpus, format 2, is needed; prepare it first"):
        read_manifest(tmp_path / "corpus", "corpus")
    if "kind" not in changes:
        assert make(make_documents(100))


def test_a_file_of_json_that_cannot_be_written_leaves_the_old_one(tmp_path):
    write_json(tmp_path / "a.json", {"old": "Größe"})
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"new": object()})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"old": "Größe"}


def flip_a_bit(path):
    damaged = bytearray(path.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    path.write_bytes(damaged)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (os.unlink, "missing; delete its folder and prepare the data again"),
        (flip_a_bit, "its checksum is not the manifest's, the file is damaged; delete its folder"),
        (lambda path: os.truncate(path, 10), "its checksum is not the manifest's, the file is damaged; delete its"),
    ],
)
def test_a_file_of_text_that_is_missing_or_damaged_is_named(make, tmp_path, damage, said):
    make(make_documents(100))
    entry = read_manifest(tmp_path / "corpus", "corpus")["splits"]["train"][0]
    path = tmp_path / "corpus" / (entry["name"] + texts.EXTENSION)
    check_file(path, entry["xxh3"])
    damage(path)
    with pytest.raises(ScalerError) as raised:
        list(texts.read(tmp_path / "corpus", entry))
    assert str(raised.value).startswith(f"{path}: {said}")

"""What is read of sources: caps, what a document is, records without text, and sources that change."""

import gzip
import json
import os
import re
import sys

import pytest
from conftest import ROOT, make_documents

from data_prep.formats import texts
from data_prep.pipeline import accounts
from data_prep.pipeline.workers import WorkerPool, worker_pool
from data_prep.sources import corpus, hub, readers
from scaler.config.data_sections import Corpus, Source
from scaler.core.errors import ScalerError
from scaler.core.files import read_manifest

COMMAND = (sys.executable, "-m", "data_prep.corpus")
MIB = 1 << 20
OF_SOURCE = ("max_mib", "text_unit", "text_field")


def json_lines(documents):
    return "".join(json.dumps({"text": text}) + "\n" for text in documents).encode()


def corpus_of(*paths, **settings):
    """Settings of a corpus of these sources; a tenth of it is held out, another for the test."""
    of_source = {name: settings.pop(name) for name in OF_SOURCE if name in settings}
    listed = tuple(Source(str(path), **of_source) for path in paths)
    return Corpus(sources=listed, **{"heldout_percent": 10.0, "test_percent": 10.0, **settings})


def manifest_of(folder):
    return read_manifest(folder, "corpus")


def split_of_each(folder):
    found = {split: texts.entries(texts.manifest(folder), split) for split in texts.SPLITS}
    return {d.text: split for split, entries in found.items() for entry in entries for d in texts.read(folder, entry)}


def content(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# A cap, and what is there.


def parts(folder, mebibytes):
    """A file of so much text each, in lines of about a kibibyte."""
    folder.mkdir()
    for number, size in enumerate(mebibytes):
        lines = [f"{number} {line} " + "x" * 1000 for line in range(round(size * 1034))]
        (folder / f"{number}.jsonl.gz").write_bytes(gzip.compress(json_lines(lines), 1))
    return sum(round(size * 1034) for size in mebibytes)


@pytest.mark.parametrize("sizes", [(3.65, 0.01), (2, 0.5, 0.1, 0.02), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)])
def test_a_cap_above_what_is_there_loses_nothing_however_unlike_the_pieces_are(tmp_path, sizes):
    documents = parts(tmp_path / "source", sizes)
    settings = corpus_of(tmp_path / "source", max_mib=sum(sizes) * 1.05, part_mib=1)
    corpus.make(settings, tmp_path / "corpus", WorkerPool())
    (source,) = manifest_of(tmp_path / "corpus")["sources"]
    assert (source["documents"], "capped" in source) == (documents, False)


@pytest.mark.parametrize("sizes", [(3, 0.01), (2, 0.5, 0.1, 0.02), (0.1, 0.2, 0.3, 0.4, 0.5, 0.6)])
@pytest.mark.parametrize("fraction", [0.3, 0.6, 0.95])
def test_a_cap_below_what_is_there_is_reached_however_unlike_the_pieces_are(tmp_path, sizes, fraction):
    parts(tmp_path / "source", sizes)
    most = sum(sizes) * fraction
    settings = corpus_of(tmp_path / "source", max_mib=most, part_mib=1)
    corpus.make(settings, tmp_path / "corpus", WorkerPool())
    (source,) = manifest_of(tmp_path / "corpus")["sources"]
    assert most * MIB <= source["bytes"] < most * MIB + len(sizes) * 1020
    assert source["capped"]
    assert len(split_of_each(tmp_path / "corpus")) == source["documents"]  # none twice
    again = corpus_of(tmp_path / "source", max_mib=most, part_mib=1)
    with worker_pool(2) as pool:
        corpus.make(again, tmp_path / "again", pool)
    assert content(tmp_path / "again") == content(tmp_path / "corpus")


# What a document is.


@pytest.mark.parametrize(
    ("number", "size", "heldout", "unit"),
    [
        (400, 100, 1.0, "file"),
        (299, 100, 1.0, "paragraph"),
        (60, 100, 5.0, "file"),
        (59, 100, 5.0, "paragraph"),
        (61, (1 << 20) + 1, 5.0, "paragraph"),
        (1, 100, 5.0, "paragraph"),
    ],
)
def test_a_folder_of_many_small_files_has_a_document_a_file_and_it_is_said(tmp_path, number, size, heldout, unit):
    (tmp_path / "source").mkdir()
    for file in range(number):
        ending = (".md", ".rst", ".txt")[file % 3]
        with (tmp_path / "source" / f"{file}{ending}").open("w") as out:
            out.write(f"the first {file}\n\nthe second {file}\n\n")
            out.truncate(max(size, 50))
    (tmp_path / "other.jsonl").write_bytes(json_lines(make_documents(600)))
    settings = corpus_of(tmp_path / "source", tmp_path / "other.jsonl", heldout_percent=heldout, test_percent=heldout)
    corpus.make(settings, tmp_path / "corpus", WorkerPool())
    source, other = manifest_of(tmp_path / "corpus")["sources"]
    assert (source["text_unit"], "text_unit" in other) == (unit, False)
    assert source["documents"] >= (number if unit == "file" else 2 * number)
    assert source["documents"] <= (number if unit == "file" else 3 * number)
    (line, *_) = accounts.of_sources(texts.manifest(tmp_path / "corpus"))
    assert f"source: {source['documents']:,} documents of " in line
    assert f"; a {unit} is a document; " in line


def test_the_recipe_says_what_a_document_is(tmp_path):
    (tmp_path / "source").mkdir()
    for file in range(400):
        (tmp_path / "source" / f"{file}.md").write_text(f"# {file}\n\ntext {file}\n")
    for unit, documents in (("line", 800), ("paragraph", 800), ("file", 400)):
        corpus.make(corpus_of(tmp_path / "source", text_unit=unit), tmp_path / unit, WorkerPool())
        (source,) = manifest_of(tmp_path / unit)["sources"]
        assert (source["documents"], source["text_unit"]) == (documents, unit)


def test_a_split_that_is_empty_because_files_are_documents_says_so(tmp_path):
    (tmp_path / "source").mkdir()
    for file in range(300):
        (tmp_path / "source" / f"{file}.md").write_text("the same")
    with pytest.raises(ScalerError, match=r"split would be empty; .*, or take the paragraphs .*text_unit: paragraph"):
        corpus.make(corpus_of(tmp_path / "source", heldout_percent=1, test_percent=1), tmp_path / "c", WorkerPool())


# Records without text.


@pytest.mark.parametrize(("bad", "percent", "refused"), [(1, 1, True), (1, 10, False), (0, 0, False), (1, 0, True)])
def test_more_records_without_text_than_the_recipe_allows_are_refused_and_the_first_is_named(
    tmp_path, bad, percent, refused
):
    path = tmp_path / "source.jsonl"
    path.write_bytes(json_lines(make_documents(50)) + b'{"body": "b"}\n' * bad + b'{"text": null}\n' * 30)
    settings = corpus_of(path, unusable_percent=percent)
    if not refused:
        assert corpus.make(settings, tmp_path / "corpus", WorkerPool())
        (source,) = manifest_of(tmp_path / "corpus")["sources"]
        assert source["left_out"] == {"null": 30, **({"no such field": bad} if bad else {})}
        return
    with pytest.raises(ScalerError) as raised:
        corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert str(raised.value) == (
        f"{path}: 1 of 81 records have no text (null 30, no such field 1), more than "
        f"corpus.unusable_percent={percent}; the first: {path}, line 51: no field 'text' (there: body); "
        "set the text_field"
    )


def test_a_wrong_field_is_noticed_before_all_is_read(tmp_path):
    (tmp_path / "source.jsonl").write_bytes(json_lines(make_documents(5000)))
    with pytest.raises(ScalerError, match=r"1,000 of 1,000 records have no text .*: no field 'body' .there: text."):
        corpus.make(corpus_of(tmp_path / "source.jsonl", text_field="body"), tmp_path / "corpus", WorkerPool())


def test_a_higher_limit_goes_on_with_what_was_read(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json_lines(make_documents(50)) + b"{}\n")
    with pytest.raises(ScalerError, match="unusable_percent=1;"):
        corpus.make(corpus_of(path), tmp_path / "corpus", WorkerPool())
    monkeypatch.setattr(readers, "read", None)  # would fail
    assert corpus.make(corpus_of(path, unusable_percent=2), tmp_path / "corpus", WorkerPool())
    assert not corpus.make(corpus_of(path, unusable_percent=50), tmp_path / "corpus", WorkerPool())


def test_what_was_read_and_left_out_is_on_the_screen_in_the_manifest_and_in_the_card(tmp_path, run_command):
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.jsonl").write_bytes(json_lines(make_documents(300)) + b'{"text": null}\n{"text": "caf\xe9"}\n')
    (source / "b.TXT.gz").write_bytes(gzip.compress("\n\n".join(make_documents(100, 1)).encode()))
    (source / "c.pdf").write_bytes(b"%PDF" * 50_000)
    (source / ".d.txt").write_bytes(b"hidden")
    command = (*COMMAND, "source", "--out", "corpus", "--heldout_percent", 10)
    done = run_command(*command, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert (done.returncode, done.stderr) == (0, "")
    said = [line for line in done.stdout.splitlines() if line.startswith("source: ")]
    size = (source / "a.jsonl").stat().st_size + (source / "b.TXT.gz").stat().st_size
    assert re.fullmatch(
        rf"source: 400 documents of \d+ characters on average; a paragraph is a document; 2 files of "
        rf"({size:,} bytes|0.\d MB) \(1 .jsonl, 1 .txt.gz\)",
        said[0],
    )
    assert said[1] == "source: files left out: hidden: 1 .txt (6 bytes); not read: 1 .pdf (0.2 MB)"
    assert said[2] == (
        "source: 2 of 402 records left out: null 1; undecodable 1 (the first: source/a.jsonl, line 302: not UTF-8 "
        "(byte 0xe9); convert it, for example with `iconv -f latin1 -t utf-8`)"
    )
    card = (tmp_path / "corpus" / "README.md").read_text()
    assert all(f"- {line}" in card for line in said)
    (found,) = manifest_of(tmp_path / "corpus")["sources"]
    assert found["files"] == {
        "read": {
            ".jsonl": [1, (source / "a.jsonl").stat().st_size],
            ".txt.gz": [1, (source / "b.TXT.gz").stat().st_size],
        },
        "left_out": {"hidden": {".txt": [1, 6]}, "not read": {".pdf": [1, 200_000]}},
    }
    assert found["left_out"] == {"null": 1, "undecodable": 1}


# Names, and a source that changes.


def test_a_file_whose_name_is_not_utf8_is_read(tmp_path, run_command):
    (tmp_path / "source").mkdir()
    with open(os.fsencode(tmp_path) + b"/source/caf\xe9.txt", "w") as file:
        file.write("\n\n".join(make_documents(200)))
    for how in ("written", "is up to date"):
        done = run_command(*COMMAND, "source", "--out", "corpus", "--heldout_percent", 10, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith(f"corpus {how}\n")
    (name,) = manifest_of(tmp_path / "corpus")["made_from"]["sources"]["source"]
    assert os.fsencode(name) == b"source/caf\xe9.txt"
    with open(os.fsencode(tmp_path) + b"/source/caf\xe9.txt", "ab") as file:
        file.write(b"\n\nno JSON \xff" * 200)
    done = run_command(*COMMAND, "source", "--out", "corpus", "--heldout_percent", 10, cwd=tmp_path)
    assert done.returncode == 2
    assert "200 of 400 records have no text" in done.stderr
    assert "caf\\udce9.txt, line 401" in done.stderr


@pytest.mark.parametrize("change", ["new", "gone", "other"])
def test_a_folder_that_changes_while_it_is_read_is_refused_and_nothing_is_trusted(tmp_path, monkeypatch, change):
    source = tmp_path / "source"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.txt").write_text("\n\n".join(make_documents(100, number)))
    read = readers.read

    def reading(piece, max_bytes):
        yield from read(piece, max_bytes)
        if change == "new":
            (source / "3.txt").write_text("new")
        elif change == "gone":
            (source / "0.txt").unlink(missing_ok=True)
        else:
            (source / "0.txt").write_text("other")

    monkeypatch.setattr(readers, "read", reading)
    with pytest.raises(
        ScalerError, match=r"source: has changed while it was read .1 files are new, gone or other, such"
    ):
        corpus.make(corpus_of(source), tmp_path / "corpus", WorkerPool())
    assert not (tmp_path / "corpus").exists()
    monkeypatch.setattr(readers, "read", read)
    assert corpus.make(corpus_of(source), tmp_path / "corpus", WorkerPool())
    found = manifest_of(tmp_path / "corpus")["sources"][0]
    assert found["documents"] == {"new": 301, "gone": 200, "other": 201}[change]


def test_a_data_set_that_moves_on_is_read_at_one_commit_and_not_mixed(tmp_path, monkeypatch):
    (tmp_path / "base.jsonl").write_bytes(json_lines(make_documents(300)))
    state = {"commit": "first", "down": True}
    read_at = []

    class Rows:
        num_shards = 4

        def shard(self, num_shards, index):
            if state["down"] and index == 2:
                raise ScalerError("the network is down")
            read_at.append((index, state["commit"]))
            return [{"text": f"{state['commit']} {index} {number}"} for number in range(50)]

    monkeypatch.setattr(readers, "commit_of", lambda name, revision: state["commit"])
    monkeypatch.setattr(hub, "rows", lambda source, commit: Rows())
    settings = corpus_of("me/data")
    with pytest.raises(ScalerError, match="the network is down"):
        corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert read_at == [(0, "first"), (1, "first")]
    state.update(commit="second", down=False)
    assert corpus.make(settings, tmp_path / "corpus", WorkerPool())
    assert {text.split()[0] for text in split_of_each(tmp_path / "corpus")} == {"second"}
    (source,) = manifest_of(tmp_path / "corpus")["sources"]
    assert (source["commit"], source["documents"]) == ("second", 200)
    state["commit"] = "third"  # what is whole stays, as without a revision a source is what the hub has on its day
    assert not corpus.make(settings, tmp_path / "corpus", WorkerPool())


def test_a_corpus_below_a_folder_that_a_link_of_the_source_leads_to_is_refused(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "elsewhere" / "a.txt").write_text("\n\n".join(make_documents(100)))
    (tmp_path / "source" / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ScalerError, match=r"elsewhere/corpus: lies in the source .*name another folder"):
        corpus.make(corpus_of(tmp_path / "source"), tmp_path / "elsewhere" / "corpus", WorkerPool())
    assert names(tmp_path / "elsewhere") == ["a.txt"]


def test_a_pattern_is_a_source_with_the_name_of_its_folder(tmp_path):
    (tmp_path / "mine").mkdir()
    for number in range(3):
        (tmp_path / "mine" / f"{number}.jsonl").write_bytes(json_lines(make_documents(100, number)))
    settings = corpus_of(tmp_path / "mine" / "*.jsonl")
    assert corpus.make(settings, tmp_path / "mine" / "corpus", WorkerPool())
    (source,) = manifest_of(tmp_path / "mine" / "corpus")["sources"]
    assert (source["name"], source["documents"]) == ("mine", 300)

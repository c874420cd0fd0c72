"""Documents in are documents out and documents counted as left out, by reason: of every format, through every stage."""

import contextlib
import csv
import gzip
import io
import json
import math
import re
import shutil
from collections import Counter

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import make_documents
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep.formats import texts
from data_prep.pipeline import accounts, folders
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared import verify
from data_prep.prepared.prepare import prepare
from data_prep.sources import corpus
from scaler.config.data_sections import Corpus, Source
from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.core.files import read_manifest, write_json

# The formats, each with a way to write records and what becomes of them.

BLANK, NULL, NO_FIELD, WRONG_TYPE, UNDECODABLE = "blank", "null", "no such field", "wrong type", "undecodable"
BAD = "bad bytes"  # stands for a text that is not UTF-8
MISSING = "missing"  # stands for a record without the field
TEXT = st.text(
    st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufeff"), min_size=1, max_size=20
).filter(lambda text: text.strip() and text not in (BAD, MISSING))
BLANKS = st.sampled_from(["", " ", "\t\u3000"])
VALUES = {  # of the records that a format can hold
    "json": st.one_of(TEXT, BLANKS, st.sampled_from([None, 7, {"a": 1}, float("nan"), BAD, MISSING]), st.lists(TEXT)),
    "table": st.one_of(TEXT, BLANKS, st.just(BAD)),
    "parquet": st.one_of(TEXT, BLANKS, st.none()),
    "text": st.one_of(TEXT, st.just(BAD)),
    "lines": st.one_of(TEXT, BLANKS, st.just(BAD)),
}


def outcome(value):
    """What becomes of a value: the texts, or the reason."""
    if isinstance(value, list):
        return [text for item in value for text in outcome(item)] if value else [(BLANK,)]
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return [(NULL,)]
    if value in (BAD, MISSING):
        return [(UNDECODABLE if value == BAD else NO_FIELD,)]
    if not isinstance(value, str):
        return [(WRONG_TYPE,)]
    return [value if value.strip() else (BLANK,)]


def with_bad_bytes(data):
    return data.replace(BAD.encode(), b"caf\xe9")


def as_json(value):
    return json.dumps({"id": 1} if value == MISSING else {"text": value, "more": [1, "\ud800"]})


def json_lines(values, ends):
    return with_bad_bytes("".join(as_json(value) + end for value, end in zip(values, ends, strict=True)).encode())


def json_array(values, ends):
    return with_bad_bytes(f"[{','.join(map(as_json, values))}]{ends[0] if ends else ''}".encode())


def table(values, ends, **layout):
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator=ends[0] if ends else "\n", **layout)
    writer.writerows([["id", "text"], *enumerate(values)])
    return with_bad_bytes(out.getvalue().encode())


def tabs(values, ends):
    lines = ["id\ttext", *(f"{number}\t{value}" for number, value in enumerate(values))]
    return with_bad_bytes("".join(line.replace("\t\t", "\t") + "\n" for line in lines).encode())


def paragraphs(values, ends):
    return with_bad_bytes("".join(value + end * 2 for value, end in zip(values, ends, strict=True)).encode())


def lines(values, ends):
    return with_bad_bytes("".join(value + end for value, end in zip(values, ends, strict=True)).encode())


def parquet(values, ends):
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": pyarrow.array(values, "string")}), out)
    return out.getvalue()


WRITERS = {  # ending -> kind of values, how they are written, and the unit of text
    ".jsonl": ("json", json_lines, None),
    ".ndjson": ("json", json_lines, None),
    ".json": ("json", json_array, None),
    ".csv": ("table", table, None),
    ".tsv": ("table", tabs, None),
    ".parquet": ("parquet", parquet, None),
    ".txt": ("text", paragraphs, "paragraph"),
    ".md": ("lines", lines, "line"),
    ".rst": ("lines", lines, "line"),
}
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}


@st.composite
def files_of_text(draw):
    """Name, content, unit of text, and what becomes of the records, in order."""
    ending = draw(st.sampled_from([*WRITERS, ".html", "file.md"]))
    number, capital = draw(st.integers(0, 10**6)), draw(st.booleans())
    behind = "" if ending == ".parquet" else draw(st.sampled_from([*COMPRESS]))
    mark = b"\xef\xbb\xbf" * (draw(st.booleans()) and ending not in (".parquet", "file.md"))
    if ending == "file.md":  # a file is a document
        value = draw(st.one_of(TEXT, BLANKS, st.just(BAD)))
        data, unit, outcomes = with_bad_bytes(value.encode()), "file", outcome(value)
    elif ending == ".html":
        words = draw(st.sampled_from(["", "A sentence of a page that has a main text. " * 9]))
        data, unit, outcomes = f"<html><body><p>{words}</p></body></html>".encode(), None, [words or ("no main text",)]
    else:
        kind, write, unit = WRITERS[ending]
        values = draw(st.lists(VALUES[kind], max_size=8))
        if ending == ".tsv":
            values = [value.replace("\t", " ") for value in values]
        ends = draw(st.lists(st.sampled_from(["\n", "\r\n"]), min_size=len(values), max_size=len(values)))
        data, outcomes = write(values, ends), [found for value in values for found in outcome(value)]
    name = f"{number}{ending.removeprefix('file')}{behind}"
    return name.upper() if capital else name, COMPRESS[behind](mark + data), unit, outcomes


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.lists(files_of_text(), max_size=6), part_bytes=st.sampled_from([1, 30, 1 << 20]))
def test_every_record_is_a_document_or_counted_by_its_reason(tmp_path_factory, drawn, part_bytes):
    folder = tmp_path_factory.mktemp("account")
    sources, expected = [], {}
    for number, (name, data, unit, outcomes) in enumerate(drawn):
        (folder / f"source{number}").mkdir()
        (folder / f"source{number}" / name).write_bytes(data)
        if any(isinstance(found, str) for found in outcomes):  # a source without any text is refused
            sources.append(Source(str(folder / f"source{number}"), text_unit=unit))
            expected[f"source{number}"] = outcomes
    (folder / "base.jsonl").write_text("".join(json.dumps({"text": f"base {n}"}) + "\n" for n in range(80)))
    sources.append(Source(str(folder / "base.jsonl")))
    settings = Corpus(sources=tuple(sources), heldout_percent=40, test_percent=10, unusable_percent=100)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "MIB", part_bytes)  # so many bytes are a part; a document has at most 64 of them
        settings = Corpus(**{**vars_of(settings), "max_document_mib": -(-(1 << 20) // part_bytes)})
        corpus.make(settings, folder / "corpus", WorkerPool())
    assert list(verify.problems(folder / "corpus", WorkerPool())) == []
    manifest = read_manifest(folder / "corpus", "corpus")
    for source in manifest["sources"][:-1]:
        outcomes = expected[source["name"]]
        kept = [found for found in outcomes if isinstance(found, str)]
        assert source["left_out"] == Counter(found[0] for found in outcomes if isinstance(found, tuple))
        assert (source["documents_in"], source["documents"]) == (len(outcomes), len(kept))
        entries = [entry for entry in texts.entries(manifest) if entry["source"] == source["name"]]
        found = Counter(document.text for entry in entries for document in texts.read(folder / "corpus", entry))
        if not any(".htm" in ending for ending in source["files"]["read"]):
            assert found == Counter(kept)
    shutil.rmtree(folder)


def vars_of(settings):
    return {name: getattr(settings, name) for name in settings.__dataclass_fields__}


# Every stage.

LINE = st.one_of(
    st.sampled_from(make_documents(60)),
    TEXT,
    st.just("\u200b"),  # which WordPiece makes nothing of
    st.lists(st.sampled_from(["<b>bold</b>", "a@b.org", "the same words again"]), min_size=1).map(" ".join),
    st.integers(100, 400).map(lambda words: "long " * words),
)


@settings(
    deadline=None, max_examples=8, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    documents=st.lists(LINE, min_size=5, max_size=60),
    kind=st.sampled_from(["byte_bpe", "wordpiece"]),
    mix=st.sampled_from([{}, {"epochs": 2.5}, {"weight": 1.0}]),
)
def test_every_stage_accounts_for_each_document_that_came_in(tiny_recipe, tmp_path_factory, documents, kind, mix):
    folder = tmp_path_factory.mktemp("stages")
    for name, lines in (("a", [*documents, *make_documents(300, 1)]), ("b", make_documents(300, 2))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    shares = json.dumps([{"source": str(folder / "a.jsonl"), **mix}, {"source": str(folder / "b.jsonl"), **mix}])
    recipe = tiny_recipe.to_yaml()
    (folder / "recipe.yaml").write_text(recipe)
    overrides = [
        f"corpus.sources={shares}",
        f"data.folder={folder / 'data'}",
        f"tokenizer.kind={kind}",
        "cleaning.markup=true",
        "cleaning.min_characters=2",
        "dedup.exact=true",
        "dedup.near=true",
        "data.seq_len=16",
        *(["corpus.tokens=2000"] if "weight" in mix else []),
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        prepare(load(str(folder / "recipe.yaml"), overrides), WorkerPool())
    documents_out = None
    for stage in verify.stages(folder / "data"):
        assert list(verify.problems(stage, WorkerPool())) == []
        content = json.loads((stage / "manifest.json").read_text())
        if content["kind"] in ("tokenizer", "word2vec"):
            continue
        came_in = content.get("documents_in", sum(s["documents"] for s in content["sources"]))
        assert documents_out in (None, came_in)
        documents_out = accounts.documents_out(content)
        assert documents_out + accounts.dropped(content) == came_in
    of_rows, of_shards = (read_manifest(folder / "data" / name, name[:6].strip("-1")) for name in ("rows-16", "shards"))
    assert of_rows["documents_in"] == accounts.documents_out(of_shards)
    if not mix:
        assert all(entry["repeats"] == 0 for entries in of_rows["splits"].values() for entry in entries)
    shutil.rmtree(folder)


# What verification says of counts that are not right.


@pytest.fixture(scope="module")
def prepared(tiny_recipe_file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    lines = [*make_documents(600), *make_documents(5), ""]
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in lines))
    settings = [f"data.folder={folder / 'data'}", f"corpus.sources=[{folder / 'text.jsonl'}]"]
    prepare(load(str(tiny_recipe_file), [*settings, "cleaning.min_characters=8", "dedup.exact=true"]), WorkerPool())
    return folder / "data"


@pytest.fixture
def data(prepared, tmp_path):
    shutil.copytree(prepared, tmp_path / "data")
    return tmp_path / "data"


def change(folder, change):
    content = json.loads((folder / "manifest.json").read_text())
    change(content)
    write_json(folder / "manifest.json", content)


def lose_a_source_document(content):
    content["sources"][0]["left_out"] = {}


def lose_a_dropped_document(content):
    content["counts"] = {}


def lose_documents_of_the_stage_before(content):
    content["documents_in"] -= 1
    reason = next(iter(content["counts"]), None)
    if reason is None:
        content["splits"]["train"][0]["documents"] -= 1
    else:
        content["counts"][reason] -= 1


@pytest.mark.parametrize(
    ("name", "damage", "said"),
    [
        ("corpus", lose_a_source_document, "the source text: 606 documents in, but 605 out and 0 counted as left out"),
        ("clean", lose_a_dropped_document, "documents in, but .* out and 0 counted as left out"),
        ("dedup", lose_a_dropped_document, "documents in, but .* out and 0 counted as left out"),
        ("clean", lose_documents_of_the_stage_before, "corpus has 605 documents, but 604 came in"),
        ("dedup", lose_documents_of_the_stage_before, "clean has .* documents, but .* came in"),
        ("shards", lose_documents_of_the_stage_before, "dedup has .* documents, but .* came in"),
        ("rows-32", lose_documents_of_the_stage_before, "shards has .* documents, but .* came in"),
    ],
)
def test_a_document_that_is_not_accounted_for_is_named(data, name, damage, said):
    assert list(verify.problems(data / name, WorkerPool())) == []
    change(data / name, damage)
    found = list(verify.problems(data / name, WorkerPool()))
    assert found[0].startswith(f"{data / name}: ")
    assert any(re.search(said, line) for line in found), found


def test_a_folder_that_does_not_account_for_its_documents_is_never_written(tmp_path):
    entry = {"name": "a", "source": "s", "documents": 3}
    with pytest.raises(ScalerError, match=r"5 documents in, but 3 out and 1 counted as left out; report this error"):
        folders.write_manifest(
            tmp_path, "clean", {}, documents_in=5, counts={"dropped.x.y": 1, "changed.z": 9}, splits={"train": [entry]}
        )
    assert not (tmp_path / "manifest.json").exists()


def test_data_of_before_without_these_counts_have_no_problems(data):
    for stage in verify.stages(data):

        def of_before(content):
            content.pop("documents_in", None)
            for source in content.get("sources", []):
                for key in ("documents_in", "left_out", "first", "files"):
                    source.pop(key, None)

        change(stage, of_before)
    assert [problem for stage in verify.stages(data) for problem in verify.problems(stage, WorkerPool())] == []
    assert accounts.of_sources(read_manifest(data / "corpus", "corpus")) == []


def test_documents_in_no_row_are_counted(data, tiny_recipe_file, tmp_path):
    """Rows with less than 20 tokens to mask: their documents are in no row."""
    from data_prep.tokens import rows

    recipe = load(str(tiny_recipe_file))
    least = dict.fromkeys(texts.SPLITS, 27)
    rows.make(data / "shards", data / "tokenizer", tmp_path / "rows", 32, least, recipe.corpus, WorkerPool())
    content = read_manifest(tmp_path / "rows", "rows")
    assert content["counts"]["dropped.row_with_too_few_tokens"] > 0
    assert accounts.problems("rows", content) == []
    assert np.sum([e["dropped_rows"] for entries in content["splits"].values() for e in entries]) > 0

"""Where documents come from, and what is said of input that cannot be read."""

import gzip
import json
import re
import sys
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import ROOT, make_documents

from data_prep import sources
from scaler.errors import ScalerError
from scaler.recipe import Corpus

DOCUMENTS = ["one", "two\nlines", "Größe 大 🙂", " spaces  kept "]
MARKUP = re.compile(r"</|<(p|a|ul|li|code|i|b|note)\b|&(lt|gt|amp|quot|nbsp|#\d+);")
JSON_LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in DOCUMENTS).encode()


def read(path, **settings):
    return list(sources.documents(Corpus(source=str(path), **settings)))


def parquet(path, columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def written(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("paragraph", ["first\nparagraph", "second"]),
        ("line", ["", "first", "paragraph", "", "  ", "", "second"]),
        ("file", ["\nfirst\nparagraph\n\n  \n\nsecond\n"]),
    ],
)
def test_text_is_cut_into_the_unit_asked_for(tmp_path, unit, expected):
    path = written(tmp_path / "a.txt", b"\nfirst\nparagraph\n\n  \n\nsecond\n")
    assert read(path, text_unit=unit) == expected


def test_windows_line_ends_part_paragraphs_too(tmp_path):
    assert read(written(tmp_path / "a.txt", b"first\r\nparagraph\r\n\r\nsecond\r\n")) == ["first\nparagraph", "second"]


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.jsonl", bytes),
        ("a.jsonl.gz", gzip.compress),
        ("a.jsonl.zst", zstandard.compress),
        ("a.jsonl.zst", lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])),  # several frames
        ("a.jsonl.gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    ],
)
def test_json_lines_are_read_plain_and_compressed(tmp_path, name, compress):
    assert read(written(tmp_path / name, compress(JSON_LINES))) == DOCUMENTS


def test_blank_json_lines_are_no_documents(tmp_path):
    assert read(written(tmp_path / "a.jsonl", b'\n{"text": "a"}\n  \n{"text": "b"}')) == ["a", "b"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")])
def test_parquet_columns_of_text_are_read(tmp_path, kind):
    path = parquet(tmp_path / "a.parquet", {"id": [1, 2, 3, 4], "text": pyarrow.array(DOCUMENTS).cast(kind)})
    assert read(path) == DOCUMENTS


def test_another_field_can_hold_the_text(tmp_path):
    written(tmp_path / "a.jsonl", b'{"text": "no", "body": "json"}')
    parquet(tmp_path / "b.parquet", {"text": ["no"], "body": ["parquet"]})
    assert read(tmp_path, text_field="body") == ["json", "parquet"]


def test_a_folder_is_read_in_sorted_order_below_it_too_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    for name in ("d.txt", "c/b.txt", "a.txt", "c/a.txt", "e.md", "f.json"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a.txt", "c/a.txt", "c/b.txt", "d.txt"]


def test_a_change_of_a_file_changes_the_identity_of_the_source(tmp_path):
    settings = Corpus(source=str(tmp_path))
    written(tmp_path / "a.txt", b"one")
    before = sources.identity(settings)
    assert sources.identity(settings) == before
    written(tmp_path / "b.txt", b"two")
    assert sources.identity(settings) != before


BAD_FILES = {
    "latin-1 text": ("a.txt", "Größe".encode("latin1"), ["not UTF-8", "0xf6", "iconv"]),
    "bytes in JSON": ("a.jsonl", b'{"text": "\xff"}', ["not UTF-8", "0xff", "iconv"]),
    "half a character": ("a.jsonl", b'{"text": "a"}\n{"text": "\\ud800"}', ["line 2", "surrogate", "leave it out"]),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(JSON_LINES)[:-9], ["cut short", "fetch it again"]),
    "gzip damaged": ("a.jsonl.gz", gzip.compress(JSON_LINES)[:20] + b"\0" * 40, ["damaged", "fetch it again"]),
    "no gzip": ("a.jsonl.gz", JSON_LINES, ["damaged", "fetch it again"]),
    "zstd cut short": ("a.jsonl.zst", zstandard.compress(JSON_LINES)[:-1], ["cut short", "fetch it again"]),
    "no zstd": ("a.jsonl.zst", JSON_LINES, ["damaged", "fetch it again"]),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', ["line 3", "not JSON", "remove that line"]),
    "other field": (
        "a.jsonl",
        b'{"text": "a"}\n{"body": "b"}',
        ["line 2", "'text'", "there: body", "corpus.text_field"],
    ),
    "no text": ("a.jsonl", b'{"text": 7}', ["line 1", "'text'", "corpus.text_field"]),
    "no object": ("a.jsonl", b"[1]", ["line 1", "there: list", "corpus.text_field"]),
    "no Parquet": ("a.parquet", b"PAR1 and no more", ["not a whole Parquet file", "fetch it again"]),
    "empty Parquet": ("a.parquet", b"", ["not a whole Parquet file", "fetch it again"]),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_file_that_cannot_be_read_is_named_with_a_remedy(tmp_path, case):
    name, content, said = BAD_FILES[case]
    path = written(tmp_path / name, content)
    with pytest.raises(ScalerError) as raised:
        read(path)
    message = str(raised.value)
    assert all(part in message for part in [str(path), *said]), message
    assert "\n" not in message


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.001])
@pytest.mark.parametrize(("name", "compress"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_wherever_a_compressed_file_is_cut_it_is_noticed(tmp_path, name, compress, kept):
    data = compress("".join(json.dumps({"text": text}) + "\n" for text in make_documents(5000)).encode())
    with pytest.raises(ScalerError, match="cut short"):
        read(written(tmp_path / name, data[: int(len(data) * kept)]))


def test_a_parquet_file_cut_short_is_named(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": DOCUMENTS})
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ScalerError, match=r"a\.parquet: not a whole Parquet file .* fetch it again"):
        read(path)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"body": ["a"]}, r"a\.parquet: no column 'text' .there: body.*corpus.text_field"),
        ({"text": [1]}, r"a\.parquet: the column 'text' is int64.*corpus.text_field"),
        ({"text": [["a"]]}, r"a\.parquet: the column 'text' is list.*corpus.text_field"),
    ],
)
def test_a_parquet_file_without_a_column_of_text_is_named(tmp_path, columns, said):
    with pytest.raises(ScalerError, match=said):
        read(parquet(tmp_path / "a.parquet", columns))


def test_a_folder_without_text_is_named_with_what_can_be_read(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ScalerError) as raised:
        read(tmp_path)
    assert str(tmp_path) in str(raised.value)
    assert ".jsonl.zst" in str(raised.value)


def test_aws_docs_are_distinct_pages_of_plain_text():
    pages = list(islice(sources.aws_docs(), 3000))
    assert len(pages) == len(set(pages)) == 3000
    for page in pages:
        assert page.strip()
        assert not MARKUP.search(page)


def test_aws_docs_without_botocore_say_what_to_install(tmp_path, run_command):
    # all packages of this environment but one
    for package in Path(pyarrow.__file__).parent.parent.iterdir():
        if not package.name.startswith("botocore"):
            (tmp_path / package.name).symlink_to(package)
    result = run_command(
        sys.executable, "-S", "-m", "data_prep.corpus", "aws-docs", cwd=tmp_path, PYTHONPATH=f"{ROOT}:{tmp_path}"
    )
    assert result.returncode == 2
    assert result.stderr == "error: aws-docs needs the package botocore; install it with `pip install '.[aws-docs]'`\n"


@pytest.fixture
def hub_dataset(tmp_path):
    """A data set that the datasets library loads as it loads one of the hub: a card's configurations, two splits."""
    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: a.jsonl}\n"
        "  - {split: test, path: b.jsonl}\n- config_name: other\n  data_files: c.jsonl\n---\n"
    )
    written(tmp_path / "a.jsonl", JSON_LINES)
    written(tmp_path / "b.jsonl", b'{"text": "of the test split"}\n')
    written(tmp_path / "c.jsonl", b'{"text": "of the other configuration"}\n')
    return str(tmp_path)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"hub_config": "small"}, DOCUMENTS),
        ({"hub_config": "small", "hub_split": "test"}, ["of the test split"]),
        ({"hub_config": "other"}, ["of the other configuration"]),
    ],
)
def test_a_hub_data_set_is_streamed_from_its_configuration_and_split(hub_dataset, settings, expected):
    assert list(sources.hub(Corpus(source=hub_dataset, **settings))) == expected


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hub_config": "small", "text_field": "body"}, "row 0: no text in the field 'body' .there: text, id"),
        ({"hub_config": "none"}, "can be loaded .*none"),
        ({"hub_config": "small", "hub_split": "none"}, "can be loaded .*none"),
    ],
)
def test_a_wrong_choice_within_a_hub_data_set_is_one_line(hub_dataset, settings, said):
    with pytest.raises(ScalerError, match=said) as raised:
        list(sources.hub(Corpus(source=hub_dataset, **settings)))
    assert "\n" not in str(raised.value)


def test_an_unknown_data_set_is_one_line_on_the_command_line(tmp_path, run_command):
    result = run_command(sys.executable, "-m", "data_prep.corpus", "nobody/no-such-data-set", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: 'nobody/no-such-data-set': no such file or folder, and no Hugging Face")
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists() or not any((tmp_path / "data").iterdir())

"""Where documents come from, how a source is cut, and what is said of input that cannot be read."""

import errno
import gzip
import io
import itertools
import json
import os
import re
import sys
import tracemalloc
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from conftest import ROOT, make_documents
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.formats.texts import Document
from data_prep.sources import aws_docs, readers
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError, TryAgain

MIB = 1 << 20
MARK = b"\xef\xbb\xbf"
DOCUMENTS = ["one", "two\nlines", "Größe 大 🙂", " spaces  kept "]
MARKUP = re.compile(r"</|<(p|a|ul|li|code|i|b|note)\b|&(lt|gt|amp|quot|nbsp|#\d+);")
JSON_LINES = "".join(json.dumps({"text": text, "id": 1}) + "\n" for text in DOCUMENTS).encode()
ZSTD = zstandard.compress(JSON_LINES)
OF_A_DICTIONARY = zstandard.ZstdCompressor(
    dict_data=zstandard.train_dictionary(1 << 10, [json.dumps({"text": "a", "n": n}).encode() for n in range(5000)])
).compress(JSON_LINES)
NOT_UTF8 = pyarrow.array([b"a\xff"]).view("string")
LINES = {".jsonl": bytes, ".jsonl.gz": gzip.compress, ".jsonl.zst": zstandard.compress}


def found(path, piece_bytes=MIB, max_bytes=MIB, **settings):
    cut = pieces(Source(str(path), **settings), piece_bytes)
    return [item for piece in cut for item in readers.read(piece, max_bytes)]


def pieces(source, piece_bytes):
    return readers.plan(source, piece_bytes).pieces


def documents(path, *arguments, **settings):
    return [item for item in found(path, *arguments, **settings) if isinstance(item, Document)]


def read(path, *arguments, **settings):
    return [document.text for document in documents(path, *arguments, **settings)]


def left_out(path, *arguments, **settings):
    """The reasons, places and messages of what is no document."""
    items = found(path, *arguments, **settings)
    return [(item.reason, str(item.where), item.said) for item in items if not isinstance(item, Document)]


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
        ("line", ["first", "paragraph", "second"]),
        ("file", ["\nfirst\nparagraph\n\n  \n\nsecond\n"]),
    ],
)
@pytest.mark.parametrize("mark", [b"", MARK])
def test_text_is_cut_into_the_unit_asked_for(tmp_path, mark, unit, expected):
    path = written(tmp_path / "a.txt", mark + b"\nfirst\nparagraph\n\n  \n\nsecond\n")
    assert read(path, text_unit=unit) == expected
    assert left_out(path, text_unit=unit) == [
        ("blank", f"{path}, line {n}", "") for n in (1, 4, 5, 6) if unit == "line"
    ]


@pytest.mark.parametrize("piece_bytes", [MIB, 3])
def test_windows_line_ends_part_paragraphs_too(tmp_path, piece_bytes):
    path = written(tmp_path / "a.txt", b"first\r\nparagraph\r\n\r\nsecond\r\n")
    assert read(path, piece_bytes) == ["first\nparagraph", "second"]


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        *((f"a{extension}", compress) for extension, compress in LINES.items()),
        ("a.jsonl.zst", lambda data: zstandard.compress(data[:9]) + zstandard.compress(data[9:])),  # several frames
        ("a.jsonl.gz", lambda data: gzip.compress(data[:9]) + gzip.compress(data[9:])),
    ],
)
@pytest.mark.parametrize("mark", [b"", MARK])
def test_json_lines_are_read_plain_and_compressed(tmp_path, name, compress, mark):
    assert read(written(tmp_path / name, compress(mark + JSON_LINES))) == DOCUMENTS


@pytest.mark.parametrize("unit", ["paragraph", "line", "file"])
def test_a_byte_order_mark_elsewhere_than_at_the_start_is_text(tmp_path, unit):
    assert read(written(tmp_path / "a.txt", MARK + MARK + b"a" + MARK), text_unit=unit) == ["\ufeffa\ufeff"]


def test_blank_json_lines_are_no_documents(tmp_path):
    assert read(written(tmp_path / "a.jsonl", b'\n{"text": "a"}\n  \n{"text": "b"}')) == ["a", "b"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary("int32", "string")])
def test_parquet_columns_of_text_are_read(tmp_path, kind):
    path = parquet(tmp_path / "a.parquet", {"id": [1, 2, 3, 4], "text": pyarrow.array(DOCUMENTS).cast(kind)})
    assert read(path) == DOCUMENTS


def test_rows_of_a_parquet_file_without_text_are_no_documents_and_are_counted(tmp_path):
    texts = [None, *DOCUMENTS, None] * 1000  # several batches
    path = parquet(tmp_path / "a.parquet", {"text": texts})
    assert read(path) == DOCUMENTS * 1000
    assert [reason for reason, _, _ in left_out(path)] == ["null"] * 2000


def test_another_field_can_hold_the_text(tmp_path):
    written(tmp_path / "a.jsonl", b'{"text": "no", "body": "json"}')
    parquet(tmp_path / "b.parquet", {"text": ["no"], "body": ["parquet"]})
    assert read(tmp_path, text_field="body") == ["json", "parquet"]


def test_a_field_within_a_field_can_hold_the_text_or_a_list_of_texts(tmp_path):
    written(tmp_path / "a.jsonl", b'{"a": {"b": {"c": "json"}}}\n{"a": {"b": {"c": ["of", "several"]}}}\n')
    parquet(tmp_path / "b.parquet", {"a": [{"b": {"c": ["parquet"]}, "d": 1}, None, {"b": {"c": []}, "d": 2}]})
    assert read(tmp_path, text_field="a.b.c") == ["json", "of", "several", "parquet"]


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string()])
def test_texts_of_a_list_are_documents_with_ids_of_their_own(tmp_path, kind):
    texts, ids = [["a", "b"], ["alone"], []], ["x", "y", "z"]
    lines = "".join(json.dumps({"text": text, "id": id}) + "\n" for text, id in zip(texts, ids, strict=True))
    written(tmp_path / "a.jsonl", lines.encode())
    parquet(tmp_path / "b.parquet", {"id": ids, "text": pyarrow.array(texts, pyarrow.list_(kind))})
    assert documents(tmp_path, id_field="id") == [("a", "x.0"), ("b", "x.1"), ("alone", "y")] * 2
    assert documents(tmp_path) == [("a", None), ("b", None), ("alone", None)] * 2


def test_the_values_of_the_id_field_name_the_documents(tmp_path):
    written(tmp_path / "a.jsonl", b'{"text": "a", "key": "one"}\n{"text": "b", "key": 2}\n{"text": "c", "key": 0}')
    parquet(tmp_path / "b.parquet", {"text": ["d"], "key": [3]})
    assert documents(tmp_path, id_field="key") == [("a", "one"), ("b", "2"), ("c", "0"), ("d", "3")]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"text": "b"}', "line 2: no field 'id' .there: text.; set the id_field"),
        (b'{"text": "b", "id": null}', "line 2: no field 'id' .there: text, id.; set the id_field"),
        (b'{"text": "b", "id": "\\udc00"}', "line 2: the id in 'id' is no Unicode text"),
    ],
)
def test_a_document_without_an_id_is_refused_where_there_is_an_id_field(tmp_path, line, said):
    path = written(tmp_path / "a.jsonl", b'{"text": "a", "id": 1}\n' + line)
    with pytest.raises(ScalerError, match=said):
        read(path, id_field="id")


def test_a_parquet_file_without_an_id_is_refused_where_there_is_an_id_field(tmp_path):
    path = parquet(tmp_path / "a.parquet", {"text": ["a", "b"], "id": [1, None]})
    with pytest.raises(ScalerError, match=r"a\.parquet, row 2: no field 'id' .*set the id_field"):
        read(path, id_field="id")
    with pytest.raises(ScalerError, match=r"a\.parquet: no column 'key' .there: text, id.; set the id_field"):
        read(path, id_field="key")


def test_a_folder_is_read_in_sorted_order_below_it_too_and_other_files_are_left_alone(tmp_path):
    (tmp_path / "c").mkdir()
    for name in ("d.txt", "c/b.txt", "a.txt", "c/a.txt", "e.md", "f.pdf"):
        (tmp_path / name).write_text(name)
    assert read(tmp_path) == ["a.txt", "c/a.txt", "c/b.txt", "d.txt", "e.md"]


def test_a_change_of_a_file_changes_the_identity_of_the_source(tmp_path):
    source = Source(str(tmp_path))

    def identity(piece_bytes=MIB):
        return readers.plan(source, piece_bytes).identity

    path = written(tmp_path / "a.txt", b"one")
    before = identity()
    assert identity() == identity(1) == before
    os.utime(path, (1, 1))
    touched = identity()
    assert touched != before
    written(tmp_path / "b.txt", b"two")
    assert identity() not in (before, touched)


# How a source is cut.

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12)
TEXTS = st.lists(st.tuples(TEXT, st.sampled_from(["\n", "\r\n"])), max_size=12)


@settings(deadline=None, max_examples=300)
@given(lines=TEXTS, last=TEXT, mark=st.booleans(), piece_bytes=st.integers(1, 60))
def test_however_a_file_of_lines_is_cut_each_line_comes_once_and_in_order(
    tmp_path_factory, lines, last, mark, piece_bytes
):
    content = "".join(text + end for text, end in lines) + last
    path = written(tmp_path_factory.mktemp("cut") / "a.txt", MARK * mark + content.encode())
    expected = [text for text, _ in lines] + [last] * bool(last)
    if not mark and expected:
        expected[0] = expected[0].removeprefix("\ufeff")
    if mark and not content:
        expected = [""]
    assert read(path, piece_bytes, text_unit="line") == [text for text in expected if text.strip()]
    blank = [f"{path}, line {number}" for number, text in enumerate(expected, 1) if not text.strip()]
    assert [where for _, where, _ in left_out(path, piece_bytes, text_unit="line")] == blank
    cut = pieces(Source(str(path), text_unit="line"), piece_bytes)
    assert len(cut) == max(1, -(-path.stat().st_size // piece_bytes))
    assert sum(piece.size for piece in cut) == path.stat().st_size


RECORD = st.one_of(TEXT.map(lambda text: (text, json.dumps({"text": text}, ensure_ascii=False))), st.just((None, "")))


@settings(deadline=None, max_examples=300)
@given(
    records=st.lists(st.tuples(RECORD, st.sampled_from(["\n", "\r\n", " \n"])), min_size=1, max_size=12),
    ended=st.booleans(),
    piece_bytes=st.integers(1, 100),
    bad=st.integers(0, 12),
)
def test_however_json_lines_are_cut_the_documents_are_the_same_and_errors_name_their_line(
    tmp_path_factory, records, ended, piece_bytes, bad
):
    folder = tmp_path_factory.mktemp("cut")
    lines = [line + end for (_, line), end in records]
    if not ended:
        lines[-1] = lines[-1].strip()
    good = written(folder / "good.jsonl", "".join(lines).encode())
    assert read(good, piece_bytes) == [text for (text, _), _ in records if text and text.strip()]
    blank = [text for (text, _), _ in records if text is not None and not text.strip()]
    assert [reason for reason, _, _ in left_out(good, piece_bytes)] == ["blank"] * len(blank)
    bad %= len(lines)
    lines[bad] = '{"text": Größe}\n'
    path = written(folder / "bad.jsonl", "".join(lines).encode())
    said = []
    for piece in pieces(Source(str(path)), piece_bytes):
        try:
            list(readers.read(piece, MIB))
        except ScalerError as error:
            said.append(str(error))
    (message,) = said
    assert message.startswith(f"{path}, line {bad + 1}: not JSON")


def test_any_piece_can_be_read_alone_and_again(tmp_path):
    path = written(tmp_path / "a.jsonl", "".join(json.dumps({"text": f"{n}"}) + "\n" for n in range(500)).encode())
    cut = pieces(Source(str(path)), 1000)
    assert len(cut) > 5
    backwards = [[document.text for document in readers.read(piece, MIB)] for piece in reversed(cut)]
    assert list(itertools.chain.from_iterable(reversed(backwards))) == [f"{n}" for n in range(500)]


def test_small_files_share_a_piece(tmp_path):
    for number in range(10):
        written(tmp_path / f"{number}.txt", b"x" * 99 + b"%d" % number)
    cut = pieces(Source(str(tmp_path)), 350)
    assert [[span.path.name for span in piece.spans] for piece in cut] == [
        ["0.txt", "1.txt", "2.txt", "3.txt"],
        ["4.txt", "5.txt", "6.txt", "7.txt"],
        ["8.txt", "9.txt"],
    ]
    assert [piece.size for piece in cut] == [400, 400, 200]
    assert [text[-1] for text in read(tmp_path, 350)] == [str(number) for number in range(10)]


@pytest.mark.parametrize(
    ("name", "unit", "number"),
    [
        ("a.jsonl", "paragraph", 10),
        ("a.txt", "line", 10),
        ("a.txt", "paragraph", 1),
        ("a.txt", "file", 1),
        ("a.jsonl.gz", "line", 1),
        ("a.parquet", "line", 1),
    ],
)
def test_only_files_whose_documents_are_lines_are_cut(tmp_path, name, unit, number):
    path = written(tmp_path / name, b"\n" * 1000)
    cut = pieces(Source(str(path), text_unit=unit), 100)
    assert len(cut) == number
    assert sum(piece.size for piece in cut) == 1000


def test_large_and_small_files_share_pieces_without_loss(tmp_path):
    expected = []
    for number, lines in enumerate((3, 40, 1, 1, 90, 2)):
        texts = [f"{number} {line}" for line in range(lines)]
        written(tmp_path / f"{number}.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in texts).encode())
        expected += texts
    for piece_bytes in (1, 50, 99, 300, 1000, MIB):
        assert read(tmp_path, piece_bytes) == expected


# What is said of input that cannot be read.

BAD_FILES = {
    "UTF-16": ("a.txt", "Größe".encode("utf-16"), ["UTF-16", "iconv -f utf-16"]),
    "UTF-16 without a mark": ("a.txt", "Text of Latin letters".encode("utf-16-be"), ["UTF-16", "iconv -f utf-16"]),
    "UTF-16 of quotes": ("a.txt", "\u201cText\u201d of Latin".encode("utf-16-le"), ["UTF-16", "iconv -f utf-16"]),
    "UTF-32 without a mark": ("a.txt", "Text of Latin letters".encode("utf-32-le"), ["UTF-32"]),
    "UTF-32 in lines": ("a.jsonl.gz", gzip.compress('{"text": "a"}'.encode("utf-32-le")), ["UTF-32", "iconv"]),
    "gzip cut short": ("a.jsonl.gz", gzip.compress(JSON_LINES)[:-9], ["cut short", "fetch it again"]),
    "gzip damaged": ("a.jsonl.gz", gzip.compress(JSON_LINES)[:20] + b"\0" * 40, ["damaged", "fetch it again"]),
    "no gzip": ("a.jsonl.gz", JSON_LINES, ["no gzip", "fetch it again"]),
    "gzip with more behind": ("a.jsonl.gz", gzip.compress(JSON_LINES) + b"x", ["other bytes", "fetch it again"]),
    "zstd cut short": ("a.jsonl.zst", zstandard.compress(JSON_LINES)[:-1], ["cut short", "fetch it again"]),
    "no zstd": ("a.jsonl.zst", JSON_LINES, ["no zstd", "fetch it again"]),
    "zstd damaged": ("a.jsonl.zst", ZSTD[:20] + bytes(8) + ZSTD[28:], ["damaged", "fetch it again"]),
    "zstd of a dictionary": ("a.jsonl.zst", OF_A_DICTIONARY, ["dictionary", "decompress it"]),
    "no JSON": ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', ["line 3", "not JSON", "remove that line"]),
    "endless JSON": ("a.jsonl", b"[" * 200_000, ["line 1", "not JSON", "remove that line"]),
    "JSON cut short": ("a.json", b'[{"text": "a"}, {"text"', ["record 2", "not JSON", "fetch it again"]),
    "JSON without its end": ("a.json", b'[{"text": "a"}', ["not JSON", "does not end", "fetch it again"]),
    "JSON with more behind": (
        "a.json",
        b'[{"text": "a"}] {"text": "b"}',
        ["not JSON", "more after", "repair the file"],
    ),
    "JSON without commas": ("a.json", b'[{"text": "a"} {"text": "b"}]', ["not JSON", "no comma", "repair the file"]),
    "CSV of a quote that stays open": ("a.csv", b'text\n"a\nb\n', ["line 2", "not CSV", "quotes"]),
    "CSV of more fields": ("a.csv", b"text,id\na,1\nb,c,2\n", ["line 3", "3 fields", "names 2"]),
    "CSV of two columns of a name": ("a.csv", b"text,id,text\na,1,b\n", ["line 1", "'text' names two columns"]),
    "tabs of more fields": ("a.tsv", b"text\tid\na\t1\nb\tc\t2\n", ["line 3", "3 fields", "names 2"]),
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


WITHOUT_TEXT = {
    "latin-1 text": ("a.txt", "Größe".encode("latin1"), "undecodable", "line 1", "byte 0xf6.*iconv"),
    "latin-1 file": ("a.md", "Größe".encode("latin1"), "undecodable", "a.md", "byte 0xf6.*iconv"),
    "bytes in JSON": ("a.jsonl", b'{"text": "\xff"}', "undecodable", "line 1", "byte 0xff.*iconv"),
    "bytes in CSV": ("a.csv", b"text\n\xff\n", "undecodable", "line 2", "byte 0xff.*iconv"),
    "half a character": ("a.jsonl", b'\n{"text": "\\ud800"}', "undecodable", "line 2", "surrogate .*leave it out"),
    "half a character in an array": ("a.json", b'[{"text": "\\ud800"}]', "undecodable", "record 1", "surrogate"),
    "another field": ("a.jsonl", b'{"body": "b"}', "no such field", "line 1", "field 'text' .there: body.; set"),
    "another column": ("a.csv", b"body;id\nb;1\n", "no such field", "line 2", "'text' .there: body;id.; set"),
    "a number": ("a.jsonl", b'{"text": 7}', "wrong type", "line 1", "'text' but int .there: text.; set"),
    "a number in a list": ("a.jsonl", b'{"text": [7]}', "wrong type", "line 1", "'text' but int .there: text.; set"),
    "an object": ("a.json", b'{"text": {"a": "b"}}', "wrong type", "record 1", "'text' but dict .there: text.; set"),
    "no object": ("a.jsonl", b"[1]", "no such field", "line 1", "field 'text' .there: list.; set the text_field"),
    "null": ("a.jsonl", b'{"text": null}', "null", "line 1", "$"),
    "null in a list": ("a.jsonl", b'{"text": [null]}', "null", "line 1", "$"),
    "NaN": ("a.jsonl", b'{"text": NaN}', "null", "line 1", "$"),
    "NaN in an array": ("a.json", b'[{"text": NaN}]', "null", "record 1", "$"),
    "no text": ("a.jsonl", b'{"text": ""}', "blank", "line 1", "$"),
    "white space": ("a.json", b'[{"text": " \\n\\u3000"}]', "blank", "record 1", "$"),
    "no text in a table": ("a.tsv", b"id\ttext\n1\t\n", "blank", "line 2", "$"),
    "an empty list": ("a.jsonl", b'{"text": []}', "blank", "line 1", "$"),
    "an empty file": ("a.rst", b"", "blank", "a.rst", "$"),
    "a page without text": ("a.html", b"<html><head></head><body></body></html>", "no main text", "a.html", "$"),
}


@pytest.mark.parametrize("case", WITHOUT_TEXT)
def test_a_record_without_text_is_left_out_with_its_reason_and_place(tmp_path, case):
    name, content, reason, place, said = WITHOUT_TEXT[case]
    path = written(tmp_path / name, content)
    ((found, where, message),) = left_out(path, text_unit="file" if place == name else None)
    assert read(path, text_unit="file" if place == name else None) == []
    assert (found, where) == (reason, str(path) if place == name else f"{path}, {place}")
    assert re.search(said, message)


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
    ("columns", "field", "said"),
    [
        ({"text": [1]}, "text", r"a\.parquet: the column 'text' is int64.*set the text_field"),
        ({"text": [b"1"]}, "text", r"a\.parquet: the column 'text' is binary.*set the text_field"),
        ({"text": [[1]]}, "text", r"a\.parquet: the column 'text' is int64.*set the text_field"),
    ],
)
def test_a_parquet_file_without_a_column_of_text_is_named(tmp_path, columns, field, said):
    with pytest.raises(ScalerError, match=said):
        read(parquet(tmp_path / "a.parquet", columns), text_field=field)


@pytest.mark.parametrize(
    ("columns", "field", "reason", "said"),
    [
        ({"body": ["a"]}, "text", "no such field", "no field 'text' .there: body."),
        ({"text": [{"a": "b"}]}, "text", "wrong type", "no text in the field 'text' but dict .there: text."),
        ({"a": [{"c": "d"}]}, "a.b", "no such field", "no field 'a.b' .there: a."),
        ({"text": pyarrow.array([None], pyarrow.null())}, "text", "null", "$"),
        ({"text": pyarrow.array([float("nan")])}, "text", "null", "$"),  # as pandas writes missing texts
        ({"text": pyarrow.array([1.5])}, "text", "wrong type", "no text in the field 'text' but float"),
        ({"text": [[None]]}, "text", "null", "$"),
        ({"text": NOT_UTF8}, "text", "undecodable", "byte 0xff"),
        ({"text": NOT_UTF8.dictionary_encode()}, "text", "undecodable", "byte 0xff"),
        ({"a": pyarrow.StructArray.from_arrays([NOT_UTF8], ["b"])}, "a.b", "undecodable", "byte 0xff"),
    ],
)
def test_a_row_of_parquet_without_text_is_left_out_with_its_reason(tmp_path, columns, field, reason, said):
    path = parquet(tmp_path / "a.parquet", columns)
    assert read(path, text_field=field) == []
    ((found, where, message),) = left_out(path, text_field=field)
    assert (found, where) == (reason, f"{path}, row 1")
    assert re.search(said, message)


@pytest.mark.parametrize("field", ["a.c", "a.b.c", "b"])
def test_a_field_within_a_field_that_is_not_there_is_named(tmp_path, field):
    path = written(tmp_path / "a.jsonl", b'{"a": {"b": "c"}}')
    said = f"no field '{field}' (there: a); set the text_field"
    assert left_out(path, text_field=field) == [("no such field", f"{path}, line 1", said)]


LONG = 32 * MIB


@pytest.mark.parametrize(
    ("name", "compress", "unit"),
    [
        *((f"a{extension}", compress, "line") for extension, compress in LINES.items()),
        ("a.txt", bytes, "line"),
        ("a.txt", bytes, "paragraph"),
    ],
)
def test_a_long_line_is_refused_before_it_is_read_to_its_end(tmp_path, name, compress, unit):
    path = written(tmp_path / name, compress(b'\n{"text": "a"}\n\n' + b"x" * LONG))
    (piece,) = pieces(Source(str(path), text_unit=unit), 2 * LONG)
    list(islice(readers.read(piece, MIB), 1))  # what a first time imports
    tracemalloc.start()
    try:
        with pytest.raises(ScalerError) as raised:
            list(readers.read(piece, MIB))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(raised.value) == (
        f"{path}, line 4: a document of more than 1 MiB; cut it, or raise corpus.max_document_mib"
    )
    assert peak < LONG / 4


def test_every_piece_of_a_long_line_names_it(tmp_path):
    path = written(tmp_path / "a.jsonl", b'{"text": "a"}\n\n' + b"x" * 5000)
    *cut, last = pieces(Source(str(path)), 1000)
    for piece in cut:
        with pytest.raises(ScalerError, match=r"a\.jsonl, line 3: a document of more than"):
            list(readers.read(piece, 500))
    assert list(readers.read(last, 500)) == []


def test_a_file_or_paragraph_that_is_too_long_is_refused(tmp_path):
    path = written(tmp_path / "a.txt", b"short\n\n" + b"a line\n" * 100)
    assert len(read(path, MIB, 1000)) == 2
    with pytest.raises(ScalerError, match=r"a\.txt, line \d+: a document of more than .* corpus\.max_document_mib"):
        read(path, MIB, 500)
    with pytest.raises(ScalerError, match=r"a\.txt: a document of more than .* corpus\.max_document_mib"):
        read(path, MIB, 500, text_unit="file")


@pytest.fixture(params=["a.txt", *(f"a{extension}" for extension in LINES), "a.parquet"])
def file_of_text(request, tmp_path):
    path = tmp_path / request.param
    if path.suffix == ".parquet":
        return parquet(path, {"text": DOCUMENTS})
    return written(path, LINES.get("".join(path.suffixes), bytes)(JSON_LINES))


def test_a_file_that_has_vanished_since_the_source_was_cut_is_named(file_of_text):
    (piece,) = pieces(Source(str(file_of_text)), MIB)
    file_of_text.unlink()
    with pytest.raises(ScalerError) as raised:
        list(readers.read(piece, MIB))
    assert str(raised.value).startswith(f"{file_of_text}: has vanished while the corpus was read; bring it back")


def appended(path):
    path.write_bytes(path.read_bytes() * 2)


def touched(path):
    os.utime(path, ns=(0, 0))


def garbled(path):
    path.write_bytes(b"no longer what it was")


@pytest.mark.parametrize("change", [appended, touched, garbled])
def test_a_file_that_has_changed_since_the_source_was_cut_is_named(file_of_text, change):
    (piece,) = pieces(Source(str(file_of_text)), MIB)
    change(file_of_text)
    with pytest.raises(ScalerError) as raised:
        list(readers.read(piece, MIB))
    assert str(raised.value).startswith(f"{file_of_text}: has changed while it was read; let it be written to the end")


@pytest.mark.parametrize("change", [appended, touched])
def test_a_file_that_changes_while_it_is_read_is_named(file_of_text, change):
    (piece,) = pieces(Source(str(file_of_text), text_unit="line"), MIB)
    reading = readers.read(piece, MIB)
    next(reading)
    change(file_of_text)
    with pytest.raises(ScalerError, match="has changed while it was read"):
        list(reading)


def test_a_folder_without_text_is_named_with_what_can_be_read(tmp_path):
    (tmp_path / "a.pdf").write_bytes(b"%PDF")
    with pytest.raises(ScalerError) as raised:
        read(tmp_path)
    assert str(raised.value) == (
        f"{tmp_path}: no text found (there: 1 .pdf); .txt, .md, .markdown, .rst, .jsonl, .ndjson, .json, .csv, .tsv, "
        ".parquet, .html, .htm can be read, and all but Parquet with .gz or .zst behind"
    )


# The AWS documentation.


def test_aws_docs_are_pages_of_plain_text():
    pages = list(islice(aws_docs.documents(), 3000))
    assert len(pages) == 3000
    assert len(set(pages)) > 2900  # those of equal types in several services are dedup's to drop
    for page in pages:
        assert page.strip()
        assert not MARKUP.search(page)


@pytest.mark.parametrize("services", [1, 3, 20])
def test_the_pieces_of_aws_docs_hold_each_page_once(monkeypatch, services):
    from botocore.loaders import Loader

    some = Loader().list_available_services("service-2")[:services]
    monkeypatch.setattr(Loader, "list_available_services", lambda self, kind: some)
    cut = pieces(Source(readers.AWS_DOCS), MIB)
    assert len(cut) == readers.AWS_PIECES
    assert sorted(d.text for piece in cut for d in readers.read(piece, MIB)) == sorted(aws_docs.documents())


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


# Hugging Face data sets.


@pytest.fixture
def hub_dataset(tmp_path, monkeypatch):
    """A data set that the datasets library loads as it loads one of the hub: a card's configurations, two splits."""
    import datasets

    (tmp_path / "README.md").write_text(
        "---\nconfigs:\n- config_name: small\n  data_files:\n  - {split: train, path: a.jsonl}\n"
        "  - {split: test, path: b.jsonl}\n- config_name: other\n  data_files: c.jsonl\n"
        "- config_name: several\n  data_files: [d-0.jsonl, d-1.jsonl, d-2.jsonl]\n---\n"
    )
    written(tmp_path / "a.jsonl", JSON_LINES)
    written(tmp_path / "b.jsonl", b'{"text": "of the test split"}\n')
    written(tmp_path / "c.jsonl", b'{"text": "of the other configuration"}\n')
    for file in range(3):
        lines = (json.dumps({"text": f"{file} {line}", "id": f"{file}-{line}"}) + "\n" for line in range(file + 2))
        written(tmp_path / f"d-{file}.jsonl", "".join(lines).encode())
    monkeypatch.setattr(readers, "commit_of", lambda name, revision: revision or "newest")
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda name, *a, **k: load({"me/data": str(tmp_path)}[name], *a, **k))
    return "me/data"


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"hub_config": "small"}, DOCUMENTS),
        ({"hub_config": "small", "hub_split": "test"}, ["of the test split"]),
        ({"hub_config": "other"}, ["of the other configuration"]),
    ],
)
def test_a_hub_data_set_is_streamed_from_its_configuration_and_split(hub_dataset, settings, expected):
    assert read(hub_dataset, **settings) == expected


def test_a_hub_data_set_of_several_files_is_read_share_by_share(hub_dataset):
    source = Source(hub_dataset, hub_config="several", id_field="id")
    cut = pieces(source, MIB)
    shares = [list(readers.read(piece, MIB)) for piece in reversed(cut)][::-1]
    assert shares == [[(f"{file} {line}", f"{file}-{line}") for line in range(file + 2)] for file in range(3)]


def test_the_revision_and_the_shares_are_a_hub_data_sets_identity(hub_dataset):
    def identity(**settings):
        source = Source(hub_dataset, hub_config="several", **settings)
        return readers.plan(source, MIB).identity

    assert identity() == {"hub": "me/data", "revision": None, "shares": 3}
    assert identity(hub_revision="v2") == {"hub": "me/data", "revision": "v2", "shares": 3}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"hub_config": "other", "id_field": "id"}, "row 0: no field 'id' .there: text"),
        ({"hub_config": "none"}, "can be loaded .*none"),
        ({"hub_config": "small", "hub_split": "none"}, "can be loaded .*none"),
    ],
)
def test_a_wrong_choice_within_a_hub_data_set_is_one_line(hub_dataset, settings, said):
    with pytest.raises(ScalerError, match=said) as raised:
        read(hub_dataset, **settings)
    assert "\n" not in str(raised.value)


def test_an_unknown_data_set_is_one_line_on_the_command_line(tmp_path, run_command):
    result = run_command(sys.executable, "-m", "data_prep.corpus", "nobody/no-such-data-set", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith("error: 'nobody/no-such-data-set': no such file or folder, and no Hugging Face")
    assert "offline mode is enabled" in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "data").exists() or not any((tmp_path / "data").iterdir())


# Formats: where a field is, long windows, large rows.


def test_the_field_of_that_very_name_comes_before_a_path_of_fields(tmp_path):
    record = {"meta.text": "its name", "meta": {"text": "path"}, "a": {"b.c": "name below", "b": {"c": "path"}}}
    written(tmp_path / "a.jsonl", json.dumps(record).encode())
    written(tmp_path / "b.json", json.dumps([record, {"meta": {"text": "only path"}}]).encode())
    parquet(tmp_path / "c.parquet", {key: [value] for key, value in record.items()})
    parquet(tmp_path / "d.parquet", {"meta": [{"text": "only path"}]})
    written(tmp_path / "e.csv", b"x,meta.text\n1,its name\n")
    assert read(tmp_path, text_field="meta.text") == [
        *["its name"] * 2,
        "only path",
        "its name",
        "only path",
        "its name",
    ]
    assert read(tmp_path / "a.jsonl", text_field="a.b.c") == ["name below"]
    assert read(tmp_path / "c.parquet", text_field="a.b.c") == ["name below"]


def test_an_id_may_be_in_a_field_within_a_field_too(tmp_path):
    written(tmp_path / "a.jsonl", b'{"text": "a", "m": {"id": 7}}\n{"text": "b", "m.id": 8}\n')
    parquet(tmp_path / "b.parquet", {"text": ["c"], "m": [{"id": 9}]})
    assert documents(tmp_path, id_field="m.id") == [("a", "7"), ("b", "8"), ("c", "9")]


@pytest.mark.parametrize("window", [28, 31])
def test_zstd_of_a_long_window_is_read(tmp_path, window):
    long = zstandard.ZstdCompressionParameters(window_log=window, enable_ldm=False)
    compressor = zstandard.ZstdCompressor(compression_params=long)
    frame = compressor.compressobj(size=-1)  # a frame of unknown length keeps its window
    path = written(tmp_path / "a.jsonl.zst", frame.compress(JSON_LINES) + frame.flush())
    assert zstandard.get_frame_parameters(path.read_bytes()).window_size == 1 << window
    assert read(path) == DOCUMENTS


def test_zstd_frames_of_every_kind_are_read(tmp_path):
    skippable = (0x184D2A50).to_bytes(4, "little") + (3).to_bytes(4, "little") + b"xyz"
    half = len(JSON_LINES) // 2
    frames = [zstandard.compress(part) for part in (JSON_LINES[:half], b"", JSON_LINES[half:])]
    path = written(tmp_path / "a.jsonl.zst", skippable + skippable.join(frames) + skippable)
    assert read(path) == DOCUMENTS
    assert read(written(tmp_path / "b.txt.zst", b"")) == []


@pytest.mark.parametrize(
    "data", [lambda text: text, lambda text: [text], lambda text: {"b": text}, lambda text: {"b": [text]}]
)
def test_rows_of_parquet_that_name_one_long_text_are_read_in_batches_that_fit(tmp_path, data):
    """Of 4 kB on disk: 400 rows, each the same text of 4 MiB, 1.6 GB in all."""
    long = "x" * (4 * MIB)
    path = parquet(tmp_path / "a.parquet", {"text": [data(long)] * 400})
    assert path.stat().st_size < MIB
    field = "text.b" if isinstance(data(""), dict) else "text"
    (piece,) = pieces(Source(str(path), text_field=field), MIB)
    pool = pyarrow.default_memory_pool()
    before = pool.bytes_allocated()
    reading = readers.read(piece, 5 * MIB)
    most, count = 0, 0
    tracemalloc.start()
    for document in islice(reading, 40):
        count += len(document.text) == len(long)
        most = max(most, pool.bytes_allocated() - before + tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert count == 40
    assert most < 300 * MIB


def test_long_rows_of_parquet_are_read_a_few_at_once(tmp_path):
    texts = [f"{number}" + "x" * (3 * MIB) for number in range(100)]
    path = tmp_path / "a.parquet"
    # pages of one row: a page is decoded whole, however many of its rows are asked for
    pyarrow.parquet.write_table(pyarrow.table({"text": texts}), path, write_batch_size=1)
    (piece,) = pieces(Source(str(path)), MIB)
    pool = pyarrow.default_memory_pool()
    before, most, count = pool.bytes_allocated(), 0, 0
    for document, text in zip(readers.read(piece, 5 * MIB), texts, strict=True):
        assert document.text == text
        most = max(most, pool.bytes_allocated() - before)
        count += 1
    assert (count, most < 200 * MIB) == (100, True)


@pytest.mark.parametrize("size", [1, 7, 100, 1 << 16])
def test_however_a_file_of_json_is_cut_into_blocks_its_values_are_the_same(tmp_path, monkeypatch, size):
    from data_prep.sources import json_values

    monkeypatch.setattr(json_values, "BLOCK", size)
    records = [{"text": text, "n": [12345, 1.5e-7, True, None, {"a": '\\"}]'}]} for text in [*DOCUMENTS, "é\ud83d"] * 3]
    for content in (json.dumps(records), json.dumps(records, indent=1), "\n".join(map(json.dumps, records))):
        assert read(written(tmp_path / "a.json", content.encode())) == DOCUMENTS * 3
        assert len(left_out(tmp_path / "a.json")) == 3


def test_a_value_of_json_that_is_too_long_is_refused_before_it_is_read_to_its_end(tmp_path):
    for content in (b'[{"text": "', b'{"text": "a"} {"text": "'):
        path = written(tmp_path / "a.json", content + b"x" * LONG + b'"}')
        (piece,) = pieces(Source(str(path)), MIB)
        tracemalloc.start()
        try:
            with pytest.raises(
                ScalerError, match=r"a\.json, record \d: a document of more than 1 MiB; cut it, or raise"
            ):
                list(readers.read(piece, MIB))
            assert tracemalloc.get_traced_memory()[1] < LONG / 2
        finally:
            tracemalloc.stop()


def test_a_page_gives_its_main_text(tmp_path):
    sentence = "Forests hold most of the water that falls on the hills. " * 5
    page = (
        f"<html><body><nav><a href='/'>Home</a></nav><article><h1>Water</h1><p>{sentence}</p></article></body></html>"
    )
    written(tmp_path / "a.html", page.encode())
    written(tmp_path / "b.HTM.gz", gzip.compress(page.encode()))
    assert read(tmp_path) == [f"Water\n{sentence.strip()}"] * 2


def test_pages_without_trafilatura_say_what_to_install(tmp_path, monkeypatch):
    from importlib import metadata

    def version(package):
        raise metadata.PackageNotFoundError(package)

    written(tmp_path / "a.html", b"<p>text</p>")
    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(ScalerError, match=r"need the package trafilatura; install it with `pip install '.\[html\]'`"):
        read(tmp_path)


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_error_of_the_disk_names_its_file_and_is_never_called_damage(tmp_path, monkeypatch, number, name):
    path = written(tmp_path / name, LINES.get(name.removeprefix("a"), bytes)(JSON_LINES))
    (piece,) = pieces(Source(str(path)), MIB)

    class Failing(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            raise OSError(number, os.strerror(number))  # without a file name, as read(2) gives it

    real = io.open
    failing = lambda file, *a, **k: io.BufferedReader(Failing()) if str(file) == str(path) else real(file, *a, **k)  # noqa: E731
    monkeypatch.setattr("io.open", failing)
    monkeypatch.setattr("builtins.open", failing)
    with pytest.raises(ScalerError) as raised:
        list(readers.read(piece, MIB))
    assert str(raised.value).startswith(f"{path}: cannot be read ({os.strerror(number)}); ")
    assert isinstance(raised.value, TryAgain) == (number == errno.ESTALE)


def test_a_table_is_read_by_its_last_ending(tmp_path):
    assert read(written(tmp_path / "old.tsv.csv", b'text,id\n"a,b",1\n')) == ["a,b"]

"""Vectors of others: every format is read as gensim and the C program write it, and damage is named by line or row."""

import pickle

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from limits import at_most
from refusals import refused
from tokenizers import Tokenizer, models, normalizers

from data_prep.vocabulary import ready_made
from scaler.core.errors import ScalerError

gensim = pytest.importorskip("gensim.models")

WORDS = ["the", "Apfel", "naïve", "日本", "new\u00a0york", "##ing", "Ġof", "</s>"]
VALUES = np.random.default_rng(0).standard_normal((len(WORDS), 6)).astype(np.float32)


def keyed_vectors(words=WORDS, values=VALUES):
    found = gensim.KeyedVectors(values.shape[1])
    found.add_vectors(list(words), values)
    return found


def write_gensim(path, large=False):
    if path.suffix == ".kv":
        keyed_vectors().save(str(path), sep_limit=1 if large else 1 << 30)
        assert path.with_name(path.name + ".vectors.npy").exists() == large
    else:
        keyed_vectors().save_word2vec_format(str(path), binary=path.suffix == ".bin")
    return path


def content(path, width=6):
    words, found = zip(*ready_made.read(path, width), strict=True)
    return [word.decode() for word in words], np.stack(found)


def refuses(path, said, width=6):
    with refused(said) as raised:
        list(ready_made.read(path, width))
    assert str(raised.value).startswith(str(path))


def written(path, text):
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.mark.parametrize(
    ("name", "large"), [("a.vec", False), ("a.txt", False), ("a.bin", False), ("a.kv", False), ("a.kv", True)]
)
def test_what_gensim_wrote_is_read_to_the_bit(tmp_path, name, large):
    words, found = content(write_gensim(tmp_path / name, large))
    assert words == WORDS
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, VALUES)


def test_gensim_reads_the_same_from_its_own_files(tmp_path):
    for name in ("a.vec", "a.bin"):
        path = write_gensim(tmp_path / name)
        theirs = gensim.KeyedVectors.load_word2vec_format(str(path), binary=name == "a.bin")
        assert (theirs.index_to_key, theirs.vectors.tolist()) == (content(path)[0], content(path)[1].tolist())


def test_the_vectors_of_a_trained_model_are_read(tmp_path):
    model = gensim.Word2Vec([["a", "b", "c"] * 20], vector_size=6, min_count=1)
    model.wv.save(str(tmp_path / "a.kv"))
    words, found = content(tmp_path / "a.kv")
    assert words == model.wv.index_to_key
    np.testing.assert_array_equal(found, model.wv.vectors)


def test_other_protocols_and_precisions_of_a_pickle_are_read(tmp_path):
    for protocol in (4, 5):
        keyed_vectors().save(str(tmp_path / "a.kv"), pickle_protocol=protocol)
        np.testing.assert_array_equal(content(tmp_path / "a.kv")[1], VALUES)
    half = keyed_vectors()
    half.vectors = half.vectors.astype(np.float16)
    half.save(str(tmp_path / "half.kv"))
    np.testing.assert_array_equal(content(tmp_path / "half.kv")[1], VALUES.astype(np.float16).astype(np.float32))


def test_the_c_programs_line_feeds_and_fasttexts_last_space_are_no_part_of_a_word_or_vector(tmp_path):
    rows = [word.encode() + b" " + row.tobytes() + b"\n" for word, row in zip(WORDS, VALUES, strict=True)]
    assert content(written(tmp_path / "c.bin", b"8 6\n" + b"".join(rows)))[0] == WORDS
    np.testing.assert_array_equal(content(tmp_path / "c.bin")[1], VALUES)
    path = written(tmp_path / "f.vec", "2 3\na 1 2 3 \nb 4 5 6 \n")
    assert content(path, 3)[1].tolist() == [[1, 2, 3], [4, 5, 6]]
    assert content(written(tmp_path / "w.vec", "1 3\r\na 1 2e0 -3\r\n"), 3)[1].tolist() == [[1, 2, -3]]


def test_rows_are_read_across_the_edges_of_blocks(tmp_path, monkeypatch):
    path = write_gensim(tmp_path / "a.bin")
    for size in (1, 7, 30, 31):
        monkeypatch.setattr(ready_made, "READ_AT_ONCE", size)
        np.testing.assert_array_equal(content(path)[1], VALUES)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("2 3\na 1 2 3\nb 7\n", r"line 3: 1 numbers after 'b', but the header says 3"),  # gensim spreads the 7
        ("2 3\na 1 2 3\nb 1 2 3 4\n", r"line 3: 4 numbers after 'b'"),
        ("2 3\na 1 2 3\nnew york 1 2 3\n", r"line 3: not a word and 3 numbers \(could not convert .*york"),
        ("2 3\na 1 2 3\nb\n", r"line 3: 0 numbers after 'b\\n'"),
        ("2 3\na 1 2 3\nb 1 x 3\n", "line 3: not a word and 3 numbers"),
        ("1 3\na 1 2 3\nb 1 2 3\n", "line 3: one more than the 1 that its header says"),
        ("3 3\na 1 2 3\nb 1 2 3\n", "cut short, it ends after 2 vectors of 3"),
        ("99999999999 3\na 1 2 3\n", "cut short, it ends after 1 vectors of 99,999,999,999"),
        ("2 3\na 1 nan 3\nb 1 2 3\n", "line 2: the vector of 'a' is not finite"),
        ("2 3\na 1 2 3\nb 1 inf 3\n", "line 3: the vector of 'b' is not finite"),
        ("2 3\na 1 2 3\nb 1 1e60 3\n", "line 3: the vector of 'b' is not finite"),
        ("2 3\na 1 2 3\n 1 2 3\n", "line 3: a vector of a blank word"),
        ("2 3\na 1 2 3\na 1 2 3\n", "line 3: 'a' has a vector already"),
        ("a 1 2 3\nb 1 2 3\n", "line 1 is 'a 1 2 3.*begins with its count of vectors"),
        ("-1 3\n", "line 1 is '-1 3"),
        ("", "line 1 is ''"),
        ("2 768\na 1 2 3\n", "vectors of 768 numbers, but word2vec.vector_size is 3"),
    ],
)
def test_a_bad_text_file_is_refused_by_line(tmp_path, text, said):
    refuses(written(tmp_path / "a.vec", text), said, 3)


ROW = np.array([1, 2, 3], "<f4").tobytes()


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (b"2 3\na " + ROW + b"b " + ROW[:-1], "row 2: cut short, or wider than 3 numbers"),
        (b"3 3\na " + ROW + b"b " + ROW, "cut short, it ends after 2 vectors of 3"),
        (b"1 3\na " + ROW + b"b " + ROW, "row 2: one more than the 1 that its header says"),
        (b"1 3\na " + ROW + b"rest", "row 2: cut short"),
        (b"2 3\na " + ROW + b" " + ROW, "row 2: a vector of a blank word"),
        (b"2 3\na " + ROW + b"a " + ROW, "row 2: 'a' has a vector already"),
        (b"1 3\na " + np.array([1, np.nan, 0], "<f4").tobytes(), "row 1: the vector of 'a' is not finite"),
        (b"\xba\x16\x4f\x2f\x0c\0\0\0" + b"\1" * 80, "of a fastText model take the .vec"),
        (b"1 4\na " + ROW + b"1234", "vectors of 4 numbers, but word2vec.vector_size is 3"),
        (b"1 3\n" + b"a" * 70_000, "row 1: no word where one belongs"),
    ],
)
def test_a_bad_binary_file_is_refused_by_row(tmp_path, rows, said):
    refuses(written(tmp_path / "a.bin", rows), said, 3)


class Evil:
    def __reduce__(self):
        return exec, ("raise SystemExit('ran')",)


class Pointers:
    """Bytes of the file that are to be taken for the addresses of objects."""

    def __reduce__(self):
        return np.ndarray, ((1,), np.dtype("O"), b"A" * 8)


class Objects:
    def __reduce__(self):
        return np.ones(1).__reduce__()[0], (np.ndarray, (0,), b"b"), (1, (1,), np.dtype("O"), False, [Evil()])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda kv: setattr(kv, "extra", Evil()), "it asks for builtins.exec, which no KeyedVectors"),
        (lambda kv: setattr(kv, "extra", Pointers()), "not KeyedVectors as gensim 4 saves them"),
        (lambda kv: setattr(kv, "extra", np.array([1], dtype=object)), "something other than little-endian numbers"),
        (lambda kv: setattr(kv, "extra", Objects()), "it asks for builtins.exec, which no KeyedVectors"),
        (lambda kv: setattr(kv, "index_to_key", kv.index_to_key[:-1]), "words and vectors are not equally many"),
        (lambda kv: setattr(kv, "vectors", kv.vectors.astype(int)), "words and vectors are not equally many"),
        (lambda kv: setattr(kv, "vectors", kv.vectors[0]), "words and vectors are not equally many"),
        (lambda kv: kv.index_to_key.__setitem__(2, 5), "row 3: its word is 5, which is no string"),
        (lambda kv: kv.index_to_key.__setitem__(2, ""), "row 3: a vector of a blank word"),
        (lambda kv: kv.index_to_key.__setitem__(2, "the"), "row 3: 'the' has a vector already"),
        (lambda kv: kv.vectors.__setitem__(2, np.inf), "row 3: the vector of 'naïve' is not finite"),
        (lambda kv: kv.__dict__.pop("index_to_key"), "not KeyedVectors as gensim 4 saves them"),
    ],
)
def test_a_bad_pickle_is_refused_and_runs_nothing(tmp_path, change, said):
    found = keyed_vectors()
    change(found)
    found.save(str(tmp_path / "a.kv"))
    refuses(tmp_path / "a.kv", said)


@pytest.mark.parametrize("stored", [b"", b"\x80\x04.", pickle.dumps([1]), pickle.dumps({"a": np.ones(3)})])
def test_what_is_no_keyed_vectors_is_refused(tmp_path, stored):
    refuses(written(tmp_path / "a.kv", stored), "not KeyedVectors as gensim 4 saves them")


def test_a_whole_model_is_refused_for_what_else_it_asks_for(tmp_path):
    gensim.Word2Vec([["a", "b"] * 9], vector_size=6, min_count=1).save(str(tmp_path / "a.kv"))
    refuses(tmp_path / "a.kv", "it asks for gensim.models.word2vec.Word2Vec")


def test_the_array_beside_a_pickle_is_needed_and_is_no_pickle(tmp_path):
    path = write_gensim(tmp_path / "a.kv", large=True)
    beside = tmp_path / "a.kv.vectors.npy"
    assert ready_made.files(path) == [path, beside]
    np.save(beside, np.array([Evil()], dtype=object), allow_pickle=True)
    refuses(path, "a.kv.vectors.npy: the vectors of a.kv, not readable .*Python objects")
    beside.write_bytes(b"")
    refuses(path, "a.kv.vectors.npy: the vectors of a.kv, not readable .*copy both")
    beside.unlink()
    refuses(path, "a.kv.vectors.npy: the vectors of a.kv, not readable .*copy both")


def test_a_missing_file_is_named(tmp_path):
    refuses(tmp_path / "a.vec", "no such file; word2vec.ready_made names one")


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["a.vec", "a.bin", "a.kv"]), st.data())
def test_any_damage_is_a_line_or_another_row_and_never_a_traceback(tmp_path, name, data):
    path = tmp_path / f"whole-{name}"
    whole = bytearray((path if path.exists() else write_gensim(path)).read_bytes())
    at = data.draw(st.integers(0, len(whole) - 1))
    kind = data.draw(st.sampled_from(["change", "cut", "insert"]))
    if kind == "change":
        whole[at] = data.draw(st.integers(0, 255))
    elif kind == "cut":
        del whole[at:]
    else:
        whole.insert(at, data.draw(st.integers(0, 255)))
    (tmp_path / name).write_bytes(whole)
    try:
        found = list(ready_made.read(tmp_path / name, 6))
    except ScalerError as error:
        assert "\n" not in str(error)
    else:
        assert len(found) == len(WORDS)
        assert all(row.shape == (6,) and np.isfinite(row).all() for _, row in found)


@pytest.mark.parametrize("name", ["a.vec", "a.bin"])
def test_a_large_file_is_read_in_little_memory(tmp_path, name):
    rows = np.random.default_rng(0).standard_normal((1000, 768)).astype(np.float32)  # 3 MB, as text 8
    found = keyed_vectors([f"w{n}" for n in range(len(rows))], rows)
    found.save_word2vec_format(str(tmp_path / name), binary=name == "a.bin")
    del rows, found
    with at_most(1.2e6):
        for _ in ready_made.read(tmp_path / name, 768):
            pass


@pytest.fixture
def tokenizer_file(tmp_path):
    def write(entries, lowercase=False):
        tokenizer = Tokenizer(models.WordPiece({entry: n for n, entry in enumerate(entries)}, unk_token="[UNK]"))
        if lowercase:
            tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False)
        tokenizer.save(str(tmp_path / "tokenizer.json"))
        return tmp_path / "tokenizer.json"

    return write


def test_words_are_matched_by_their_spelling(tmp_path, tokenizer_file):
    entries = ["[UNK]", "the", "The", "日本", "##ing", "gone"]
    file = written(tmp_path / "a.vec", "4 1\nThe 1\n日本 2\n##ing 3\nGONE 4\n")
    matrix, found = ready_made.matched(file, tokenizer_file(entries), len(entries), 1)
    assert matrix[:, 0].tolist() == [0, 0, 1, 2, 3, 0]
    assert found.tolist() == [False, False, True, True, True, False]


def test_where_the_tokenizer_lower_cases_so_are_words_that_have_no_entry(tmp_path, tokenizer_file):
    entries = ["[UNK]", "the", "paris", "été"]
    file = written(tmp_path / "a.vec", "6 1\nThe 1\nParis 2\nPARIS 3\nthe 4\nTHE 5\nÉté 6\n")
    matrix, found = ready_made.matched(file, tokenizer_file(entries, lowercase=True), len(entries), 1)
    assert matrix[:, 0].tolist() == [0, 4, 2, 6]  # the same spelling wins, else the first
    assert found.tolist() == [False, True, True, True]


def test_words_that_are_no_utf_8_match_nothing(tmp_path, tokenizer_file):
    file = written(tmp_path / "a.vec", b"2 1\na\xff 1\na 2\n")
    matrix, _ = ready_made.matched(file, tokenizer_file(["[UNK]", "a", "a\ufffd"], lowercase=True), 3, 1)
    assert matrix[1, 0] == 2


def test_a_file_without_one_entry_is_refused(tmp_path, tokenizer_file):
    file = written(tmp_path / "a.vec", "1 1\nthe 1\n")
    with refused(r"none of its words is an entry of .*tokenizer\.json"):
        ready_made.matched(file, tokenizer_file(["[UNK]", "Ġthe"]), 2, 1)

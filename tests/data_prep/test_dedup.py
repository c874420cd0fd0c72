"""Repeats: of equal and of nearly equal documents the first stays, held-out ones first; and nothing else is dropped."""

import json
import random
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from data_prep import dedup as data_prep_dedup
from data_prep.cleaning import dedup, repeats
from data_prep.cleaning.tally import EXAMPLES, EXAMPLES_KEPT
from data_prep.formats import texts
from data_prep.formats.texts import Document
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool, worker_pool
from scaler.config.data_sections import Dedup
from scaler.core import words
from scaler.core.errors import ScalerError

VOCABULARY = [f"word{number}" for number in range(5000)]
EXACT, NEAR = Dedup(near=False), Dedup(exact=False)


@pytest.fixture
def drop(tmp_path):
    """Write documents, by file, as a folder of text and drop repeats; give what is left, by file."""

    def drop(files, settings=None, name="text"):
        write(tmp_path / name, files)
        assert dedup.make(tmp_path / name, tmp_path / f"{name}-dedup", settings or Dedup(), WorkerPool())
        left = read(tmp_path / f"{name}-dedup")
        return {file: left.get(file, []) for file in files}

    return drop


def write(folder, files):
    folder.mkdir()
    splits = {name.partition("-")[0]: [] for name in files}
    for name, documents in files.items():
        split, source = name.split("-")
        writer = texts.Writer(folder, name, source)
        for document in documents:
            writer.write(document if isinstance(document, Document) else Document(document))
        writer.close()
        splits[split] += writer.entries
    folders.write_manifest(folder, "corpus", {"files": list(files)}, sources=[], history=[], splits=splits)


def read(folder):
    found = texts.entries(texts.manifest(folder))
    return {entry["name"]: [document.text for document in texts.read(folder, entry)] for entry in found}


def manifest(tmp_path, name="text"):
    return texts.manifest(tmp_path / f"{name}-dedup")


def some_words(chance, count):
    return [chance.choice(VOCABULARY) for _ in range(count)]


def unrelated(count, seed, size=40):
    """Documents of random words, no two of which share a run of five but by an unlikely accident."""
    chance = random.Random(seed)
    return [" ".join(some_words(chance, size)) for _ in range(count)]


def jaccard(one, other):
    """The true similarity, counted without what is tested."""
    runs = [set(zip(*(mine[n:] for n in range(5)), strict=False)) for mine in (one.split(), other.split())]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


A, B, C, D, E, F = unrelated(6, seed=99)


@pytest.mark.parametrize("settings", [Dedup(), EXACT, NEAR])
def test_of_equal_documents_the_first_stays_within_and_across_sources(drop, tmp_path, settings):
    left = drop({"heldout-one": [F], "train-one": [A, B, A, C, A], "train-two": [D, B, D, E]}, settings)
    assert left == {"heldout-one": [F], "train-one": [A, B, C], "train-two": [D, E]}
    kind = "exact" if settings.exact else "near"
    assert manifest(tmp_path)["counts"] == {f"dropped.{kind}.within_split": 4}


@hypothesis_settings(deadline=None, max_examples=30)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "A", "a b", "c ", "c", "...", "?"]), min_size=1), min_size=2, max_size=4
    )
)
def test_exact_search_keeps_the_first_of_each_text(documents):
    names = ["heldout-one", "train-one", "train-two", "train-three"]
    files = dict(zip(names, documents, strict=False))
    seen, expected = set(), {}
    for name, mine in files.items():
        expected[name] = [text for text in mine if text not in seen and not seen.add(text)]
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "text", files)
        if any(expected[name] for name in names[1:] if name in expected):
            dedup.make(Path(folder) / "text", Path(folder) / "out", EXACT, WorkerPool())
            assert read(Path(folder) / "out") == {name: mine for name, mine in expected.items() if mine}
        else:
            with pytest.raises(ScalerError, match="the train split would be empty"):
                dedup.make(Path(folder) / "text", Path(folder) / "out", EXACT, WorkerPool())


def test_documents_of_different_words_or_case_are_no_exact_repeats(drop):
    mine = [A, A.upper(), A + ".", A + " ", f"{A}\n"]
    assert drop({"heldout-one": [F], "train-one": mine}, EXACT)["train-one"] == mine


def test_training_documents_that_repeat_held_out_ones_are_dropped_and_the_held_out_stay(drop, tmp_path):
    files = {"train-one": [A, B, C.upper()], "train-two": [B, D, A], "heldout-one": [A, A], "heldout-two": [C, E]}
    assert drop(files) == {"train-one": [B], "train-two": [D], "heldout-one": [A], "heldout-two": [C, E]}
    assert manifest(tmp_path)["counts"] == {
        "dropped.exact.of_heldout": 2,  # A, twice
        "dropped.exact.within_split": 2,  # A in what is held out, B in training
        "dropped.near.of_heldout": 1,
    }


def test_a_repeat_of_a_training_and_a_held_out_document_counts_as_one_of_the_held_out(drop, tmp_path):
    spoilt = A.split()
    spoilt[20] = "other"
    nearly = " ".join(spoilt)
    files = {"heldout-one": [nearly], "train-one": [f"{B} {A}", B, A.upper(), A]}
    assert drop(files, NEAR)["train-one"] == [f"{B} {A}", B]
    assert manifest(tmp_path)["counts"] == {"dropped.near.of_heldout": 2}


def test_test_documents_that_repeat_held_out_ones_are_dropped_and_training_ones_that_repeat_either(drop, tmp_path):
    files = {
        "train-one": [A, B, C, D, D],
        "train-two": [C.upper(), E],
        "test-one": [C, A.title(), B],
        "test-two": [C, "one of its own"],
        "heldout-one": [A],
    }
    left = {"train-one": [D], "train-two": [E], "test-one": [C, B], "test-two": ["one of its own"], "heldout-one": [A]}
    assert drop(files) == left
    assert manifest(tmp_path)["counts"] == {
        "dropped.exact.of_heldout": 1,  # A in training
        "dropped.exact.of_test": 2,  # B and C in training
        "dropped.exact.within_split": 2,  # C in the test, D in training
        "dropped.near.of_heldout": 1,  # A in the test
        "dropped.near.of_test": 1,  # C in the second source
    }


def test_a_repeat_of_documents_of_all_splits_counts_as_one_of_the_held_out(drop, tmp_path):
    spoilt = [A.split() for _ in range(2)]
    spoilt[0][20], spoilt[1][22] = "other", "another"
    files = {"heldout-one": [" ".join(spoilt[0])], "test-one": [" ".join(spoilt[1]), B], "train-one": [F, A.upper(), A]}
    left = drop(files, Dedup(exact=False, bands=60, band_rows=2))
    assert left == {"heldout-one": files["heldout-one"], "test-one": [B], "train-one": [F]}
    assert manifest(tmp_path)["counts"] == {"dropped.near.of_heldout": 3}


def test_the_test_split_moves_no_held_out_document(drop, tmp_path):
    heldout = {"heldout-one": [A, *unrelated(20, 1)], "heldout-two": [B, A.upper()]}
    without = drop({**heldout, "train-one": [F]}, name="without")
    with_test = drop({**heldout, "test-one": [A, B.upper(), C], "train-one": [F]}, name="with")
    assert {name: with_test[name] for name in heldout} == {name: without[name] for name in heldout}
    assert with_test["test-one"] == [C]
    assert list(manifest(tmp_path, "without")["splits"]) == ["train", "heldout"]


def test_a_test_split_that_is_all_held_out_is_refused(drop, tmp_path):
    with pytest.raises(ScalerError, match=r"the test split would be empty; .*or set corpus\.test_percent=0 to have no"):
        drop({"heldout-one": [A, B], "test-one": [B.upper(), A], "train-one": [C]})
    assert not (tmp_path / "text-dedup").exists()


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.title,
        lambda t: t.replace(" ", ", "),
        lambda t: t.replace(" ", "\n\n") + "!",
        lambda t: f"»{t}«...",
    ],
)
def test_documents_that_differ_in_case_and_punctuation_alone_are_near_repeats(drop, tmp_path, change):
    assert drop({"heldout-one": [F], "train-one": [A, B, change(A)]})["train-one"] == [A, B]
    assert manifest(tmp_path)["counts"] == {"dropped.near.within_split": 1}


@pytest.mark.parametrize("mark", [", ", " — ", "་"])
def test_short_lists_that_differ_in_one_word_are_no_repeats(drop, mark):
    names = ["apple", "pear", "plum", "fig", "date", "lime"]
    lists = [mark.join([first, *names[1:]]) for first in ("apple", "grape", "lemon", "orange", "melon")]
    assert drop({"heldout-one": [F], "train-one": lists})["train-one"] == lists


def test_short_texts_do_not_collapse_but_with_the_same_words(drop):
    short = [
        "yes",
        "no",
        "yes no",
        "no yes",
        "one two three four",
        "one two three five",
        "...",
        "!!!",
        "\u2026",
        "1",
        "2",
    ]
    short += ["one two three four five", "one two three four six", "大", "学"]
    again = ["yes  no", "one two\nthree four", "One two three four five", " ..."]
    assert drop({"heldout-one": [F], "train-one": [*short, *again]})["train-one"] == short


# of each list, every text is another one than the others; most were repeats of each other while marks were no letters
DIFFERENT = {
    "hindi": [
        *[
            "दिन",
            "दान",
            "दीन",
            "दुनी",
            "पिता",
            "पता",
            "पीता",
            "पोता",
            "काल",
            "कल",
            "किला",
            "कोयल",
            "बोली",
            "बिल्ली",
            "बाल",
        ],
        *["वह घर जाता है और रोटी खाता है", "वह घर जाती है और रोटी खाती है"],
    ],
    "tamil": ["கல்", "கால்", "கீல்", "கோல்", "மரம்", "மாரம்"],
    "thai": ["ไป", "ปี", "ป่า", "ปู", "เขาไปโรงเรียนทุกวัน", "เขาไปโรงแรมทุกวัน", "ใกล้", "ไกล"],
    "burmese": ["မီး", "မိုး", "မူး", "မေး", "ကျောင်းသွားသည်", "ကျောင်းသားသည်"],
    "khmer": ["កាត់", "កើត", "កូត", "ខ្ញុំទៅសាលារៀន", "ខ្ញុំទៅសាលាក្រុង"],
    "pointed hebrew": ["סֵפֶר", "סַפָּר", "סָפַר", "סְפָר", "דָּבָר", "דֶּבֶר", "דִּבֵּר", "הוּא כָּתַב סֵפֶר טוֹב מְאֹד", "הוּא כָּתַב סַפָּר טוֹב מְאֹד"],
    "pointed arabic": ["كَتَبَ", "كُتُب", "كُتِبَ", "كَاتِب"],
    "chinese": ["我喜欢吃苹果", "我喜欢吃香蕉", "他喜欢吃苹果", "大学", "大学生"],
    "japanese": ["私は本を読む", "私は本を読んだ", "はし", "ばし", "ぱし"],
    "code": [
        *["x = a + b", "x = a - b", "x = a * b", "x = A + b", "x = a or b", "x += a - b"],
        *["if a < b: return c", "if a > b: return c", "if a - b: return c", "if a / b: return c", "if a / b: return C"],
        *["C", "C++", "C#", "c", "!", "!=", "=="],
        *["for i in range(n): total += a[i] * b[i] - c[i]", "for i in range(n): total -= a[i] * b[i] + c[i]"],
    ],
    "formulae": [
        *["n!", "n", "E = mc²", "E = mc³", "F = m a", "f = m a", "a² + b² = c²", "a² - b² = c²", "a² · b² = c²"],
        *[
            "∀x ∈ A: x < y",
            "∃x ∈ A: x < y",
            "∀x ∈ A: x ≤ y",
            "\\frac{a}{b} + \\frac{c}{d}",
            "\\frac{a}{b} - \\frac{c}{d}",
        ],
        *["1.5 2.5 3.5 4.5 5.5 6.5", "15 25 35 45 55 65", "-1 2 -3 4 -5 6", "1 -2 3 -4 5 -6"],
    ],
    "emoji": ["great phone, I love it 😀", "great phone, I love it 😡", "😀😀😀", "😀😀", "👍🏽", "👍🏿"],
    "few different words": [
        "0 1 0 1 1 0 0 1 0 1" * 20,
        "1 1 0 1 0 0 0 1 1 1" * 20,
        "a c g t " * 99,
        "a g c t " * 99,
        "--- ... ---",
        "... --- ...",
    ],
}


@pytest.mark.parametrize("texts_of", DIFFERENT)
@pytest.mark.parametrize("settings", [Dedup(), NEAR])
def test_no_different_text_is_dropped_whatever_its_script(drop, tmp_path, texts_of, settings):
    mine = DIFFERENT[texts_of]
    assert drop({"heldout-one": [F], "train-one": mine}, settings)["train-one"] == mine
    assert manifest(tmp_path)["counts"] == {}


@pytest.mark.parametrize(
    "sentences",
    [
        "राम हर सुबह नदी के किनारे टहलने जाता है। रास्ते में वह अपने पुराने मित्र से मिलता है। दोनों बैठकर देर तक बातें करते हैं।",
        "ทุกเช้าเขาเดินไปตามริมแม่น้ำ ระหว่างทางเขาพบเพื่อนเก่า ทั้งสองนั่งคุยกันเป็นเวลานาน แล้วจึงกลับบ้านด้วยกันก่อนเที่ยง",
        "每天早上他都沿着河边散步。路上他遇见了一位老朋友。两个人坐下来聊了很久,然后在中午之前一起回家吃饭休息。",
        "בְּכָל בֹּקֶר הוּא הוֹלֵךְ לְאֹרֶךְ הַנָּהָר. בַּדֶּרֶךְ הוּא פּוֹגֵשׁ חָבֵר יָשָׁן. הֵם יוֹשְׁבִים וּמְדַבְּרִים זְמַן רַב, וְחוֹזְרִים הַבַּיְתָה יַחַד לִפְנֵי הַצָּהֳרַיִם.",
    ],
)
def test_a_copy_with_other_punctuation_is_a_repeat_in_each_script(drop, sentences):
    copy = "  ".join(sentences.replace("。", "! ").replace("।", "!").replace(",", ";").replace(".", "").split(" "))
    left = drop({"heldout-one": [F], "train-one": [sentences, copy, f"{sentences} {A}"]}, NEAR)["train-one"]
    assert left == [sentences, f"{sentences} {A}"]


def test_a_stage_whose_words_were_found_otherwise_is_kept_with_a_warning(drop, tmp_path, caplog):
    drop(SOME)
    folder = tmp_path / "text-dedup"
    content = json.loads((folder / "manifest.json").read_text())
    assert content["made_from"]["words"] == words.version()
    del content["made_from"]["words"]  # as an earlier version wrote it
    (folder / "manifest.json").write_text(json.dumps(content))
    before = bytes_of(folder)
    assert not dedup.make(tmp_path / "text", folder, Dedup(), WorkerPool())
    assert bytes_of(folder) == before
    assert f"{folder}: kept as it is" in caplog.text and "remove the folder to make it anew" in caplog.text
    assert dedup.make(tmp_path / "text", folder, Dedup(bands=10), WorkerPool())
    assert json.loads((folder / "manifest.json").read_text())["made_from"]["words"] == words.version()


def test_without_near_repeats_a_stage_depends_on_no_words(drop, tmp_path):
    drop(SOME, EXACT)
    assert "words" not in manifest(tmp_path)["made_from"]


def test_a_document_in_a_longer_one_is_no_repeat(drop):
    mine = [A, f"{A} {B} {C}", f"{D} {A} {E}"]
    assert drop({"heldout-one": [F], "train-one": mine})["train-one"] == mine


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """4000 documents, a thousand that are like no other, and last a copy of each of the first, some words replaced.

    Gives how similar each copy is, whether it was dropped, the ids that are left, and the counts.
    """
    chance = random.Random(0)
    originals, copies, similarity = [], [], []
    for number in range(4000):
        original = some_words(chance, chance.randrange(60, 240))
        copy = list(original)
        for place in chance.sample(range(len(copy)), 1 + int(chance.random() ** 2 * len(copy) / 8)):
            copy[place] = chance.choice(VOCABULARY)
        originals.append(Document(" ".join(original), f"original {number}"))
        copies.append(Document(" ".join(copy), f"copy {number}"))
        similarity.append(jaccard(originals[-1].text, copies[-1].text))
    folder = tmp_path_factory.mktemp("planted")
    others = [Document(text, f"other {number}") for number, text in enumerate(unrelated(1000, seed=1, size=100))]
    files = {"heldout-some": originals[::10], "train-some": [d for n, d in enumerate(originals) if n % 10]}
    write(folder / "text", {**files, "train-others": others, "train-copies": copies})
    dedup.make(folder / "text", folder / "dedup", Dedup(), WorkerPool())
    content = texts.manifest(folder / "dedup")
    left = {document.id for entry in texts.entries(content) for document in texts.read(folder / "dedup", entry)}
    dropped = np.array([copy.id not in left for copy in copies])
    return np.array(similarity), dropped, left, content["counts"]


def test_similar_documents_are_found_and_dissimilar_ones_are_not(planted):
    similarity, dropped, _, counts = planted
    assert (similarity >= 0.9).sum() > 200
    assert (similarity <= 0.4).sum() > 100
    assert dropped[similarity >= 0.9].mean() > 0.95
    assert dropped[similarity <= 0.4].mean() < 0.1
    assert sum(counts.values()) == dropped.sum()
    assert counts["dropped.near.of_heldout"] == dropped[::10].sum()


def test_documents_that_are_like_no_other_are_never_dropped(planted):
    _, _, left, _ = planted
    assert {f"other {number}" for number in range(1000)} <= left
    assert {f"original {number}" for number in range(4000)} <= left


@pytest.mark.parametrize("least", [0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])
def test_documents_are_found_as_often_as_theory_says(planted, least):
    similarity, dropped, _, _ = planted
    here = (similarity >= least) & (similarity < least + 0.1 if least < 0.9 else similarity <= 1)
    chance = 1 - (1 - similarity[here] ** 8) ** 14
    assert here.sum() > 100
    deviation = np.sqrt((chance * (1 - chance)).sum()) / here.sum()
    assert abs(dropped[here].mean() - chance.mean()) < 3 * deviation + 0.001


def test_other_bands_find_what_their_theory_says(drop):
    chance = random.Random(3)
    originals = [some_words(chance, 100) for _ in range(600)]
    copies = [[*mine[:50], *some_words(chance, 2), *mine[52:]] for mine in originals]
    files = {"heldout-some": [F], "train-some": [" ".join(mine) for mine in (*originals, *copies)]}
    similarity = jaccard(*(" ".join(some[0]) for some in (originals, copies)))
    assert similarity == pytest.approx(90 / 102)
    for name, settings in {"few": Dedup(bands=2, band_rows=16), "many": Dedup(bands=40, band_rows=4)}.items():
        found = 1200 - len(drop(files, settings, name=name)["train-some"])
        theory = 1 - (1 - similarity**settings.band_rows) ** settings.bands
        assert found / 600 == pytest.approx(theory, abs=0.06)


def test_a_long_document_is_hashed_in_parts_as_if_in_one(monkeypatch):
    text = " ".join(some_words(random.Random(0), 1000))
    whole = dedup.signature(text, Dedup())
    monkeypatch.setattr(dedup, "UNITS_AT_ONCE", 64)
    assert len(list(dedup.shingles(text, 5))) == 16
    assert np.array_equal(dedup.signature(text, Dedup()), whole)


KEYS = st.integers(0, 7).map(lambda n: n << 61 | n) | st.integers(0, 3) | st.integers(2**64 - 3, 2**64 - 1)


@hypothesis_settings(deadline=None)
@given(columns=st.lists(st.lists(KEYS, max_size=12), min_size=1, max_size=5), parts=st.integers(1, 9))
def test_the_search_finds_what_a_naive_one_finds_in_any_number_of_parts(columns, parts):
    first, expected = {}, []
    for number, key in enumerate(key for column in columns for key in column):
        if first.setdefault(key, number) != number:
            expected.append((number, first[key]))
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{number}.npy" for number in range(len(columns))]
        for file, column in zip(files, columns, strict=True):
            np.save(file, np.array([[0] * len(column), column], dtype=np.uint64).reshape(2, -1))
        found = []
        for part in range(parts):
            said = repeats.find(files, 1, part, parts, Path(folder) / "found.npy")
            pairs = np.load(Path(folder) / "found.npy")
            assert pairs.shape == (2, said["repeats"])
            assert (np.diff(pairs[0]) > 0).all()
            found += list(map(tuple, pairs.T.tolist()))
    assert sorted(found) == expected


def test_keys_are_dealt_to_parts_of_like_size():
    assert [repeats.parts_for(count) for count in (0, 1, 1 << 22, (1 << 22) + 1, 10**9)] == [1, 1, 1, 2, 239]


SOME = {
    "heldout-one": [*unrelated(30, 1), A],
    "train-one": [*unrelated(80, 2), *unrelated(5, 1), A.title()],
    "train-two": [*unrelated(60, 3), *unrelated(20, 2), B, B.upper(), B],
}


def bytes_of(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_any_number_of_processes_and_parts_makes_the_same_bytes(drop, tmp_path, monkeypatch):
    drop(SOME)
    before = bytes_of(tmp_path / "text-dedup")
    (tmp_path / "text-dedup").rename(tmp_path / "first")
    with worker_pool(2) as pool:
        dedup.make(tmp_path / "text", tmp_path / "text-dedup", Dedup(), pool)
    assert bytes_of(tmp_path / "text-dedup") == before
    (tmp_path / "text-dedup").rename(tmp_path / "second")
    monkeypatch.setattr(repeats, "KEYS_AT_ONCE", 30)
    assert repeats.parts_for(200) == 7
    dedup.make(tmp_path / "text", tmp_path / "text-dedup", Dedup(), WorkerPool())
    assert bytes_of(tmp_path / "text-dedup") == before


def test_examples_show_the_document_and_the_earlier_one(drop, tmp_path):
    drop(SOME)
    counts = manifest(tmp_path)["counts"]
    assert counts == {
        "dropped.exact.of_heldout": 5,
        "dropped.exact.within_split": 21,
        "dropped.near.of_heldout": 1,
        "dropped.near.within_split": 1,
    }
    examples = json.loads((tmp_path / "text-dedup" / EXAMPLES).read_text(encoding="utf-8"))
    for reason, count in counts.items():
        mine = [example for example in examples if example["reason"] == reason]
        assert len(mine) == min(count, EXAMPLES_KEPT)
        for example in mine:
            assert example["text"] in SOME[example["file"]]
            assert any(example["earlier"] in documents for documents in SOME.values())
            same = example["text"] == example["earlier"]
            assert same if "exact" in reason else jaccard(example["text"].lower(), example["earlier"].lower()) == 1
            assert (example["earlier"] in SOME["heldout-one"]) == ("of_heldout" in reason)


def test_ids_stay_with_their_documents(drop, tmp_path):
    drop({"heldout-one": [Document(F, "f")], "train-one": [Document(A, "a"), Document(A, "b"), Document(B, "c")]})
    entries = texts.entries(manifest(tmp_path))
    left = [document.id for entry in entries for document in texts.read(tmp_path / "text-dedup", entry)]
    assert left == ["a", "c", "f"]


def test_more_training_documents_never_move_the_held_out_ones(drop, tmp_path):
    heldout = {"heldout-one": [*unrelated(30, 1), A, A.upper()], "heldout-two": [B, *unrelated(10, 1)]}
    fewer = drop({"train-one": unrelated(50, 4), **heldout}, name="fewer")
    more = drop({"train-zero": [B, A, *unrelated(30, 1)], "train-one": unrelated(50, 4), **heldout}, name="more")
    assert len(fewer["heldout-one"]) == 31
    for name in heldout:
        assert more[name] == fewer[name]
        path = f"{name}{texts.EXTENSION}"
        assert (tmp_path / "more-dedup" / path).read_bytes() == (tmp_path / "fewer-dedup" / path).read_bytes()
    assert more["train-zero"] == []


def test_training_text_that_is_all_held_out_is_refused(tmp_path):
    write(tmp_path / "text", {"heldout-one": [A, B], "train-one": [B.upper(), A]})
    with pytest.raises(
        ScalerError, match="the train split would be empty; all of it repeats held-out or test documents"
    ):
        dedup.make(tmp_path / "text", tmp_path / "out", Dedup(), WorkerPool())
    assert not (tmp_path / "out").exists()


def test_made_twice_it_is_up_to_date_and_other_settings_make_it_anew(drop, tmp_path):
    drop(SOME)
    assert not dedup.make(tmp_path / "text", tmp_path / "text-dedup", Dedup(), WorkerPool())
    assert dedup.make(tmp_path / "text", tmp_path / "text-dedup", EXACT, WorkerPool())
    assert set(manifest(tmp_path)["counts"]) == {"dropped.exact.of_heldout", "dropped.exact.within_split"}


def test_the_command_says_what_it_dropped_and_a_wrong_setting_is_one_line(tmp_path, monkeypatch, capsys):
    write(tmp_path / "text", SOME)
    arguments = ["dedup", tmp_path / "text", "--out", tmp_path / "out", "--processes", 1, "exact=false"]
    for how in ("written", "is up to date"):
        monkeypatch.setattr("sys.argv", list(map(str, [*arguments, "bands=10"])))
        data_prep_dedup.main()
        *splits, counts, last = capsys.readouterr().out.splitlines()
        assert [line.split()[:2] for line in splits] == [["train", "141"], ["heldout", "31"]]
        assert counts == "dropped.near.of_heldout 6, dropped.near.within_split 22"
        assert last == f"{tmp_path / 'out'} {how}"
    monkeypatch.setattr("sys.argv", list(map(str, [*arguments, "band=10"])))
    with pytest.raises(SystemExit):
        data_prep_dedup.main()
    assert capsys.readouterr().err == "error: recipe: unknown key dedup.band; did you mean 'bands'?\n"

"""Labelled data: what each format says, how it is split, and the one line for what cannot be used."""

import json
import random
from pathlib import Path

import datasets
import pytest
from refusals import error_of

from scaler.core.errors import ScalerError
from scaler.finetuning import examples as labelled
from scaler.finetuning import splits as label_splits
from scaler.finetuning.examples import Reading
from scaler.finetuning.splits import TEST, TRAIN, VALIDATION, Sources


def file(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def found(path: Path, task="classification", **how):
    examples, _ = labelled.read(path, Reading(task, **how))
    return [(example.words or example.text, example.labels) for example in examples]


def refusal(path: Path, task="classification", **how) -> str:
    return error_of(labelled.read, path, Reading(task, **how))


# ---- formats


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "one, two", "label": "x"}\n\n{"label": 3, "text": "Ö\\u2028z"}\n'),
        ("a.csv", '\ufefflabel,text\r\nx,"one, two"\r\n3,Ö\u2028z\r\n'),
        ("a.tsv", "text\tmore\tlabel\none, two\t\tx\nÖ\u2028z\t-\t3\n"),
        ("a.txt", "x one, two\n3 Ö\u2028z\n"),
    ],
)
def test_texts_with_a_class(tmp_path, name, content):
    how = {"format": "plain"} if name.endswith("txt") else {}
    assert found(file(tmp_path, name, content), **how) == [("one, two", ("x",)), ("Ö\u2028z", ("3",))]


@pytest.mark.parametrize(
    ("task", "record", "said"),
    [
        ("classification", {"text": "a\ud800", "label": "b"}, "in the text; take it out"),
        ("classification", {"text": "a", "label": "b\ud800"}, "in a label; take it out"),
        ("multilabel", {"text": "a", "labels": ["b", "c\udfff"]}, "in a label; take it out"),
        ("tokens", {"tokens": ["a"], "tags": ["B-\ud800"]}, "in a label; take it out"),
    ],
)
def test_half_a_character_is_refused_where_it_is_read(tmp_path, task, record, said):
    """It could not be written into the results, after all the training."""
    path = file(tmp_path, "a.jsonl", json.dumps(record) + "\n")
    assert refusal(path, task) == f"{path}:1: half of a character (\\ud800 to \\udfff) {said}"


def test_fields_go_by_the_names_that_are_given(tmp_path):
    path = file(tmp_path, "a.csv", "q,class\nwhy,x\n")
    assert found(path, text_field="q", label_field="class") == [("why", ("x",))]


def test_texts_of_a_csv_may_have_lines_and_a_tsv_quotes(tmp_path):
    assert found(file(tmp_path, "a.csv", 'label,text\nx,"a ""b""\nc"\n')) == [('a "b"\nc', ("x",))]
    assert found(file(tmp_path, "a.tsv", 'label\ttext\nx\t"a\n')) == [('"a', ("x",))]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "p", "labels": ["x", "y", "x"]}\n{"text": "q", "labels": []}\n'),
        ("a.csv", "text,labels\np,x|y\nq,\n"),
    ],
)
def test_texts_with_several_labels_or_none(tmp_path, name, content):
    assert found(file(tmp_path, name, content), "multilabel") == [("p", ("x", "y")), ("q", ())]


def test_sentiment_says_what_0_and_1_mean(tmp_path):
    path = file(tmp_path, "a.all", "0 bad\n1 good\n")
    assert found(path, "sentiment", format="plain") == [("bad", ("negative",)), ("good", ("positive",))]


@pytest.mark.parametrize(
    "content",
    [
        "John\tB-P\nSmith\tI-P\n\t\nsleeps\tO\n",  # WNUT-17: a lone tab between sentences
        "John\tB-P\r\nSmith\tI-P\r\n\r\n\r\nsleeps\tO",
        "-DOCSTART- -X- O O\n\nJohn NNP x B-P\nSmith NNP x I-P\n \nsleeps VB x O\n\n",  # CoNLL-2003
    ],
)
def test_sentences_in_columns(tmp_path, content):
    expected = [(("John", "Smith"), ("B-P", "I-P")), (("sleeps",), ("O",))]
    assert found(file(tmp_path, "a.conll", content), "tokens") == expected


def test_words_in_columns_between_tabs_may_have_spaces(tmp_path):
    assert found(file(tmp_path, "a.conll", "New York\tB-L\n"), "tokens") == [(("New York",), ("B-L",))]


def test_sentences_as_json(tmp_path):
    path = file(tmp_path, "a.jsonl", '{"tokens": ["a", "b"], "tags": ["B-X", "O"]}\n')
    assert found(path, "tokens") == [(("a", "b"), ("B-X", "O"))]


def test_another_encoding_is_read_when_named(tmp_path):
    path = file(tmp_path, "a.all", "x fine\ny sister\xf0city\n".encode("latin-1"))
    assert refusal(path, format="plain") == (
        f"{path}:2: byte 0xf0 is not utf-8; name the file's --encoding, such as latin-1"
    )
    assert found(path, format="plain", encoding="latin-1")[1] == ("sisterðcity", ("y",))
    assert "--encoding klingon" in refusal(path, format="plain", encoding="klingon")


@pytest.mark.parametrize(
    ("name", "task", "content", "said"),
    [
        ("a.jsonl", "classification", '{"text": "a", "label": 1}\n{"text": "b"}\n', ":2: no field 'label'; known are"),
        ("a.jsonl", "classification", '{"txt": "a", "label": 1}\n', ":1: no field 'text'; did you mean 'txt'?"),
        ("a.jsonl", "classification", '{"text": "a", "label": 1}\nnonsense\n', ":2: not JSON"),
        ("a.jsonl", "classification", "[1]\n", ":1: '[1]' is no JSON object"),
        ("a.jsonl", "classification", '{"text": 5, "label": 1}\n', ":1: text is int, not a text"),
        ("a.jsonl", "classification", '{"text": "a", "label": ["x"]}\n', ":1: label is \"['x']\", but a string"),
        ("a.jsonl", "multilabel", '{"text": "a", "labels": "x"}\n', ":1: labels is 'x', but a list of strings"),
        ("a.jsonl", "classification", '{"text": " ", "label": 1}\n', ":1: the text is empty"),
        ("a.jsonl", "classification", '{"text": "a", "label": ""}\n', ":1: a label is empty"),
        ("a.jsonl", "classification", "\n", "has no labelled text"),
        ("a.jsonl", "tokens", '{"tokens": ["a", "b"], "tags": ["O"]}\n', ":1: 2 tokens and 1 tags; one for each"),
        ("a.jsonl", "tokens", '{"tokens": "ab", "tags": ["O"]}\n', ":1: tokens is not a list of strings"),
        ("a.csv", "classification", "txt,label\na,b\n", ":1: no column 'text' in the first line; did you mean 'txt'?"),
        ("a.csv", "classification", "text,label\na,x\na,b,c\n", ":3: 3 fields, but the first line names 2"),
        ("a.csv", "classification", 'text,label\n"a"b,x\n', ":2: not CSV"),
        ("a.csv", "tokens", "text,label\n", "csv holds texts, but tokens needs words with tags"),
        ("a.conll", "classification", "a\tO\n", "conll holds words with tags; use --task tokens"),
        ("a.conll", "tokens", "a\tO\nb\n", ":2: 1 columns between tabs, but the first line has 2"),
        ("a.conll", "tokens", "a b\nc d e\n", ":2: 3 columns between spaces, but the first line has 2"),
        ("a.conll", "tokens", "alone\n", ":1: 1 columns between spaces, but a word and its tag are needed"),
        ("a.conll", "tokens", "a\tO\nb\tI-X\n", ":2: I-X after O; in IOB2 an entity begins with B-X"),
        ("a.conll", "tokens", "a\tB-Y\nb\tI-X\n", ":2: I-X after B-Y"),
        ("a.conll", "tokens", "a\tB-X\n\nb\tI-X\n", ":3: I-X after O"),
        ("a.conll", "tokens", "a\tX\n", ":1: 'X' is not a BIO tag"),
        ("a.conll", "tokens", "\tO\n", ":1: a word is empty"),
        ("a.all", "classification", "x a\n", "its name does not say the format; give --format"),
    ],
)
def test_a_fault_is_one_line_with_file_and_line(tmp_path, name, task, content, said):
    path = file(tmp_path, name, content)
    assert refusal(path, task).startswith(f"{path}{said if said[0] == ':' else ': ' + said}")


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "a.csv")


def test_empty_texts_are_left_out_and_counted_when_asked(tmp_path):
    path = file(tmp_path, "a.all", "0 \n0 a\n1\n")
    examples, skipped = labelled.read(path, Reading("classification", "plain", skip_empty=True))
    assert ([example.text for example in examples], skipped) == (["a"], 2)
    assert examples[0].where == f"{path}:2"


# ---- splits


def lines(count: int, labels=("x", "y"), seed=0) -> list[str]:
    chance = random.Random(seed)
    return [json.dumps({"text": f"text {number}", "label": chance.choice(labels)}) for number in range(count)]


def load(task="classification", percent=None, **files):
    paths = {split: tuple(map(str, some)) for split, some in files.items()}
    return label_splits.load(Sources(**paths, **({"percent": percent} if percent else {})), Reading(task))


def keys(examples) -> set[str]:
    return set(map(label_splits.key, examples))


def test_splits_hang_on_the_text_alone_and_share_none(tmp_path):
    some = lines(400)
    repeated = [line.replace("text ", "TEXT   ") for line in some[:100]]  # the same but for case and spaces
    one = file(tmp_path, "one.jsonl", "\n".join(some + repeated))
    two = file(tmp_path, "two.jsonl", "\n".join(reversed(some + repeated)))
    first, second = load(train=[one]), load(train=[two])
    parts = {split: keys(examples) for split, examples in first.examples.items()}
    assert parts == {split: keys(examples) for split, examples in second.examples.items()}
    assert len(parts[TRAIN]) + len(parts[VALIDATION]) + len(parts[TEST]) == 400
    assert all(20 < len(parts[split]) < 65 for split in (VALIDATION, TEST))
    assert sum(map(len, first.examples.values())) == 500
    assert first.checksums.keys() == {str(one)}


def test_files_of_their_own_stay_whole_and_what_they_share_is_said(tmp_path):
    train = file(tmp_path, "a.jsonl", "\n".join(lines(50)))
    test = file(tmp_path, "b.jsonl", "\n".join(lines(60)[45:]))
    splits = load(train=[train], test=[test], percent={VALIDATION: 20.0, TEST: 0.0})
    assert len(splits.examples[TEST]) == 15
    assert len(splits.examples[TRAIN]) + len(splits.examples[VALIDATION]) == 50
    shared = len(keys(splits.examples[TEST]) & keys(splits.examples[TRAIN]))
    assert f"test examples that are training examples, too: {shared} of 15" in splits.notes


def test_texts_with_two_labels_are_counted(tmp_path):
    path = file(tmp_path, "a.jsonl", "\n".join([*lines(60, seed=1), *lines(60, seed=2)]))
    one, two = ([json.loads(line)["label"] for line in lines(60, seed=seed)] for seed in (1, 2))
    different = sum(a != b for a, b in zip(one, two, strict=True))
    assert load(train=[path]).notes == [
        f"texts that occur with different labels: {different}; no model can be right about both"
    ]


def test_classes_have_an_order(tmp_path):
    assert load(train=[file(tmp_path, "a.jsonl", "\n".join(lines(300, ("10", "9", "8"))))]).labels == ["8", "9", "10"]
    sentences = "\n\n".join(f"a{n}\tB-Y\nb\tI-Y\nc\tB-X\nd\tO" for n in range(60))
    path = file(tmp_path, "a.conll", sentences)
    assert load("tokens", train=[path]).labels == ["O", "B-X", "I-X", "B-Y", "I-Y"]


@pytest.mark.parametrize(
    ("task", "train", "test", "said"),
    [
        ("classification", lines(60, ("x",)), lines(9), "a.jsonl: the train examples have only the class 'x'"),
        ("classification", lines(60), lines(9, ("y",)), "b.jsonl: the test examples have only the class 'y'"),
        ("classification", lines(60), lines(9, ("x", "z")), "the label 'z' (test) does not occur in training"),
        ("sentiment", lines(60, ("x", "y", "z")), lines(9), "a.jsonl: 3 classes (x, y, z), but sentiment has two"),
        ("classification", lines(2), lines(9), "leave none for"),
    ],
)
def test_what_would_make_scores_mean_nothing_is_refused(tmp_path, task, train, test, said):
    paths = file(tmp_path, "a.jsonl", "\n".join(train)), file(tmp_path, "b.jsonl", "\n".join(test))
    assert said in error_of(load, task, train=[paths[0]], test=[paths[1]])


def test_a_label_that_training_lacks_is_named_with_its_line(tmp_path):
    train = file(tmp_path, "a.jsonl", "\n".join(lines(60)))
    test = file(tmp_path, "b.jsonl", "\n".join([*lines(9), '{"text": "new", "label": "z"}']))
    with pytest.raises(ScalerError, match=r"b\.jsonl:10: the label 'z' \(test\) does not occur in training"):
        load(train=[train], test=[test])


@pytest.mark.parametrize("percent", [0, 50, -1])
def test_a_share_that_leaves_nothing_is_refused(tmp_path, percent):
    path = file(tmp_path, "a.jsonl", "\n".join(lines(60)))
    with pytest.raises(ScalerError, match=r"--test_percent .*: 0 < share < 50 is needed, or files for --test"):
        load(train=[path], percent={VALIDATION: 10.0, TEST: percent})


# ---- Hugging Face data sets


def test_what_is_no_file_and_no_data_set_is_one_line():
    assert error_of(load, train=["nobody/nothing"]).startswith(
        "'nobody/nothing': no such file or folder, and no Hugging Face data set that can be"
    )


@pytest.mark.parametrize("name", ["text", "csv", "json", "parquet", "labels.jsonl", "~/labels", "../labels", "a/b/c"])
def test_a_reader_of_local_files_and_a_path_that_is_not_there_are_no_data_sets(name, monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset", None)  # would fail
    assert error_of(load, train=[name]) == (
        f"{name!r}: no such file or folder, and no Hugging Face data set, whose names are OWNER/NAME; correct the path"
    )


def test_a_data_set_gives_its_splits_and_the_names_of_its_classes(monkeypatch):
    features = datasets.Features(
        {
            "tokens": datasets.List(datasets.Value("string")),
            "tags": datasets.List(datasets.ClassLabel(names=["O", "B-X"])),
        }
    )
    rows = {"tokens": [["a", f"b{n}"] for n in range(60)], "tags": [[0, 1]] * 60}
    whole = datasets.Dataset.from_dict(rows, features=features)
    asked = {}

    def load_dataset(name, config, revision):
        asked.update(name=name, config=config, revision=revision)
        return datasets.DatasetDict({TRAIN: whole, TEST: whole.select(range(5))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(label_splits.hub, "commit_of", lambda name, revision: revision)
    sources = Sources(("a/b",), hub_config="c", hub_revision="d")
    splits = label_splits.load(sources, Reading("tokens"))
    assert asked == {"name": "a/b", "config": "c", "revision": "d"}
    assert splits.labels == ["O", "B-X", "I-X"] and len(splits.examples[TEST]) == 5
    assert splits.examples[TEST][1].labels == ("O", "B-X")
    assert splits.examples[TEST][1].where == "a/b/test:1"
    assert splits.checksums.keys() == {"a/b/train", "a/b/test"}


def test_a_class_that_a_data_set_does_not_know_is_refused(monkeypatch):
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["x", "y"])})
    whole = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [0, -1]}, features=features)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.DatasetDict({TRAIN: whole}))
    monkeypatch.setattr(label_splits.hub, "commit_of", lambda name, revision: "newest")
    with pytest.raises(ScalerError, match="a/b/train:1: a label is empty"):
        label_splits.load(Sources(("a/b",)), Reading("classification"))

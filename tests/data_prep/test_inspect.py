"""What `data_prep.inspect` shows, and the card in each folder."""

import re

import numpy as np
import pytest
from failures import failing
from matplotlib import pyplot
from refusals import refusal

from data_prep import inspect
from data_prep.prepared import inspect as prepared_inspect
from scaler.core import charts
from scaler.core.files import read_manifest


@pytest.fixture
def shown(tiny_recipe, call):
    return call(inspect.main, tiny_recipe.data.folder)[1]


def test_counts_lengths_frequencies_and_samples_are_those_of_the_data(shown, tiny_recipe):
    shards = read_manifest(tiny_recipe.rows_folder.parent / "shards", "shards")
    rows = read_manifest(tiny_recipe.rows_folder, "rows")
    documents, tokens = (sum(entry[what] for entry in shards["splits"]["train"]) for what in ("documents", "tokens"))
    assert f"text: {documents:,} documents, {tokens:,} tokens, " in shown
    assert sum(int(count.replace(",", "")) for count in re.findall(r"[█ ]+ ([\d,]+)$", shown, re.M)) == documents
    (each,) = rows["mix"]
    assert (each["tokens"], each["share"], each["epochs"]) == (tokens, 1, 1)
    assert f"{sum(entry['rows'] for entry in rows['splits']['train']):>12,} rows of 32" in shown
    assert "unknown tokens: 0.0000%" in shown
    assert len(re.findall(r"^  row [\d,]+: <s>", shown, re.M)) == 3


def test_bytes_a_token_are_those_of_the_text(shown, tiny_recipe):
    corpus = read_manifest(tiny_recipe.rows_folder.parent / "corpus", "corpus")["splits"]["train"]
    tokens = sum(entry["tokens"] for entry in read_manifest(tiny_recipe.rows_folder, "rows")["mix"])
    assert f"{sum(entry['bytes'] for entry in corpus) / tokens:.2f} bytes a token" in shown


def test_the_lengths_are_a_picture_too(shown, tiny_recipe):
    path = tiny_recipe.rows_folder.parent / "lengths.png"
    assert str(path) in shown
    picture = pyplot.imread(path)
    assert picture.shape[:2] == (675, 1200)
    assert len(np.unique(picture)) > 10


def test_where_they_cannot_be_drawn_all_else_is_shown(tiny_recipe, monkeypatch, call):
    monkeypatch.setattr(charts, "save", failing)
    ended, said, error = call(inspect.main, tiny_recipe.rows_folder.parent)
    assert ended == 0 and "lengths.png: no picture: no such colour" in error
    assert "lengths.png" not in said and "  row " in said


@pytest.mark.parametrize("lengths", [[1], [1, 1, 2, 3, 4, 7, 8], [0, 5]])
def test_a_document_falls_into_the_bin_of_its_length(lengths):
    counts, least = prepared_inspect.histogram(np.array(lengths))
    assert counts.sum() == len(lengths)
    edges = least.tolist()
    expected = [sum(low <= max(1, n) < 2 * low for n in lengths) for low in edges]
    assert counts.tolist() == expected


def test_one_stages_folder_and_an_empty_one_are_one_line(tiny_recipe, tmp_path, run_command):
    for folder, said in (
        (tiny_recipe.rows_folder, "name the data folder above it"),
        (tmp_path, "no prepared data here"),
    ):
        assert said in refusal(run_command("python", "-m", "data_prep.inspect", folder, cwd=tmp_path))


@pytest.mark.parametrize("name", ["corpus", "tokenizer", "shards", "rows-32"])
def test_each_folder_has_a_card_with_source_settings_and_counts(tiny_recipe, name):
    folder = tiny_recipe.rows_folder.parent
    card = (folder / name / "README.md").read_text()
    assert "heldout_percent: 12.0" in card
    assert f"- source: {tiny_recipe.corpus.sources[0].source}" in card
    if name != "tokenizer":
        content = read_manifest(folder / name, name.partition("-")[0])
        documents = sum(entry["documents"] for entry in content["splits"]["train"])
        assert re.search(rf"^\| train \| {documents:,} \|", card, re.M)
    if name in ("shards", "rows-32"):
        assert "vocab_size: 400" in card

"""Guesses of masked words: what does not fit the model is one line, and what fits to the last token is not."""

import pytest
import torch
from conftest import network_of
from refusals import refused

from scaler.data import prepared
from scaler.evaluation import fill_mask
from scaler.model import build


@pytest.fixture(scope="module")
def model(tiny_recipe):
    return network_of(tiny_recipe)


@pytest.fixture(scope="module")
def tokenizer(tiny_recipe):
    return prepared.open_prepared(tiny_recipe).tokenizer


def words(tokenizer, tokens: int) -> str:
    """A sentence with a mask of so many tokens, special ones included."""
    sentence = "<mask>" + " kana" * tokens
    while len(tokenizer(sentence)["input_ids"]) > tokens:
        sentence = sentence.rpartition(" ")[0]
    assert len(tokenizer(sentence)["input_ids"]) == tokens
    return sentence


def test_a_sentence_may_be_as_long_as_the_model_and_no_longer(model, tokenizer):
    most = build.positions(model.config)
    assert most == 38
    assert len(fill_mask.guesses(model, tokenizer, words(tokenizer, most), 3)[0]) == 3
    with refused(r"'<mask>( kana){6}.*'\.\.\.: 39 tokens, and the model takes 38; shorten the text"):
        fill_mask.guesses(model, tokenizer, words(tokenizer, most + 1), 3)


def test_all_entries_may_be_asked_for_and_no_more(model, tokenizer):
    entries = model.config.vocab_size
    (found,) = fill_mask.guesses(model, tokenizer, "kana <mask>", entries)
    assert len(found) == entries and sum(chance for _, chance in found) == pytest.approx(1.0, abs=1e-4)
    with torch.no_grad(), refused(rf"--top {entries + 1}: the model's vocabulary has {entries} entries; lower it"):
        fill_mask.guesses(model, tokenizer, "kana <mask>", entries + 1)


@pytest.mark.parametrize(
    "sentence, said", [("kana", "'kana' has no <mask>"), ("\ud83d <mask>", r"'\\ud83d <mask>' is no")]
)
def test_a_sentence_without_a_mask_or_that_is_no_text_is_refused(model, tokenizer, sentence, said):
    with refused(said):
        fill_mask.guesses(model, tokenizer, sentence, 3)

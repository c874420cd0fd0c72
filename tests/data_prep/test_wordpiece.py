"""Vocabularies that BERT's tokenizer reads: trained pieces, and whole words with pieces behind them."""

import dataclasses
import re
from collections import Counter

import pytest
import torch
from conftest import make_sentences
from refusals import refused
from small_data import make_corpus
from transformers import AutoTokenizer, DistilBertConfig, DistilBertModel

from data_prep.vocabulary import tokenizer
from scaler.config.data_sections import Source, Tokenizer

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = Tokenizer(700, kind="words", lowercase=True, pieces=350)
PIECES = Tokenizer(400, kind="wordpiece", lowercase=True)


def corpus_of_lines(folder, lines):
    (folder / "text.txt").write_text("\n".join(lines), encoding="utf-8")
    return make_corpus(folder, Source(str(folder / "text.txt"), text_unit="line"))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    return corpus_of_lines(folder, make_sentences())


@pytest.fixture(scope="module")
def by_kind(text, tmp_path_factory):
    """The tokenizers of both settings, by kind."""
    made = {}
    for settings in (WORDS, PIECES):
        folder = tmp_path_factory.mktemp("tokenizer") / "tokenizer"
        assert tokenizer.make(text, folder, settings)
        made[settings.kind] = settings, AutoTokenizer.from_pretrained(folder, local_files_only=True)
    return made


@pytest.fixture(params=["words", "wordpiece"])
def made(by_kind, request):
    return by_kind[request.param]


@pytest.fixture
def whole_words(by_kind):
    return by_kind["words"][1]


def counted(text):
    """How often each word of the training texts occurs, in lower case and without accents."""
    plain = (
        line.lower().replace("\u00e9", "e").replace(".", " .").replace("!", " !")
        for line in tokenizer.sample(text, 1 << 40)
    )
    return Counter(word for line in plain for word in line.split())


def test_the_special_tokens_and_the_frame_are_berts(made):
    settings, loaded = made
    assert len(loaded) == settings.vocab_size
    assert loaded.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3, 4]
    assert [loaded.pad_token, loaded.unk_token, loaded.cls_token, loaded.sep_token, loaded.mask_token] == SPECIALS
    first, second = (loaded(some, add_special_tokens=False).input_ids for some in ("cafe", "cafe!"))
    assert loaded("cafe").input_ids == [2, *first, 3]
    assert loaded("cafe", "cafe!").input_ids == [2, *first, 3, *second, 3]
    assert loaded("cafe [MASK] !").input_ids == [2, *first, 4, *loaded("!", add_special_tokens=False).input_ids, 3]


def test_case_and_accents_make_no_difference(made):
    _, loaded = made
    assert loaded("CAF\u00c9").input_ids == loaded("caf\u00e9").input_ids == loaded("cafe").input_ids


def test_nothing_of_the_text_is_unknown(made, text):
    _, loaded = made
    lines = list(tokenizer.sample(text, 1 << 40))
    ids = loaded(lines, add_special_tokens=False).input_ids
    assert not any(loaded.unk_token_id in found for found in ids)
    assert [loaded.decode(found).replace(" .", ".") for found in ids[:50]] == [
        line.lower().replace("\u00e9", "e") for line in lines[:50]
    ]


def test_distilbert_takes_what_the_tokenizer_gives(made):
    settings, loaded = made
    config = DistilBertConfig(vocab_size=settings.vocab_size, dim=8, hidden_dim=8, n_heads=2, n_layers=1)
    network = DistilBertModel(config)
    with torch.no_grad():
        assert network(**loaded("cafe", return_tensors="pt")).last_hidden_state.shape[-1] == 8


def test_the_most_frequent_words_are_whole_and_the_others_cut(whole_words, text):
    counts = counted(text).most_common()
    cut = [(word, count) for word, count in counts if len(whole_words.tokenize(word)) > 1]
    entries = set(whole_words.get_vocab())
    assert all(whole_words.tokenize(word) == [word] for word, _ in counts if word in entries)
    assert cut and min(count for word, count in counts[:300]) >= max(count for _, count in cut)
    for word, _ in cut:
        pieces = whole_words.tokenize(word)
        assert word == pieces[0] + "".join(piece.removeprefix("##") for piece in pieces[1:])


def test_trained_twice_it_has_the_same_bytes(text, tmp_path):
    for name in ("first", "second"):
        tokenizer.make(text, tmp_path / name, WORDS)
    first, second = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("first", "second"))
    assert first == second


def test_another_kind_or_case_trains_it_anew(text, tmp_path):
    folder = tmp_path / "tokenizer"
    others = [Tokenizer(400, kind="wordpiece"), Tokenizer(400, kind="words", pieces=300), Tokenizer(400)]
    for settings in (PIECES, *others):
        assert tokenizer.make(text, folder, settings)
        assert not tokenizer.make(text, folder, settings)


def test_a_text_with_fewer_words_than_entries_is_refused(text, tmp_path):
    with refused(r"tokenizer.vocab_size=9,000, but the text has .* for \d+ entries; lower it"):
        tokenizer.make(text, tmp_path / "tokenizer", dataclasses.replace(WORDS, vocab_size=9000))
    assert not (tmp_path / "tokenizer").exists()


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"kind": "unigram"}, "tokenizer.kind='unigram', but it is one of byte_bpe, wordpiece, words"),
        ({"lowercase": True}, "tokenizer.lowercase=True, but a byte-level BPE keeps every byte"),
        ({"kind": "words", "pieces": 1000}, "tokenizer.pieces=1000, but it is at least 300, and below 1000"),
        ({"kind": "words", "pieces": 10}, "tokenizer.pieces=10, but it is at least 300, and below 1000"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, complaint):
    with refused(re.escape(complaint)):
        Tokenizer(1000, **settings)


def test_a_word_with_an_unseen_character_is_unknown_and_no_other(whole_words):
    assert whole_words.tokenize("cafe ca\u4e2dfe cafe")[0] == "cafe"
    assert "[UNK]" in whole_words.tokenize("\u0416")


def test_words_of_more_than_a_hundred_characters_are_unknown_and_no_entries(tmp_path):
    long, longest = "b" * 101, "a" * 100
    text = corpus_of_lines(tmp_path, [f"{word} {long} {longest}" for word in make_sentences(400)])
    tokenizer.make(text, tmp_path / "tokenizer", dataclasses.replace(WORDS, vocab_size=500))
    loaded = AutoTokenizer.from_pretrained(tmp_path / "tokenizer", local_files_only=True)
    assert loaded.tokenize(longest) == [longest] and loaded.tokenize(long) == ["[UNK]"]
    assert long not in loaded.get_vocab()


@pytest.mark.parametrize(("line", "warned"), [("सुबह दुनिया", True), ("café ❤\ufe0f Größe", False)])
def test_lower_case_that_strips_vowel_signs_is_said(tmp_path, caplog, line, warned):
    lines = [f"{line} {number} {sentence}" for number, sentence in enumerate(make_sentences(400))]
    text = corpus_of_lines(tmp_path, lines)
    tokenizer.make(text, tmp_path / "tokenizer", PIECES)
    assert ("strips vowel signs of" in caplog.text) == warned

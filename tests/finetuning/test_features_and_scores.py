"""Which piece of a word carries its tag, and what predictions score, by hand."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from scaler.finetuning import features, scores
from scaler.finetuning.examples import TOKENS, Example


def test_the_first_piece_of_each_word_by_hand():
    words = ("ab", "c.", "d", "e")
    # "ab c. d e" as a byte-level BPE cuts it: a space belongs to the piece behind it; the last word was cut off
    offsets = [(0, 0), (0, 1), (1, 2), (2, 4), (4, 5), (5, 7), (0, 0)]
    assert features.align(words, offsets, [1, 0, 0, 0, 0, 0, 1]) == [1, 3, 5, None]
    # as a WordPiece does, and with a word of which nothing was made
    assert features.align(words, [(0, 2), (3, 4), (4, 5), (8, 9)], [0, 0, 0, 0]) == [0, 1, None, 3]
    # a piece that is a space alone belongs to no word
    assert features.align(("a", "b"), [(0, 1), (1, 2), (2, 3)], [0, 0, 0]) == [0, 2]


def word_pieces() -> PreTrainedTokenizerFast:
    entries = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "play", "##ing", "##ed", "in", "new", "york", "##er", "!"]
    tokenizer = Tokenizer(models.WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]")


def test_a_words_first_piece_carries_its_tag_and_the_others_none():
    words, tags = ("playing", "in", "new", "yorker!", "strange"), ("O", "O", "B-X", "I-X", "B-X")
    labels = ["O", "B-X", "I-X"]
    example = Example(" ".join(words), tags, "f:1", words)
    (row,) = (encoded := features.encode([example], word_pieces(), labels, TOKENS, 20)).rows
    assert row["input_ids"] == [1, 4, 5, 7, 8, 9, 10, 11, 3, 2]
    assert row["labels"] == [-100, 0, -100, 0, 1, 2, -100, -100, 1, -100]
    assert (encoded.first_pieces, encoded.cut) == ([[1, 3, 4, 5, 8]], 0)
    cut = features.encode([example], word_pieces(), labels, TOKENS, 6)
    assert cut.rows[0]["labels"] == [-100, 0, -100, 0, 1, -100]
    assert (cut.first_pieces, cut.cut, cut.lost_words) == ([[1, 3, 4, None, None]], 1, 2)
    logits = torch.eye(3)[torch.tensor([[2, 0, 2, 0, 1, 2]])].numpy()
    assert scores.predicted(logits, cut, labels, TOKENS) == [("O", "O", "B-X", "O", "O")]


def test_entities_count_when_type_and_both_ends_are_right():
    gold = [Example("", ("B-X", "I-X", "O", "B-Y"), ""), Example("", ("B-X", "O", "O"), "")]
    guess = [("B-X", "I-X", "O", "B-X"), ("I-X", "O", "O")]  # of the second, an I- without its B- is none
    found = scores.score(gold, guess, [], TOKENS)
    assert (found["entity_precision"], found["entity_recall"]) == (pytest.approx(1 / 2), pytest.approx(1 / 3))
    assert found["word_accuracy"] == pytest.approx(5 / 7)


def test_without_learning_each_word_has_its_commonest_tag():
    def example(words, tags):
        return Example(words, tuple(tags.split()), "", tuple(words.split()))

    train = [example("a b a", "B-X O B-X"), example("a c", "O B-Y")]
    found = scores.without_learning(train, [example("a c new", "B-X O B-Y")], ["O"], TOKENS)
    assert (found["entity_precision"], found["entity_recall"]) == (pytest.approx(1 / 2), pytest.approx(1 / 2))

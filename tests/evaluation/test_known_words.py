"""What the report of word vectors takes for words."""

import numpy as np

from scaler.evaluation.word_vectors import known_words


def test_frequent_words_are_found_in_every_script_and_long_ones_come_first():
    entries = ["किताबें", "दिन", "##ing", "123", "ไทย", "words", "of", "a1b2c3", "大学", "<s>", "बिल्लियाँ"]
    counts = np.array([5, 90, 80, 70, 60, 50, 40, 30, 20, 10, 4])
    found = [entries[number] for number in known_words(entries, counts)]
    assert found == ["words", "किताबें", "बिल्लियाँ", "दिन", "ไทย", "of", "大学"]

"""One definition of a word: letters keep their marks, scripts without spaces are split, and no letter is lost."""

# ruff: noqa: RUF001 (letters of other scripts are meant)
import doctest

import pytest
import regex
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from scaler.core import words

OF_ALL_SCRIPTS = "aZé ß9_²½Жωاَבְּדिনீกำကျမ្大でカ한👍🏽♥️\u200d\u200c་±+-#/().,!?'’\"«»\n\t\x00\ud7a3𠀀ⱥȺİ\u0301"


def test_the_examples_hold():
    assert doctest.testmod(words).failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("दिन दान दीन दुनी", ["दिन", "दान", "दीन", "दुनी"]),  # day, gift, poor, world: three consonants in all
        ("वह घर जाती है।", ["वह", "घर", "जाती", "है"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("বাংলা ভাষা", ["বাংলা", "ভাষা"]),
        ("בְּרֵאשִׁית בָּרָא", ["בְּרֵאשִׁית", "בָּרָא"]),
        ("قُرْآن می\u200cخواهم", ["قُرْآن", "می\u200cخواهم"]),
        ("ภาษาไทยง่าย", ["ภาษา", "ไทย", "ง่าย"]),
        ("ខ្ញុំទៅសាលារៀន", ["ខ្ញុំ", "ទៅ", "សាលារៀន"]),
        ("ຂ້ອຍໄປໂຮງຮຽນ", ["ຂ້ອຍ", "ໄປ", "ໂຮງຮຽນ"]),
        ("ကျွန်တော်ကျောင်းသွားသည်", ["ကျွန်တော်", "ကျောင်း", "သွား", "သည်"]),
        ("今天天气很好,iPhone手机", ["今天", "天气", "很好", "iPhone", "手机"]),
        ("大学で勉強する", ["大学", "で", "勉強", "する"]),
        ("한국어 문장입니다.", ["한국어", "문장입니다"]),
        ("བོད་སྐད", ["བོད", "སྐད"]),
        ("e\u0301te\u0301, Größe", ["e\u0301te\u0301", "Größe"]),
        ("x² + y³ = ½ a_b", ["x²", "y³", "½", "a_b"]),
        ("1️⃣ and ❤️", ["1️⃣", "and"]),  # a variation selector after a symbol is no word
    ],
)
def test_words_of_a_script(text, expected):
    assert words.words(text) == expected
    assert [text[begin:end] for begin, end in words.spans(text)] == expected


@hypothesis_settings(deadline=None)
@given(st.text(st.sampled_from(OF_ALL_SCRIPTS) | st.characters(), max_size=60))
def test_each_letter_and_digit_is_in_one_word_and_words_hold_nothing_but_letters_digits_and_marks(text):
    places = [place for begin, end in words.spans(text) for place in range(begin, end)]
    assert places == sorted(set(places))
    assert {place for place, character in enumerate(text) if regex.match(r"[\p{L}\p{N}_]", character)} <= set(places)
    assert all(regex.match(r"[\p{L}\p{N}\p{M}\p{Join_Control}_]", text[place]) for place in places)
    assert [text[begin:end] for begin, end in words.spans(text)] == words.words(text)


@hypothesis_settings(deadline=None, max_examples=300)
@given(st.text(st.characters(max_codepoint=0x2100) | st.sampled_from(OF_ALL_SCRIPTS), max_size=60))
def test_texts_of_common_characters_have_the_same_words_and_units_in_both_ways_of_finding_them(text):
    found = words.words(text), words.units(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(words, "is_common", lambda _: False)
        assert found == (words.words(text), words.units(text))


PROSE = "The cat (a tabby) sat on the mat, and it was well-fed, so nobody in the house saw a reason to move."


def test_punctuation_and_case_count_in_code_and_not_in_prose():
    assert words.units(PROSE) == words.units(PROSE.upper().replace(",", ";").replace(".", "!"))
    loop = "for (i = 0; i < n; i++) { total += A[i]; }\n" + "while (left < right) { left = left * 2; }" * 3
    others = [loop.replace("+=", "-="), loop.replace("A", "a"), loop.replace("n;", "n,"), loop.replace("0", "1")]
    assert len({tuple(words.units(text)) for text in [loop, *others]}) == 5
    assert words.units(loop) == words.units(loop.replace(" ", "\n\t"))


def test_punctuation_counts_in_short_texts():
    short = [f"return a {operator} b if c else d" for operator in ("-", "/", "%", "&", "@", ",")]
    assert len({tuple(words.units(text)) for text in short}) == 6
    assert words.units("So it IS") == words.units("so it is")
    assert words.units("F = m\n a") == ["F = m a"]  # code of so few words is one unit


@pytest.mark.parametrize("mark", [", ", " — ", "་", "፡", "。"])
def test_marks_of_short_texts_belong_to_the_unit_before_them(mark):
    # as units of their own they would double the runs that two lists of like marks share
    assert len(words.units(mark.join(["ab", "cd", "ef", "gh", "ij", "kl", "mn"]))) == 7


def test_flags_that_differ_in_tags_alone_are_different_units():
    england, scotland = ("\U0001f3f4" + "".join(chr(0xE0000 + ord(c)) for c in code) for code in ("gbeng", "gbsct"))
    assert words.units(f"{PROSE} {england}") != words.units(f"{PROSE} {scotland}")


def test_symbols_count_in_prose_too():
    assert words.units(f"{PROSE} Here 5 < 7 €")[-4:] == ["5", "<", "7", "€"]


def test_composed_and_decomposed_letters_are_the_same_unit():
    assert words.units("cafe\u0301") == words.units("café") == ["café"]


def test_a_word_of_letters_has_marks_but_no_digits_and_no_punctuation():
    found = {text: words.is_of_letters(text) for text in ("word", "दिन", "ไทย", "can't", "a1", "", "##ing", "\u093f")}
    assert [text for text, whole in found.items() if whole] == ["word", "दिन", "ไทย"]

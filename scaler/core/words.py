"""Find the words of a text: one definition, which near-repeats, hidden words, quality rules and word vectors share.

A word is a run of letters and digits with their combining marks. Scripts that put no space between words (Thai, Lao,
Khmer, Burmese, Chinese, Japanese) are split by ICU's dictionaries.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from importlib import metadata

import regex
from icu4py.breakers import WordBreaker

# SA are the South-East Asian scripts that Unicode's line breaking leaves to dictionaries (UAX #14)
_UNSPACED = r"[[\p{scx=Han}\p{scx=Hira}\p{scx=Kana}\p{scx=Bopo}\p{LB=SA}]&&[\p{L}\p{N}]]"
_LETTER = rf"[[\p{{L}}\p{{N}}_]--{_UNSPACED}]"
_MARK = r"[\p{M}\p{Join_Control}]"  # the joiners shape Persian and Indic letters
WORD = rf"(?:{_LETTER}[{_LETTER}{_MARK}]*|{_UNSPACED}[{_UNSPACED}{_MARK}]*)"  # for `regex` with its flag V1
PUNCTUATION = r"[\p{P}--_]"
_SYMBOL = r"[\p{S}\p{Co}\p{Cn}\U000e0020-\U000e007e]"  # the last are tags, which tell some flags apart
_OPERATOR = rf"[[{_SYMBOL}[\p{{P}}&&\p{{ASCII}}]]--[\p{{Terminal_Punctuation}}\p{{Quotation_Mark}}_]]"  # + = / # ( ]
SHORT = 20  # words; of fewer, so few runs of five can be told apart that a mark has to count
PROSE = 5  # words for an operator; 99 % of prose has 5.5 or more, half of code 2.5 or fewer (docs/results/data.md)

# Latin, Greek and Cyrillic letters and their punctuation have none of the marks and scripts above, so for texts of
# these alone `re` finds the same, five times as fast.
_COMMON = r"\u0000-\u02ff\u0370-\u0482\u048a-\u052f\u1e00-\u1eff\u2010-\u2027\u20ac"
_UNCOMMON = re.compile(f"[^{_COMMON}]")
_COMMON_CHARACTERS = "".join(regex.findall(f"[{_COMMON}]", "".join(map(chr, range(0x2100)))))


def _common(of_class: str, more: str = "") -> str:
    """Return a class of `regex`, limited to the common characters, as `re` writes it."""
    characters = regex.findall(f"(?V1){of_class}", _COMMON_CHARACTERS)
    return f"[{re.escape(''.join(characters))}]{more}"


class _Pattern:
    """A pattern of single characters or words, in two forms: for common characters, and for all."""

    def __init__(self, words: bool, of_class: str = "") -> None:
        choices = [_common(_LETTER, "+")] * words + [_common(of_class)] * bool(of_class)
        self._common = re.compile("|".join(choices))
        self._all = regex.compile("(?V1)" + "|".join([WORD] * words + [of_class] * bool(of_class)))

    def find(self, text: str, common: bool) -> list[str]:
        return self._common.findall(text) if common else split(self._all.findall(text))


_WORDS = _Pattern(True)
_WORDS_AND_SYMBOLS = _Pattern(True, _SYMBOL)
_WORDS_AND_MARKS = _Pattern(True, rf"[{PUNCTUATION}{_SYMBOL}]")
_SYMBOLS = _Pattern(False, _SYMBOL)
_OPERATORS = _Pattern(False, _OPERATOR)
_WORD = regex.compile(f"(?V1){WORD}")
_BEGINS_UNSPACED = regex.compile(f"(?V1){_UNSPACED}")
_PUNCTUATION = regex.compile(f"(?V1){PUNCTUATION}")
_OF_LETTERS = regex.compile(r"(?:\p{L}[\p{M}\p{Join_Control}]*)+")


def is_common(text: str) -> bool:
    """Return whether a text has nothing but Latin, Greek and Cyrillic letters, common punctuation, and controls."""
    return _UNCOMMON.search(text) is None


def version() -> str:
    """Return what the words of a text depend on. A stage of data preparation records it."""
    return f"letters with marks; icu4py {metadata.version('icu4py')}"


def split(pieces: list[str]) -> list[str]:
    """Split the pieces that `WORD` finds in scripts without spaces into words; leave the others as they are."""
    if not any(map(_BEGINS_UNSPACED.match, pieces)):
        return pieces
    return [
        word for piece in pieces for word in (WordBreaker(piece, "en") if _BEGINS_UNSPACED.match(piece) else (piece,))
    ]


def words(text: str) -> list[str]:
    """Return the words of a text.

    >>> words("Don't wait: दिन और दान, C++"), words("ภาษาไทย")
    (['Don', 't', 'wait', 'दिन', 'और', 'दान', 'C'], ['ภาษา', 'ไทย'])
    """
    return _WORDS.find(text, is_common(text))


def spans(text: str) -> Iterator[tuple[int, int]]:
    """Yield where each word of a text begins and ends."""
    for found in _WORD.finditer(text):
        begin = found.start()
        for word in split([found[0]]):
            yield begin, begin + len(word)
            begin += len(word)


def units(text: str) -> list[str]:
    """Return what a text is compared by: words and symbols in lower case, in Unicode's composed form (NFC).

    Punctuation counts in a text of fewer than 20 words: marks belong to the unit before them. Each mark is a unit of
    its own where there is an operator or bracket for five words or fewer, which is code or a formula. There case counts
    as well. A text that is both is one unit.

    >>> units("It costs, in all, 5 € or less."), units("x[0]  -= A")
    (['it', 'costs,', 'in', 'all,', '5', '€', 'or', 'less.'], ['x[0] -= A'])
    """
    text = unicodedata.normalize("NFC", text)
    lowered = text.lower()
    common = is_common(text) and is_common(lowered)  # some Latin letters have a lower case elsewhere
    operators = _OPERATORS.find(text, common)
    symbols = _SYMBOLS.find("".join(operators), common)
    found = (_WORDS_AND_SYMBOLS if symbols else _WORDS).find(lowered, common)
    count = len(found) - len(symbols)
    is_code = bool(operators) and len(operators) * PROSE >= count
    if is_code and count < SHORT:
        return [" ".join(text.split())]
    if is_code:
        return _WORDS_AND_MARKS.find(text, common)
    return _with_marks(_WORDS_AND_MARKS.find(lowered, common)) if count < SHORT else found


def _with_marks(found: list[str]) -> list[str]:
    """Join punctuation to the unit before it. Alone, it would make lists of like marks more alike than their words."""
    joined: list[str] = []
    for unit in found:
        if joined and _PUNCTUATION.match(unit):
            joined[-1] += unit
        else:
            joined.append(unit)
    return joined


def is_word(unit: str) -> bool:
    """Return whether one of a text's units is a word, not a mark."""
    return _WORD.match(unit) is not None


def is_of_letters(text: str) -> bool:
    """Return whether a text is one word of letters and their marks alone, without digits."""
    return _OF_LETTERS.fullmatch(text) is not None

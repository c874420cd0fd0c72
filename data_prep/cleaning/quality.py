"""Apply the quality rules of Gopher, C4 and FineWeb, and mask personal data, by the package datatrove."""

from __future__ import annotations

import re
from typing import Any

import regex
from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.pipeline.filters.base_filter import get_filter_result
from datatrove.pipeline.formatters import PIIFormatter
from datatrove.utils.logging import logger
from datatrove.utils.word_tokenizers import WordTokenizer

from scaler.core import words

__all__ = ["PIIFormatter", "step"]

logger.remove()  # it would log to stderr


class Words(WordTokenizer):
    """A tokenizer of words, punctuation marks and sentences, ten times as fast as datatrove's own choice, spaCy.

    Gopher's rules count words and the letters in them, so they see what they see with spaCy but for contractions.
    Characters that nobody sees, such as the spaces of no width between Khmer words, are no words.
    """

    WORD = regex.compile(rf"(?V1){words.WORD}(?:[-'\u2019]{words.WORD})*|[^\w\p{{N}}\s\p{{Cf}}]")
    WORD_OF_COMMON = re.compile(r"\w+(?:[-'\u2019]\w+)*|[^\w\s\u00ad]")
    SENTENCE = regex.compile(r"[^\p{Sentence_Terminal}\n]+\p{Sentence_Terminal}*")

    def word_tokenize(self, text: str) -> list[str]:
        """Return words and single punctuation marks."""
        if words.is_common(text):
            return self.WORD_OF_COMMON.findall(text)
        return words.split(self.WORD.findall(text))

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Return begin and end of each sentence."""
        return [found.span() for found in self.SENTENCE.finditer(text) if found.group().strip()]

    def sent_tokenize(self, text: str) -> list[str]:
        """Return the sentences."""
        return [text[begin:end].strip() for begin, end in self.span_tokenize(text)]


FILTERS = {
    "gopher_repetition": GopherRepetitionFilter,  # Rae et al. 2021, table A1
    "gopher_quality": GopherQualityFilter,  # likewise, section A1.1
    "c4": C4QualityFilter,  # Raffel et al. 2020, section 2.2
    "fineweb": FineWebQualityFilter,  # Penedo et al. 2024, section 3.6
}


def step(name: str) -> Any:
    """Return a cleaning step made of one of datatrove's filters, with datatrove's own settings."""
    rule = FILTERS[name](language=Words())

    def run(text: str) -> tuple[str | None, str]:
        document = Document(text=text, id="")
        kept, reason = get_filter_result(rule.filter(document))
        return (document.text, "") if kept else (None, reason or "dropped")

    return run

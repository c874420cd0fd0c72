"""Cut words that are too long to train a tokenizer on, such as DNA, and remember the documents that have them.

Training takes time with the square of a word's length. A word here is what the tokenizers of this package do not cut
beforehand.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

import regex

LONGEST = 1000  # characters; at most a tenth of a second for a thousand such words
# runs that stay whole: of BERT's pre-tokenizer, and those of GPT-2's that are not within them (Radford et al. 2019)
_RUNS = (r"[^\s\p{P}$+<=>^`|~]", r"[^\s\p{L}\p{N}]", r"\s")
_LONG = regex.compile("|".join(rf"(?<!{kind}){kind}{{{LONGEST + 1},}}" for kind in _RUNS))
# what almost every text fails, and ten times as fast
_MAYBE_LONG = re.compile(rf"(?<!\S)\S{{{LONGEST + 1}}}|(?<!\s)\s{{{LONGEST + 1}}}")


class Cutter:
    """Cuts texts within words of more than 1,000 characters.

    Attributes:
        longest: characters of the longest word, by the document that has it, of all with a long one.
    """

    def __init__(self) -> None:
        self.longest: dict[str, int] = {}

    def pieces(self, text: str, document: str) -> Iterator[str]:
        """Yield a text in one piece, or where it has long words in several, which together are the text.

        Args:
            document: where the text stands.
        """
        begin = 0
        if _MAYBE_LONG.search(text):
            for found in _LONG.finditer(text):
                self.longest[document] = max(self.longest.get(document, 0), len(found[0]))
                for cut in range(found.start() + LONGEST, found.end(), LONGEST):
                    yield text[begin:cut]
                    begin = cut
        yield text[begin:]

    def warning(self) -> str:
        """Return a line on the documents with long words, or "" where there are none."""
        if not self.longest:
            return ""
        document = max(self.longest, key=self.longest.__getitem__)
        many = f"{len(self.longest):,} documents have" if len(self.longest) > 1 else "one document has"
        return (
            f"{many} words of over {LONGEST:,} characters without a break, which the tokenizer was trained on in "
            f"pieces; the longest has {self.longest[document]:,}, in {document}"
        )

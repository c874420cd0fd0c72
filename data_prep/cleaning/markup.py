"""Turn HTML into plain text."""

from __future__ import annotations

import html
import re

OPENING = re.compile(r"<!--|<(script|style)\b", re.IGNORECASE)
CLOSING = {
    None: re.compile("-->"),
    "script": re.compile(r"</script\s*>", re.IGNORECASE),
    "style": re.compile(r"</style\s*>", re.IGNORECASE),
}
BLOCK_END = re.compile(r"</(?:p|div|li|tr|h[1-6]|blockquote|pre|section|article)\s*>|<br\s*/?>", re.IGNORECASE)
TAG = re.compile(r"</?[A-Za-z][^<>]*>|<![A-Za-z][^<>]*>")
# of digits more than any character's number has, and more than Python reads
LEADING_ZEROS, NO_CHARACTER = re.compile(r"(?<=&#)0+(?=[0-9])"), re.compile(r"&#[1-9][0-9]{7,};?")
SPACES = re.compile(r"[^\S\n]+")


def plain(text: str) -> str:
    """Return the text without tags, comments, scripts and style sheets, entities decoded; blocks end their line."""
    text = TAG.sub(" ", BLOCK_END.sub("\n", _seen(text)))
    text = NO_CHARACTER.sub("\ufffd", LEADING_ZEROS.sub("", text))
    lines = (SPACES.sub(" ", line).strip() for line in html.unescape(text).split("\n"))
    return "\n".join(lines).strip()


def _seen(text: str) -> str:
    """Return the text without comments, scripts and style sheets, in one pass, whatever is left unclosed."""
    kept, begin, place = [], 0, 0
    unclosed = set()
    while opening := OPENING.search(text, place):
        place = opening.end()
        kind = opening[1] and opening[1].lower()
        if kind in unclosed:
            continue
        if closing := CLOSING[kind].search(text, place):
            kept.append(text[begin : opening.start()])
            begin = place = closing.end()
        else:
            unclosed.add(kind)  # nor will one that opens later be closed
    return " ".join([*kept, text[begin:]])

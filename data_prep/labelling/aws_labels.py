"""Read labels from botocore's service models: the service of a description, and the words in it that are names."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from typing import Any

from data_prep.cleaning.markup import BLOCK_END, TAG, plain

BRAND = re.compile(r"^(amazon web services|amazon|aws)\s+|\s+service$")
SHORT = 3  # letters of a name that is searched as a word of its own, because it occurs within others
WORD = re.compile(r"\w+(?:[-.:/*@'\u2019]+\w+)*|[^\w\s]")
MARK = re.compile(r"<(/?)(code|a)\b[^>]*>", re.IGNORECASE)
OPERATION, PARAMETER, VALUE = "operation", "parameter", "value"


def descriptions(api: Mapping[str, Any]) -> Iterator[str]:
    """Yield the documentation of each operation, data type and member of a service, in HTML."""
    for part in (*api["operations"].values(), *api["shapes"].values()):
        yield part.get("documentation", "")
        for member in part.get("members", {}).values():
            yield member.get("documentation", "")


# ---- whose documentation it is


def names_of(service: str, api: Mapping[str, Any]) -> set[str]:
    """Return the names of a service in its model, in lower case, with and without "Amazon", "AWS" and "service"."""
    keys = ("serviceFullName", "serviceAbbreviation", "serviceId", "endpointPrefix")
    given = {service, *(str(api["metadata"].get(key) or "") for key in keys)}
    names: set[str] = set()
    for name in (part for one in given for part in re.split(r"[()]", one.lower())):
        bare = " ".join(re.split(r"[\s/.-]+", name)).strip()
        while (shorter := BRAND.sub("", bare).strip()) != bare:
            bare = shorter
        names.add(bare)
    return {name for name in names if len(name) > 1}


def pattern(name: str) -> str:
    """Return a regular expression of the words with a service's name, written apart, together or with hyphens."""
    core = r"[\s-]*".join(map(re.escape, name.split()))
    if len(name) <= SHORT:
        return rf"(?<![A-Za-z])(?i:{core})(?![a-z])|(?<![A-Z]){core.upper()}"
    return rf"(?i:\S*{core}\S*)"


def without(names: re.Pattern[str], text: str) -> str:
    """Return the text without the words in which a name occurs."""
    return " ".join(names.sub(" ", text).split())


def text_of(description: str) -> str:
    """Return a description on one line, without markup."""
    return " ".join(plain(description).split())


# ---- which words are names


def blocks(description: str) -> Iterator[str]:
    """Yield the paragraphs and list items of a description, in HTML."""
    yield from filter(str.strip, BLOCK_END.split(description))


def known_names(api: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of a service's operations and members, each with its kind."""
    members = {name for shape in api["shapes"].values() for name in shape.get("members", {})}
    either = {name[:1].swapcase() + name[1:] for name in members}  # documentation writes maxItems and MaxItems
    return {**dict.fromkeys(members | either, PARAMETER), **dict.fromkeys(api["operations"], OPERATION)}


def tagged(block: str, known: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the words of a block and their BIO tags, from its markup.

    What stands in <code> is the name of an operation or a parameter (any member of a data type), or else a value; what
    stands in <a> is one of these names, or nothing.
    """
    words: list[str] = []
    tags: list[str] = []
    inside, place = "", 0
    for mark in [*MARK.finditer(block), None]:
        end = mark.start() if mark else len(block)
        content = html.unescape(TAG.sub(" ", block[place:end]))
        found = WORD.findall(content)
        kind = known.get(content.strip(), VALUE if inside == "code" else "") if inside else ""
        words += found
        tags += [f"{'I' if number else 'B'}-{kind}" if kind else "O" for number in range(len(found))]
        if mark:
            inside, place = "" if mark[1] else mark[2].lower(), mark.end()
    return words, tags

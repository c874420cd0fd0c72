"""Read the values of a JSON file one by one: the items of an array, or values one after the other, as lines have them.

ijson was tried: it reads half a surrogate as "?", in silence, and refuses NaN and large integers, which Python writes.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.sources.lines import BAD_BYTES, refuse_length
from data_prep.sources.opening import opened
from scaler.core.errors import ScalerError

BLOCK = 1 << 16  # characters read at once, at first
WHITE = " \t\n\r"
LONGEST_TOKEN = 16  # characters of a literal or an escape, such as -Infinity, that a block may cut


class Values:
    """The values of a JSON file.

    Args:
        max_bytes: that a value may have in all.
    """

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path, self.max_bytes = path, max_bytes
        self.decoder = json.JSONDecoder()
        self.buffer, self.at, self.ended, self.number = "", 0, False, 1

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Yield the place and the value of each. Raises ScalerError for what is not JSON, and for a value too long."""
        with opened(self.path) as file, io.TextIOWrapper(file, "utf-8-sig", BAD_BYTES) as self.text:
            in_array = self._next() == "["
            self.at += in_array
            while (character := self._next()) and not (in_array and character == "]"):
                yield self._where(), self._value()
                self.number += 1
                if in_array and self._next() == ",":
                    self.at += 1
                    if self._next() == "]":
                        self._refuse("a comma before the end of the array")
                elif in_array and self._next() != "]":
                    self._refuse("no comma between two values" if self._next() else "the array does not end")
            self.at += in_array
            if in_array and (not character or self._next()):
                self._refuse("more after the array" if character else "the array does not end")

    def _where(self) -> str:
        return f"{self.path}, record {self.number}"

    def _refuse(self, reason: object) -> None:
        raise ScalerError(f"{self._where()}: not JSON ({reason}); repair the file, or fetch it again")

    def _more(self) -> bool:
        """Read on, as much as is held, so that a long value is parsed few times. Return False at the end."""
        held = len(self.buffer) - self.at
        if held > self.max_bytes:
            refuse_length(self._where(), self.max_bytes)
        read = self.text.read(max(BLOCK, held))
        self.buffer, self.at, self.ended = self.buffer[self.at :] + read, 0, not read
        return not self.ended

    def _next(self) -> str:
        """Skip white space; return the next character, "" at the end."""
        while True:
            while self.at < len(self.buffer) and self.buffer[self.at] in WHITE:
                self.at += 1
            if self.at < len(self.buffer):
                return self.buffer[self.at]
            if not self._more():
                return ""

    def _value(self) -> Any:
        while True:
            try:
                value, end = self.decoder.raw_decode(self.buffer, self.at)
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or error.pos > len(self.buffer) - LONGEST_TOKEN
                if self.ended or not cut:
                    self._refuse(error)
            except (ValueError, RecursionError) as error:  # an integer of over 4,300 digits; thousands of brackets
                self._refuse(error)
            else:
                if end < len(self.buffer) or self.ended:  # or a number might go on in the next block
                    if end - self.at > self.max_bytes:
                        refuse_length(self._where(), self.max_bytes)
                    self.at = end
                    return value
            self._more()

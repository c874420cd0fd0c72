"""Notice a request to stop: SIGTERM, SIGHUP, SIGUSR1, Ctrl-C or a file STOP. The run saves, and ends with status 0."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

STOP_FILE = "STOP"
SIGNALS = {
    signal.SIGTERM: "SIGTERM",
    signal.SIGUSR1: "SIGUSR1",
    signal.SIGINT: "Ctrl-C",
    signal.SIGHUP: "SIGHUP",  # the terminal has gone
}
REASONS = (*SIGNALS.values(), f"a file {STOP_FILE}")
_FILE_SECONDS = 1.0  # between two looks for the file, because one on a shared disk costs more than a step


class StopRequests:
    """A context in which requests to stop this rank are noted. A second Ctrl-C interrupts at once.

    Args:
        folder: where rank 0 looks for the file STOP; None on the others.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file = folder / STOP_FILE if folder is not None else None
        self._asked: str | None = None
        self._interrupts = 0
        self._looked = 0.0
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequests:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue  # nohup: the run is to outlive its terminal
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        reason = SIGNALS[signal.Signals(number)]
        self._interrupts += number == signal.SIGINT
        if self._interrupts > 1:
            raise KeyboardInterrupt
        self._asked = self._asked or reason

    def flags(self) -> list[float]:
        """Return 1.0 for the one of REASONS that this rank has noted, 0.0 for the others; ranks agree by their sums."""
        now = time.monotonic()
        if self._asked is None and self._file is not None and now - self._looked > _FILE_SECONDS:
            self._looked = now
            if os.path.exists(self._file):  # a disk that does not answer counts as no
                self._asked = REASONS[-1]
        return [float(reason == self._asked) for reason in REASONS]

    def honoured(self) -> None:
        """Remove the file, so that it does not stop the next start."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink(missing_ok=True)


def reason(flags: list[float]) -> str | None:
    """Return the first reason that any rank has, from the sums of their flags; None if there is none."""
    return next((name for name, flag in zip(REASONS, flags, strict=True) if flag), None)

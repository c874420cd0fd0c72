"""End a job in which a rank makes no progress for a set time, and write the stack of every rank."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import IO

from scaler.core.errors import EXIT_TRY_AGAIN
from scaler.distributed.collectives import all_or_none
from scaler.distributed.world import World
from scaler.training.run_folder import HUNG

GRACE_SECONDS = 5.0  # for which ranks wait for each other's reports


class Watchdog:
    """A context that watches this rank from a thread of its own. Call `beat` whenever something was done.

    One rank that hangs makes all others wait for it, so every rank's watchdog ends its rank, and each writes what the
    rank was doing. Where even threads do not run, because native code holds Python's lock, a timer in C does it.

    Args:
        folder: folder of the run; reports go to its folder `hung`.
        seconds: time without a beat after which the rank counts as hanging.
    """

    def __init__(self, folder: Path, world: World, seconds: float) -> None:
        self.folder, self.world, self.seconds = folder / HUNG, world, seconds
        self._beats, self._doing, self._last, self._longest = 0, "", time.monotonic(), 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._file = all_or_none(self._prepare, self.world)
        self._last = time.monotonic()
        self._thread.start()
        return self

    def _prepare(self) -> IO[str]:
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob("rank_?????.txt") if self.world.is_first else ():  # of an earlier start
            path.unlink(missing_ok=True)
        return self._report(".native").open("w", encoding="utf-8")

    def beat(self, doing: str) -> None:
        """Note that the rank makes progress, and what it is about to do."""
        now = time.monotonic()
        self._longest = max(self._longest, now - self._last)
        self._beats, self._doing, self._last = self._beats + 1, doing, now

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()
        with contextlib.suppress(OSError):  # while others watch, or reports are there, it stays; the run has ended well
            self._file.close()
            self._report(".native").unlink(missing_ok=True)
            self.folder.rmdir()

    def _report(self, ending: str = "") -> Path:
        return self.folder / f"rank_{self.world.rank:05d}{ending}.txt"

    def _watch(self) -> None:
        while not self._over.wait(min(1.0, self.seconds / 10)):
            faulthandler.dump_traceback_later(self.seconds + 2 * GRACE_SECONDS, exit=True, file=self._file)
            if time.monotonic() - self._last > self.seconds:
                self._bark()

    def _bark(self) -> None:
        facts = {"rank": self.world.rank, "beats": self._beats, "doing": self._doing, "host": os.uname().nodename}
        reports, stacks = [facts], f"stacks of all ranks are in {self.folder}"
        try:
            try:
                self._write(facts)
                # a rank that beats seldom barks later: it was waited for since its last beat
                time.sleep(GRACE_SECONDS + min(self._longest, self.seconds))
                paths = [self.folder / f"rank_{rank:05d}.txt" for rank in range(self.world.size)]
                reports = [json.loads(path.open(encoding="utf-8").readline()) for path in paths if path.is_file()]
            except (OSError, ValueError) as error:
                stacks = f"no stacks could be written to {self.folder} ({error})"
            if reports[0]["rank"] == self.world.rank:
                problem = f"{blame(reports, self.world.size, self.seconds)}; {stacks}"
                print(
                    f"error: {problem}; the same command goes on from the last checkpoint", file=sys.stderr, flush=True
                )
        finally:
            os._exit(EXIT_TRY_AGAIN)

    def _write(self, facts: dict[str, object]) -> None:
        beside = self._report(".partial")
        with beside.open("w", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")
            file.flush()
            faulthandler.dump_traceback(file)
        beside.replace(self._report())
        self._report(".native").unlink(missing_ok=True)


def blame(reports: list[dict[str, object]], size: int, seconds: float) -> str:
    """Name the rank that hangs: one without a report, or else the one that came least far."""
    silent = sorted(set(range(size)) - {int(str(report["rank"])) for report in reports})
    if silent:
        return f"rank {', '.join(map(str, silent))} hangs and does not answer; the others waited {seconds:g} s"
    beats = [int(str(report["beats"])) for report in reports]
    if min(beats) == max(beats):
        return f"all ranks wait at the same place ({reports[0]['doing']}) for {seconds:g} s; the network may be down"
    last = reports[beats.index(min(beats))]
    where = f"rank {last['rank']} on {last['host']} hangs, last seen in {last['doing']}"
    return f"{where}; the others waited {seconds:g} s for it"

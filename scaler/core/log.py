"""Log to the console with time and rank. Needs no torch.

Modules log by `logging.getLogger(__name__)`. Parsing a command line calls `set_up`, before anything heavy is imported.
"""

from __future__ import annotations

import io
import logging
import os
import sys
import threading
import time
import warnings

RESULT = 25  # the level of what a command was started for; -q shows it, too
SILENT_SECONDS = 10.0  # after so long without a line, a heartbeat says what is going on
LEVELS = {-1: RESULT, 0: logging.INFO, 1: logging.DEBUG}
PACKAGES = ("scaler", "data_prep")
# how Transformers and the hub's client are asked to say less; read when they are imported
QUIET_LIBRARIES = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def write_what_can_be_encoded() -> None:
    """Have stdout and stderr write an escape such as \\u2588 for a character that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


class Console(logging.Handler):
    """A handler that writes lines such as "11-30 14:02:11 rank 0 | step 10/60 | loss 3.2".

    Warnings go to stderr. A closed console or a full disk behind it does not end the process. `last` is when the last
    line was written, by the monotonic clock.
    """

    def __init__(self, rank: int, on_stdout: bool) -> None:
        super().__init__()
        self.on_stdout = on_stdout
        self.setFormatter(logging.Formatter(f"%(asctime)s rank {rank} | %(message)s", "%m-%d %H:%M:%S"))
        self.last = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record as a line."""
        self.last = time.monotonic()
        stream = sys.stdout if self.on_stdout and record.levelno < logging.WARNING else sys.stderr
        if stream is None:  # the process was started without it
            return
        try:
            stream.write(f"{self.format(record)}\n")  # in one piece, because ranks share the console
            stream.flush()
        except BrokenPipeError:  # its reader has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        except (OSError, ValueError):  # a full disk; a closed stream
            pass


class Heartbeat:
    """A thread that logs what the process is doing when nothing else was logged for ten seconds.

    Use it as a context manager, on the rank whose lines are shown; `doing` may be set at any time.
    """

    def __init__(self, doing: str) -> None:
        self.doing = doing
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(timeout=1.0)  # it may be writing to a console that takes nothing, which must not hold us

    def _beat(self) -> None:
        logger, doing, since = logging.getLogger(__name__), self.doing, time.monotonic()
        while not self._over.wait(0.5):
            if self.doing != doing:
                doing, since = self.doing, time.monotonic()
            consoles = [handler for handler in logging.getLogger("scaler").handlers if isinstance(handler, Console)]
            if consoles and time.monotonic() - max(console.last for console in consoles) >= SILENT_SECONDS:
                logger.info(f"{doing}, for {time.monotonic() - since:.0f} s")


class Reminder:
    """A clock that tells when a wait is worth a line: after ten seconds, and each time that it has doubled."""

    def __init__(self) -> None:
        self._since, self._next = time.monotonic(), SILENT_SECONDS

    @property
    def seconds(self) -> float:
        """Return for how long the wait has lasted."""
        return time.monotonic() - self._since

    def is_due(self) -> bool:
        """Return True once for each line that is due."""
        due = self.seconds >= self._next
        while self.seconds >= self._next:
            self._next *= 2
        return due


def set_up(verbosity: int, rank: int = 0, on_stdout: bool = False) -> None:
    """Send what this project's modules log to the console.

    Args:
        verbosity: 0 shows progress, results and warnings of rank 0, and warnings of the others. 1 shows all of every
            rank, and what libraries say. -1 shows results and warnings alone.
        rank: of this process; it stands in each line.
        on_stdout: whether progress is a result, as that of a training, and goes to stdout.
    """
    console = Console(rank, on_stdout)
    for package in PACKAGES:
        logger = logging.getLogger(package)
        logger.handlers, logger.propagate = [console], False
        logger.setLevel(LEVELS[verbosity] if rank == 0 or verbosity > 0 else logging.WARNING)
    if verbosity <= 0:
        for name, value in QUIET_LIBRARIES.items():
            os.environ.setdefault(name, value)
        for category in (DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        # a filter, because DeepSpeed sets its logger's level when it is imported
        logging.getLogger("DeepSpeed").addFilter(_is_error)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR

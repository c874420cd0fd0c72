"""Errors that a user can act on, and how they become one line and an exit status."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import platform
import re
import traceback
from collections.abc import Iterable, Iterator
from pathlib import Path

logger = logging.getLogger(__name__)
EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention
# error numbers of shared disks that are away for a while
PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EREMOTEIO}
_SOURCE = Path(__file__).resolve().parents[2]
_PACKAGES = tuple(f"{_SOURCE / name}{os.sep}" for name in ("scaler", "data_prep"))
FULL = {errno.ENOSPC, errno.EDQUOT}
REMEDIES = {
    **dict.fromkeys(FULL, "the disk is full; nothing half-written counts; free some space and run again"),
    errno.EROFS: "the disk is read-only; name a folder on another",
    errno.EFBIG: "raise the limit of a file's size (`ulimit -f`), or name a folder on another disk",
    errno.ELOOP: "links are not followed here; remove it",
    errno.EMFILE: "raise the limit of open files (`ulimit -n`), or use fewer processes",
    errno.ENFILE: "the whole machine has too many files open; close some",
    errno.ENOMEM: "free some memory, or use fewer processes",
    errno.EAGAIN: "raise the limit of processes (`ulimit -u`, or the container's), or use fewer",
}
# words in a RuntimeError of Python or PyTorch
REMEDIES_OF_WORDS = {
    "can't start new thread": REMEDIES[errno.EAGAIN],
    "DefaultCPUAllocator": REMEDIES[errno.ENOMEM],
}


class ScalerError(Exception):
    """An input that cannot be used. The message is one line: the value, the rule, the remedy."""

    status = EXIT_BAD_INPUT


class TryAgain(ScalerError):
    """An end through no fault of the input, after which the same command resumes the run."""

    status = EXIT_TRY_AGAIN


def nearest(word: str, known: Iterable[str]) -> str:
    """Return a hint with the known word that was probably meant, or with all of them.

    >>> nearest("stepz", ["steps", "seed"])
    "did you mean 'steps'?"
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"


@contextlib.contextmanager
def naming(path: os.PathLike[str] | str) -> Iterator[None]:
    """Name a file in the operating system's errors about it, where they name none: those of an open file do not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = os.fspath(path)
        raise


@contextlib.contextmanager
def explain_disk_errors(folder: os.PathLike[str] | str) -> Iterator[None]:
    """Turn the operating system's errors of a full, read-only or blocked folder into one line with a remedy."""
    try:
        yield
    except Exception as error:
        code = system_code(error) or 0
        if code in FULL:
            raise ScalerError(f"{folder}: {REMEDIES[errno.ENOSPC]}") from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ScalerError(f"{folder}: not writable ({os.strerror(code)}); choose another folder") from error
        if code in (errno.ENOTDIR, errno.EEXIST):
            raise ScalerError(f"{folder}: there is a file in the way ({os.strerror(code)}); choose another") from error
        raise


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Turn an error in a block that no result depends on, such as a picture, into a warning that begins with `what`."""
    try:
        yield
    except Exception as error:  # of any kind, because no result is lost by it
        logger.warning(f"{what}: {words_of(error)}; no result depends on it")


def words_of(error: BaseException) -> str:
    """Return the message of an error in one line, without a remedy."""
    return " ".join(str(error).split())[:400] or type(error).__name__  # messages of libraries often have several lines


def system_code(error: BaseException) -> int | None:
    """Return the operating system's number of an error; None where it is none of its errors.

    Libraries in Rust (tokenizers, safetensors) raise exceptions of other kinds, and end the text with "(os error 28)".
    """
    if isinstance(error, OSError):
        return error.errno
    found = None if isinstance(error, ScalerError) else re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None


def one_line(error: BaseException) -> str:
    """Return the message of an error in one line; of the operating system's, the file, the reason and a remedy."""
    words = " ".join(str(error).split())  # messages of libraries often have several lines
    if isinstance(error, OSError) and error.strerror is not None:
        named = f"{error.filename or place_of(error)}: {error.strerror} (on {platform.node()})"
        return f"{named}; {remedy_of(error) or ('look at the disk, and run again' if error.filename else 'run again')}"
    if isinstance(error, MemoryError):
        words = f"{words or 'no memory is left'} (on {platform.node()})"
    remedy = remedy_of(error)
    return f"{words[:400]}; {remedy}" if remedy else words or type(error).__name__


def remedy_of(error: BaseException) -> str | None:
    """Return what helps against an error of the operating system, also where Python or PyTorch tells of it."""
    if isinstance(error, MemoryError):
        return REMEDIES[errno.ENOMEM]
    words = str(error) if isinstance(error, RuntimeError) else ""
    of_words = next((remedy for known, remedy in REMEDIES_OF_WORDS.items() if known in words), None)
    return of_words or REMEDIES.get(system_code(error) or 0)


def place_of(error: BaseException) -> str:
    """Return the last line of this project's source that an error came through."""
    frames = traceback.extract_tb(error.__traceback__)
    mine = [frame for frame in frames if frame.filename.startswith(_PACKAGES)] or frames
    return f"{os.path.relpath(mine[-1].filename, _SOURCE)}, line {mine[-1].lineno}" if mine else "unknown place"


def status_of(error: Exception) -> int:
    """Return the exit status for an error: "try again" where the same command may succeed another time."""
    if isinstance(error, ScalerError):
        return error.status
    return EXIT_TRY_AGAIN if isinstance(error, OSError) and error.errno in PASSING else EXIT_BAD_INPUT

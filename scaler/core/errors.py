"""Errors that a user can act on, and how they become one line and an exit status."""

from __future__ import annotations

import contextlib
import difflib
import errno
import logging
import os
import platform
from collections.abc import Iterable, Iterator

logger = logging.getLogger(__name__)
EXIT_BAD_INPUT = 2
EXIT_TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: the same command resumes the run
EXIT_INTERRUPTED = 130  # 128 + SIGINT, the shell's convention
# error numbers of shared disks that are away for a while
PASSING = {errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENOTCONN, errno.EREMOTEIO}


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
def explain_disk_errors(folder: os.PathLike[str] | str) -> Iterator[None]:
    """Turn the operating system's errors of a full, read-only or blocked folder into one line with a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ScalerError(
                f"{folder}: the disk is full; nothing half-written counts; free some space and run again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise ScalerError(f"{folder}: not writable ({error.strerror}); choose another folder") from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise ScalerError(f"{folder}: there is a file in the way ({error.strerror}); choose another") from error
        raise


@contextlib.contextmanager
def dispensable(what: str) -> Iterator[None]:
    """Turn an error in a block that no result depends on, such as a picture, into a warning that begins with `what`."""
    try:
        yield
    except Exception as error:  # of any kind, because no result is lost by it
        logger.warning(f"{what}: {one_line(error) or type(error).__name__}; no result depends on it")


def one_line(error: Exception) -> str:
    """Return the message of an error in one line; of the operating system's, the file, the reason and the machine."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror} (on {platform.node()}); look at the disk, and run again"
    return " ".join(str(error).split())  # messages of libraries often have several lines


def status_of(error: Exception) -> int:
    """Return the exit status for an error: "try again" where the same command may succeed another time."""
    if isinstance(error, ScalerError):
        return error.status
    return EXIT_TRY_AGAIN if isinstance(error, OSError) and error.errno in PASSING else EXIT_BAD_INPUT

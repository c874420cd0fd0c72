"""Read lists from the command line, and end a command with one line and an exit status."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

from scaler.core.errors import EXIT_INTERRUPTED, ScalerError, one_line, status_of


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command's `main`: an error of input or files, or Ctrl-C, is one line and a non-zero exit status."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except ScalerError as error:
            print("error:", one_line(error), file=sys.stderr, flush=True)
            sys.exit(error.status)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C; nothing half-done counts as done", file=sys.stderr, flush=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:  # the reader of our output (head, less) has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except OSError as error:
            if error.filename is None:  # no file of the user's
                raise
            print("error:", one_line(error), file=sys.stderr, flush=True)
            sys.exit(status_of(error))

    return run


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers with commas between, each once: "1,2,4" or "5e7,5e8". Raises ScalerError for anything else."""
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = [0.5]
    if not all(number.is_integer() for number in found):
        raise ScalerError(f"{text!r}, but whole numbers with commas between are needed, such as 1,2,4")
    return tuple(dict.fromkeys(map(int, found)))


def words(text: str) -> tuple[str, ...]:
    """The same with words."""
    return tuple(dict.fromkeys(text.split(",")))

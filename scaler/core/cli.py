"""Parse every command line in one style, and end a command with one line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn

from scaler.core import commands, log
from scaler.core.errors import EXIT_INTERRUPTED, ScalerError, nearest, one_line, remedy_of, status_of

logger = logging.getLogger(__name__)


def command(main: Callable[[], None]) -> Callable[[], None]:
    """Decorate a command's `main`: an error of input or files, or Ctrl-C, is one line and a non-zero exit status."""

    @functools.wraps(main)
    def run() -> None:
        log.write_what_can_be_encoded()
        try:
            main()
        except KeyboardInterrupt:
            print("stopped by Ctrl-C; nothing half-done counts as done", file=sys.stderr, flush=True)
            sys.exit(EXIT_INTERRUPTED)
        except BrokenPipeError:  # the reader of our output (head, less) has gone
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        except Exception as error:
            if not isinstance(error, ScalerError | OSError) and remedy_of(error) is None:
                raise  # a bug, whose traceback is wanted
            if not isinstance(error, ScalerError):
                logger.debug("the error came from here", exc_info=True)
            print("error:", one_line(error), file=sys.stderr, flush=True)
            sys.exit(status_of(error))

    return run


@contextlib.contextmanager
def progress_beside(as_json: bool) -> Iterator[None]:
    """Print progress on standard error where standard output is for JSON alone."""
    with contextlib.redirect_stdout(sys.stderr) if as_json else contextlib.nullcontext():
        yield


class _Missing(ScalerError):
    """An error that names arguments which a command line lacks."""


class Parser(argparse.ArgumentParser):
    """The parser of one command.

    An option is written with underscores or with dashes (`--run_dir`, `--run-dir`), and options may stand between
    positional arguments. An error is a ScalerError of one line, which names the nearest option, or the command whose
    option it is; all missing arguments are named together.

    Args:
        name: of the command, as in `scaler NAME`.
        description: the docstring of the command's module.
    """

    def __init__(self, name: str, description: str | None) -> None:
        super().__init__(
            prog=f"scaler {name}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,  # two spellings make every abbreviation ambiguous
        )
        self.name = name
        # of argparse, which takes -1 for a value, but -1e-5 and -1,2 for options
        self._negative_number_matcher = re.compile(r"-\.?\d")
        messages = self.add_argument_group("messages")
        option = functools.partial(messages.add_argument, dest="verbosity", action="store_const")
        option("-v", "--verbose", const=1, default=0, help="print what libraries and the launcher say, too")
        option("-q", "--quiet", const=-1, help="print results, warnings and errors alone")

    def add_json(self, what: str) -> None:
        """Add the option `--json`; `what` says what is printed as JSON."""
        self.add_argument("--json", action="store_true", help=f"print {what} as JSON, for programs")

    def add_local_rank(self) -> None:
        """Accept the option that the deepspeed launcher adds to every command that it starts."""
        self.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)

    def option_names(self) -> set[str]:
        """Return all options as they are shown, such as "--run_dir"."""
        return {
            name
            for action in self._actions
            if action.help != argparse.SUPPRESS
            for name in action.option_strings
            if name.startswith("--")
        }

    def parse(self, given: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the words of a command line, by default those of this process, and set up logging.

        Raises: ScalerError for an unknown option or value, and for missing arguments.
        """
        words = _with_underscores(sys.argv[1:] if given is None else given)
        for word in words[: words.index("--")] if "--" in words else words:
            option = word.partition("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                raise ScalerError(self._unknown(option))
        try:
            arguments, unknown = self.parse_known_intermixed_args(words)
        except _Missing:  # options are taken first, so that missing positional arguments may not be among them
            self.parse_known_args(words)
            raise
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        log.set_up(arguments.verbosity)
        return arguments

    def error(self, message: str) -> NoReturn:
        """Raise a ScalerError that names the command and, for what argparse itself refuses, where the options are."""
        if message.startswith("the following arguments are required: "):
            raise _Missing(f"{self.prog}: {message}; {self._help()}")
        refused = re.fullmatch(r"argument ([^:]+): (.*)", message, re.DOTALL)
        if refused is None:
            raise ScalerError(f"{self.prog}: {message}; {self._help()}")
        option, reason = refused[1].split("/")[0], refused[2]
        if reason.startswith(("invalid", "expected", "ignored", "not allowed", "ambiguous")):
            raise ScalerError(f"{self.prog}: {option}: {reason}; {self._help()}")
        raise ScalerError(f"{option} {reason}")

    def _help(self) -> str:
        return f"see `{self.prog} --help`"

    def _unknown(self, option: str) -> str:
        others = [f"`scaler {name}`" for name in commands.COMMANDS if option in parser_of(name).option_names()]
        if others:
            return f"{self.prog}: {option} is an option of {', '.join(others)}, not of this command; {self._help()}"
        hint = nearest(option, self.option_names())
        return f"{self.prog}: unknown option {option}; {hint if 'mean' in hint else self._help()}"


def parser_of(name: str) -> Parser:
    """Import a command, and return its parser; no command loads a large library for that."""
    made: Parser = commands.module_of(name).parser()
    return made


def _with_underscores(words: Sequence[str]) -> list[str]:
    """Spell all options up to "--" with underscores: --run-dir=a-b becomes --run_dir=a-b."""
    found = [*map(str, words)]
    for number, word in enumerate(found):
        if word == "--":
            break
        if word.startswith("--"):
            option, equals, value = word[2:].partition("=")
            found[number] = "--" + option.replace("-", "_") + equals + value
    return found


def numbers(text: str, least: int = 1) -> tuple[int, ...]:
    """Read whole numbers with commas between them, each once: "1,2,4" or "5e7,5e8".

    Raises: argparse.ArgumentTypeError for anything else, and for a number below `least`.
    """
    try:
        found = [float(number) for number in text.split(",")]
    except ValueError:
        found = [0.5]
    if not all(number.is_integer() and number >= least for number in found):
        raise argparse.ArgumentTypeError(
            f"{text!r}: whole numbers from {least} on with commas between them are needed, such as 1,2,4"
        )
    return tuple(dict.fromkeys(map(int, found)))


def words(text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Read words with commas between them, each once. Raises argparse.ArgumentTypeError for one that is not known."""
    found = tuple(dict.fromkeys(text.split(",")))
    for word in found:
        if word not in known:
            raise argparse.ArgumentTypeError(f"{word}: known are {' and '.join(known)}")
    return found


def at_least(least: int) -> Callable[[str], int]:
    """Return the type of an option that takes a whole number from `least` on."""

    def read(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r}: a whole number is needed") from None
        if value < least:
            raise argparse.ArgumentTypeError(f"{value}: {least} is the least")
        return value

    return read

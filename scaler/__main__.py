# PYTHON_ARGCOMPLETE_OK
"""Run a command of scaler, or list all of them."""

from __future__ import annotations

import os
import sys

from scaler import __version__
from scaler.core import commands
from scaler.core.cli import command, parser_of
from scaler.core.errors import ScalerError, nearest

USAGE = """usage: scaler COMMAND ...    `scaler COMMAND --help` explains a command; `scaler --version`"""


@command
def main() -> None:
    """Run the command that the first word names."""
    if "_ARGCOMPLETE" in os.environ:
        complete()
        return
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help"):
        print(f"{USAGE}\n\n{commands.listing()}")
    elif name == "--version":
        print(f"scaler {__version__}")
    elif name in commands.COMMANDS:
        sys.argv = [f"scaler {name}", *rest]
        commands.module_of(name).main()
    else:
        raise ScalerError(f"scaler: unknown command {name!r}; {nearest(name, commands.COMMANDS)}")


def complete() -> None:
    """Answer the shell's TAB: names of commands first, then the options of the one that is named."""
    import argparse

    import argcomplete

    words = os.environ["COMP_LINE"][: int(os.environ["COMP_POINT"])].split(" ")
    parser: argparse.ArgumentParser = argparse.ArgumentParser("scaler", allow_abbrev=False)
    if len(words) > 2 and words[1] in commands.COMMANDS:
        parser = parser_of(words[1])
        os.environ["_ARGCOMPLETE"] = "2"  # the command's options begin behind its name, the second word
    else:
        parser.add_argument("--version", action="store_true")
        parser.add_argument("command", choices=list(commands.COMMANDS))
    argcomplete.autocomplete(parser)


if __name__ == "__main__":
    main()

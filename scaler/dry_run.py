"""Describe a training without starting it: model, batch, memory, length and what it would write.

Takes the options of `scaler train`. Prepared data is not needed: without it, the vocabulary size is the recipe's, and
the figures that depend on the rows are left out and named.
"""

from __future__ import annotations

from scaler.config.command_line import run_parser
from scaler.core.cli import Parser, command
from scaler.distributed.world import detect_world


def parser() -> Parser:
    """Return the command's parser."""
    made = run_parser("dry-run", __doc__)
    made.add_json("the description")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.planning import dry_run

    dry_run.show(arguments, detect_world())


if __name__ == "__main__":
    main()

"""Measure nodes for the plan.

`scaler calibrate node.yaml --recipe aws_roberta [--hardware dgx-h100]` is started like a training, on all ranks of one
node or of several. Each rank takes steps of the real engine by itself, with random tokens and two sizes of micro-batch,
which give the time of a row, of a micro-batch and of an update. Then the ranks measure their links. What cannot be
measured here, such as the network between nodes on one node, and prices, is taken from --hardware. It needs no data.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from scaler.config.command_line import add_allow_untested, add_ds_config, add_overrides, add_recipe
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core import log
from scaler.core.cli import Parser, command
from scaler.core.errors import ScalerError
from scaler.distributed.world import detect_world


def two_sizes(text: str) -> tuple[int, int]:
    """Read two rising numbers with a comma between them. Raises argparse.ArgumentTypeError for anything else."""
    try:
        few, many = (int(part) for part in text.split(","))
    except ValueError:
        few, many = 0, 0
    if not 0 < few < many:
        raise argparse.ArgumentTypeError(f"{text!r}: two rising numbers are needed, such as 2,8")
    return few, many


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("calibrate", __doc__)
    made.add_argument("out", type=Path, metavar="OUT.yaml", help="file to write, for `scaler plan --hardware`")
    add_recipe(made, DEFAULT_RECIPE)
    add_ds_config(made)
    add_allow_untested(made)
    made.add_argument(
        "--hardware", metavar="NAME", help="name or YAML file of what cannot be measured here (default: nothing)"
    )
    made.add_argument(
        "--rows",
        type=two_sizes,
        metavar="FEW,MANY",
        help="rows of the two micro-batches (default: a quarter of the recipe's largest, and the largest)",
    )
    made.add_argument("--seconds", type=float, default=30.0, help="time that each rank takes steps, in s (default: 30)")
    made.add_json("the measured hardware")
    made.add_local_rank()
    add_overrides(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    if not 0 < arguments.seconds < math.inf:
        raise ScalerError(f"--seconds {arguments.seconds:g}: give more than 0")
    if arguments.out.suffix != ".yaml" or not arguments.out.parent.is_dir():
        raise ScalerError(f"{arguments.out}: a file *.yaml in a folder that exists is needed; name another")
    from scaler.engine import process_group
    from scaler.planning import calibrate

    world = detect_world()
    log.set_up(arguments.verbosity, world.rank)
    calibrate.run(arguments, world)
    process_group.leave()


if __name__ == "__main__":
    main()

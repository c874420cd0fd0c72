"""Measure how a training scales over ranks and nodes.

`scaler study FOLDER --recipe NAME --ranks_per_node 1,2 --stages 0,2` measures a grid of points one after another on
this machine; slurm/scaling_study.sh measures it on many nodes. A point is a number of ranks, a ZeRO stage and the rest
of a setting. The same command continues a study that was stopped.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from scaler.config.command_line import add_ds_config, add_overrides, add_recipe
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core.cli import Parser, command, numbers, words
from scaler.core.errors import ScalerError
from scaler.studies.folder import SERIES, add_steps


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("study", __doc__)
    made.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the study, new or to continue")
    add_recipe(made, None, f"the study's, or {DEFAULT_RECIPE}")
    add_ds_config(made)
    grid = made.add_argument_group("the grid, with commas between several values")
    option = functools.partial(grid.add_argument, metavar="N,N,...")
    option("--nodes", type=numbers, default=(1,), help="nodes; more than 1 need SLURM (default: 1)")
    option("--ranks_per_node", type=numbers, help="ranks on each node (default: the GPUs of this machine, or 1)")
    option(
        "--stages",
        type=functools.partial(numbers, least=0),
        default=(0, 1, 2, 3),
        help="ZeRO stages (default: 0,1,2,3)",
    )
    grid.add_argument(
        "--offload",
        choices=("no", "yes", "both"),
        default="no",
        help="keep the optimizer's state in the host's memory (default: no)",
    )
    grid.add_argument(
        "--series",
        type=words,
        default=("strong",),
        metavar="KIND,KIND",
        help="strong: the recipe's batch on all sizes; weak: the batch grows with the ranks (default: strong)",
    )
    option("--micro_rows", type=numbers, help="rows of a micro-batch (default: the most up to training.max_micro_rows)")
    option("--buckets", type=numbers, help="elements in a reduce_bucket_size (default: that of the configuration)")
    add_steps(made)
    made.add_argument(
        "--write_only", action="store_true", help="write the study's folder and print the points, but measure none"
    )
    made.add_json("a list with an object for each point")
    add_overrides(made)
    return made


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    arguments = parser().parse(given)
    for stage in arguments.stages:
        if stage not in range(4):
            raise ScalerError(f"--stages {stage}: ZeRO has the stages 0, 1, 2 and 3")
    for series in arguments.series:
        if series not in SERIES:
            raise ScalerError(f"--series {series}: known are {' and '.join(SERIES)}")
    return arguments


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    from scaler.studies.run import run

    run(arguments)


if __name__ == "__main__":
    main()

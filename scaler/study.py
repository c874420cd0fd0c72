"""Measure how a training scales over ranks and nodes.

`scaler study FOLDER --recipe NAME --ranks_per_node 1,2 --stages 0,2` measures a grid of points one after another on
this machine; slurm/scaling_study.sh measures it on many nodes. A point is a number of ranks, a ZeRO stage and the rest
of a setting. The same command continues a study that was stopped.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import get_args

from scaler.config.command_line import add_allow_untested, add_ds_config, add_overrides, add_recipe
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core.cli import Parser, command, numbers, words
from scaler.studies.folder import Series, add_steps


def _stages(text: str) -> tuple[int, ...]:
    stages = numbers(text, least=0)
    if max(stages) > 3:
        raise argparse.ArgumentTypeError(f"{max(stages)}: ZeRO has the stages 0, 1, 2 and 3")
    return stages


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("study", __doc__)
    made.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the study, new or to continue")
    add_recipe(made, None, f"the study's, or {DEFAULT_RECIPE}")
    add_ds_config(made)
    add_allow_untested(made)
    grid = made.add_argument_group("the grid, with commas between several values")
    option = functools.partial(grid.add_argument, metavar="N,N,...")
    option("--nodes", type=numbers, default=(1,), help="nodes; more than 1 need SLURM (default: 1)")
    option("--ranks_per_node", type=numbers, help="ranks on each node (default: the GPUs of this machine, or 1)")
    option("--stages", type=_stages, default=(0, 1, 2, 3), help="ZeRO stages (default: 0,1,2,3)")
    grid.add_argument(
        "--offload",
        choices=("no", "yes", "both"),
        default="no",
        help="keep the optimizer's state in the host's memory (default: no)",
    )
    grid.add_argument(
        "--series",
        type=functools.partial(words, known=get_args(Series)),
        default=("strong",),
        metavar="KIND,KIND",
        help="strong: the recipe's batch on all sizes; weak: the batch grows with the ranks (default: strong)",
    )
    option("--micro_rows", type=numbers, help="rows of a micro-batch (default: the most up to training.max_micro_rows)")
    option("--buckets", type=numbers, help="elements in a reduce_bucket_size (default: that of the configuration)")
    add_steps(made)
    write_only = "write the study's folder and print the points, but measure none"
    made.add_argument("--write_only", action="store_true", help=write_only)
    made.add_json("a list with an object for each point")
    add_overrides(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.studies.run import run

    run(arguments)


if __name__ == "__main__":
    main()

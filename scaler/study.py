"""Measure how a training scales: `python -m scaler.study FOLDER --recipe NAME --ranks_per_node 1,2 --stages 0,2`.

A point is a number of ranks, a ZeRO stage and the rest of a setting; the grid of all that are asked for is measured one
after another on this machine, or on many nodes by slurm/scaling_study.sh. Stopped or killed, the same command goes on.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path

import torch

from scaler.config.deepspeed import DEFAULT_DS_CONFIG
from scaler.core.cli import command, numbers, words
from scaler.core.errors import ScalerError
from scaler.studies import folder as study_folder
from scaler.studies import point as study_point
from scaler.studies.folder import SERIES
from scaler.studies.grid import OFFLOAD, begin
from scaler.studies.run import measure, open_points

SCRIPT = "sbatch slurm/scaling_study.sh, with the same arguments"


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scaler.study", description=__doc__, formatter_class=style)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the study, new or to go on with")
    parser.add_argument("--recipe", help="name or YAML file (the study's, or quickstart)")
    parser.add_argument(
        "--deepspeed_config", type=Path, default=DEFAULT_DS_CONFIG, help="what all points share (ds_configs/zero2.json)"
    )
    grid = parser.add_argument_group("the grid, each with commas between")
    grid.add_argument("--nodes", type=numbers, default=(1,), help="(1); more are only defined here, for SLURM")
    grid.add_argument("--ranks_per_node", type=numbers, help="(the GPUs of this machine, or 1)")
    grid.add_argument("--stages", type=numbers, default=(0, 1, 2, 3), help="of ZeRO (0,1,2,3)")
    grid.add_argument("--offload", choices=OFFLOAD, default="no", help="of the optimizer's state to the CPU (no)")
    grid.add_argument(
        "--series",
        type=words,
        default=("strong",),
        help="strong: the recipe's batch on all sizes; weak: "
        "it is that of the smallest, and grows with the ranks (strong)",
    )
    grid.add_argument("--micro_rows", type=numbers, help="rows of a micro-batch (the most up to max_micro_rows)")
    grid.add_argument("--buckets", type=numbers, help="numbers in a reduce_bucket_size (that of the configuration)")
    study_point.add_steps(parser)
    parser.add_argument("--define_only", action="store_true", help="make the folder, and print what is to be measured")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    check(parsed)
    return parsed


def check(arguments: argparse.Namespace) -> None:
    """Raises ScalerError for what no study can be made of."""
    for name in ("nodes", "ranks_per_node", "micro_rows", "buckets"):
        for value in getattr(arguments, name) or ():
            if value < 1:
                raise ScalerError(f"--{name} {value}: 1 is the least")
    for stage in arguments.stages:
        if stage not in range(4):
            raise ScalerError(f"--stages {stage}: ZeRO has the stages 0, 1, 2 and 3")
    for series in arguments.series:
        if series not in SERIES:
            raise ScalerError(f"--series {series}: known are {' and '.join(SERIES)}")
    study_point.check_steps(arguments)


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    gpus = torch.cuda.device_count()
    arguments.ranks_per_node = arguments.ranks_per_node or (gpus or 1,)
    here = not arguments.define_only and max(arguments.nodes) == 1
    if here and 0 < gpus < max(arguments.ranks_per_node):
        raise ScalerError(f"--ranks_per_node {max(arguments.ranks_per_node)}: this machine has {gpus} GPUs, one a rank")
    lock, left_out = begin(arguments)
    with closing(lock):
        for what, why in left_out.items():
            print(f"left out: {what}: {why}", file=sys.stderr, flush=True)
        if here:
            measure(arguments)
            return
        to_do = open_points(study_folder.read(arguments.folder))
        print(f"{arguments.folder}: {len(to_do)} points to measure; on nodes of SLURM: {SCRIPT}", file=sys.stderr)
        for entry in to_do:
            print(entry.point.name)


if __name__ == "__main__":
    main()

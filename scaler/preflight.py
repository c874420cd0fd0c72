"""Check all nodes before a run begins: `srun python -m scaler.preflight --recipe NAME --run_dir runs/NAME`.

Takes train.py's command line, and is started in the same way, on the same ranks. Every rank leaves a report in
RUN_DIR/preflight/; the first one compares them, prints a table of the nodes, and names those that are bad.

Status: 0 all is well; 2 a setting is wrong, on all nodes; 75 some nodes are bad: start again without them.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

if not __package__:  # run as a file: find the package beside it, and let no file here shadow a library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scaler.cluster.preflight import GRACE_SECONDS, Rank, conclude, wait_for_the_first
from scaler.config.command_line import parser as command_line_parser
from scaler.core import slurm
from scaler.core.cli import command
from scaler.core.errors import explain_disk_errors
from scaler.distributed.world import detect_world, launch_id
from scaler.training import run_folder


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line: train.py's, and a few words more."""
    parser = command_line_parser("python -m scaler.preflight", __doc__)
    parser.add_argument("--gpu", help="what every device's name must have in it, such as H100")
    parser.add_argument(
        "--slowest_share", type=float, default=0.5, help="of the median speed, below which a node is bad"
    )
    parser.add_argument("--seconds", type=float, default=120.0, help="that each phase may take (120)")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.run_dir is None:
        parser.error("--run_dir is needed: the ranks leave their reports there")
    return parsed


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    world = detect_world()
    folder = arguments.run_dir / run_folder.PREFLIGHT / launch_id()
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_first and not slurm.job_facts():  # whose steps have folders of their own
            for path in folder.iterdir():  # of a start by hand before
                if time.time() - path.stat().st_mtime > GRACE_SECONDS:
                    path.unlink(missing_ok=True)
    rank = Rank(arguments, world, folder)

    def give_up() -> None:
        os._exit(conclude(rank, GRACE_SECONDS) if world.is_first else wait_for_the_first(rank))

    rank.go(give_up)
    status = conclude(rank, arguments.seconds + GRACE_SECONDS) if world.is_first else wait_for_the_first(rank)
    sys.stdout.flush()
    os._exit(status)  # a process group that never met does not end by itself


if __name__ == "__main__":
    main()

"""Check all nodes before a run begins.

`srun python -m scaler.preflight --recipe NAME --run_dir runs/NAME` takes the options of `scaler train`, and is started
in the same way on the same ranks. Every rank leaves a report in RUN_DIR/preflight/; the first one compares them, prints
a table of the nodes, and names those that are bad.

Exit status: 0 all is well; 2 a setting is wrong, on all nodes; 75 some nodes are bad: start again without them.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: find the package beside it, and let no file here shadow a library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scaler.config.command_line import run_parser
from scaler.core import log
from scaler.core.cli import Parser, command
from scaler.core.errors import ScalerError
from scaler.distributed.world import detect_world


def parser() -> Parser:
    """Return the command's parser."""
    made = run_parser("preflight", __doc__)
    option = made.add_argument
    option("--gpu", metavar="NAME", help="text that every device's name must contain, such as H100 (default: any)")
    option(
        "--slowest_share",
        type=float,
        default=0.5,
        metavar="FRACTION",
        help="report a node that is slower than this fraction of the median (default: %(default)s)",
    )
    option("--seconds", type=float, default=120.0, help="time limit of each phase, in s (default: 120)")
    made.add_json("the result")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    if arguments.run_dir is None:
        raise ScalerError("--run_dir is needed: the ranks leave their reports there")
    if not 0 < arguments.seconds < math.inf:
        raise ScalerError(f"--seconds {arguments.seconds:g}: give more than 0")
    from scaler.cluster.preflight import run

    world = detect_world()
    log.set_up(arguments.verbosity, world.rank)
    status = run(arguments, world)
    sys.stdout.flush()
    os._exit(status)  # a process group that never met does not end by itself


if __name__ == "__main__":
    main()

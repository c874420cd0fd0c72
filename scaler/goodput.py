"""Simulate which part of many nodes' time failures and stragglers leave for training.

For each number of nodes: the fraction of all node-seconds that is useful work, where the rest goes, and which interval
between two checkpoints leaves most, beside Young's and Daly's. The batch grows with the nodes; a step's time does not.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path

from scaler.config.training_sections import Checkpoint
from scaler.core.cli import Parser, command, numbers
from scaler.core.errors import ScalerError
from scaler.planning.failures import MTBF_NODE_HOURS

RANGES = {
    **dict.fromkeys(("steps", "every", "elastic"), (1, 1e9)),
    **dict.fromkeys(("gpus_per_node", "runs"), (1, 1e4)),
    **dict.fromkeys(("step_seconds", "mtbf_node_hours"), (1e-6, 1e9)),
    **dict.fromkeys(("save_seconds", "write_seconds", "restart_seconds", "replacement_seconds", "seed"), (0, 1e9)),
}
MOST_NODES = 999_999


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("goodput", __doc__)
    option = made.add_argument
    nodes, counts = (1, 8, 64, 512, 2048), "numbers of nodes (default: 1,8,64,512,2048)"
    option("--nodes", type=numbers, default=nodes, metavar="N,N,...", help=counts)
    option("--gpus_per_node", type=int, default=8, metavar="N", help="ranks of each node (default: %(default)s)")
    seconds = functools.partial(option, type=float, metavar="S")
    seconds("--step_seconds", required=True, help="time of a step of a rank, in s, at its median")
    option("--steps", type=int, required=True, metavar="N", help="optimizer steps of the run")
    every = "optimizer steps between two checkpoints (default: %(default)s)"
    option("--every", type=int, default=Checkpoint.every, metavar="STEPS", help=every)
    seconds("--save_seconds", required=True, help="time that training waits for a checkpoint, in s")
    seconds("--write_seconds", help="from the beginning of a save until it counts, in s (default: --save_seconds)")
    seconds("--restart_seconds", required=True, help="from a failure to the first step after it, in s")
    seconds("--replacement_seconds", default=0.0, help="until a failed node is back, in s (default: 0, with spares)")
    mtbf = "hours between a node's failures (default: %(default).0f, of Llama 3 405B: 419 in 54 days on 2,048 nodes)"
    option("--mtbf_node_hours", type=float, default=MTBF_NODE_HOURS, metavar="H", help=mtbf)
    deviation = (
        "relative standard deviation of step times, or a CSV file of measured ones: node,seconds, a line for each rank "
        "and step (default: 0)"
    )
    option("--step_deviation", default="0", metavar="D", help=deviation)
    elastic = "continue with fewer nodes; rows per step that a rank takes with all nodes (default: wait for a node)"
    option("--elastic", type=int, metavar="ROWS", help=elastic)
    option("--runs", type=int, default=200, metavar="N", help="runs to simulate (default: %(default)s)")
    option("--seed", type=int, default=0, metavar="N", help="seed of the simulation (default: %(default)s)")
    made.add_json("a list with an object for each number of nodes")
    option("--out", type=Path, metavar="DIR", help="folder for goodput.json and goodput.png (default: none)")
    return made


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    arguments = parser().parse(given)
    if arguments.write_seconds is None:
        arguments.write_seconds = arguments.save_seconds
    if max(arguments.nodes) > MOST_NODES:
        raise ScalerError(f"--nodes {max(arguments.nodes)}: {MOST_NODES:,} are the most")
    for name, (least, most) in RANGES.items():
        value = getattr(arguments, name)
        if value is not None and not least <= value <= most:
            raise ScalerError(f"--{name} {value}: give a number from {least:g} to {most:g}")
    if arguments.write_seconds < (waited := arguments.save_seconds):
        raise ScalerError(
            f"--write_seconds {arguments.write_seconds:g}: they begin with the {waited:g} s that training waits "
            "(--save_seconds); give as many or more"
        )
    if arguments.every > arguments.steps:
        raise ScalerError(f"--every {arguments.every}: a run has {arguments.steps} steps; give as many or fewer")
    return arguments


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    from scaler.planning.goodput import run

    run(arguments)


if __name__ == "__main__":
    main()

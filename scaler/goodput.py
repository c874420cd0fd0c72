"""What failures and stragglers leave of many nodes' time, by simulation: `python -m scaler.goodput --step_seconds ...`.

For each number of nodes: the share of all node-seconds that is useful work, where the rest goes, and which interval
between two checkpoints leaves most, beside Young's and Daly's. The batch grows with the nodes, a step's time does not.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

from scaler.config.training_sections import Checkpoint
from scaler.core.cli import command
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import write_json
from scaler.planning import failures
from scaler.planning.failures import Spread
from scaler.planning.goodput import draw, of_nodes, render

RANGES = {
    **dict.fromkeys(("steps", "every", "elastic"), (1, 1e9)),
    **dict.fromkeys(("gpus_per_node", "runs"), (1, 1e4)),
    **dict.fromkeys(("step_seconds", "mtbf_node_hours"), (1e-6, 1e9)),
    **dict.fromkeys(("save_seconds", "write_seconds", "restart_seconds", "replacement_seconds", "seed"), (0, 1e9)),
}


def node_counts(text: str) -> list[int]:
    """The numbers in "1,8,64". Raises ScalerError for anything else."""
    if not re.fullmatch(r"[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*", text):
        raise ScalerError(f"--nodes {text}: give whole numbers from 1 to 999,999 with commas between, such as 1,8,64")
    return [int(number) for number in text.split(",")]


def spread_of(text: str) -> Spread:
    """The spread that a number or a file's name means. Raises ScalerError where it means none."""
    try:
        deviation = float(text)
    except ValueError:
        return failures.read_spread(Path(text))
    if not 0 <= deviation <= 1:
        raise ScalerError(f"--spread {text}: give a relative standard deviation from 0 to 1, or a CSV file")
    return failures.log_normal(deviation)


def check(arguments: argparse.Namespace) -> None:
    """Raises ScalerError for an option that makes no sense."""
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


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.goodput", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    option = parser.add_argument
    option("--nodes", default="1,8,64,512,2048", metavar="N,N,...", help="how many there are (%(default)s)")
    option("--gpus_per_node", type=int, default=8, help="ranks of each (%(default)s)")
    option("--step_seconds", type=float, required=True, help="of a rank at its median")
    option("--steps", type=int, required=True, help="of a run")
    option("--every", type=int, default=Checkpoint.every, help="steps between two saves (%(default)s)")
    option("--save_seconds", type=float, required=True, help="that training waits for a save")
    option("--write_seconds", type=float, help="from the beginning of a save until it counts (--save_seconds)")
    option("--restart_seconds", type=float, required=True, help="from a failure to the first step after it")
    option("--replacement_seconds", type=float, default=0.0, help="until a failed node is back (0: there are spares)")
    source = "between a node's failures (%(default).0f: Llama 3 405B, 419 in 54 days on 2,048 nodes)"
    option("--mtbf_node_hours", type=float, default=failures.MTBF_NODE_HOURS, help=source)
    meaning = "relative standard deviation of steps (0), or measured ones: CSV, node,seconds, a line a rank and step"
    option("--spread", default="0", metavar="FILE", help=meaning)
    option("--elastic", type=int, metavar="ROWS", help="go on with fewer nodes; rows a step that a rank takes with all")
    option("--runs", type=int, default=200, help="that are simulated (%(default)s)")
    option("--seed", type=int, default=0, help="(%(default)s)")
    option("--json", action="store_true", help="for programs: a list, one object a number of nodes")
    option("--out", type=Path, help="folder for goodput.json and goodput.png")
    arguments = parser.parse_args()
    if arguments.write_seconds is None:
        arguments.write_seconds = arguments.save_seconds
    check(arguments)
    nodes, spread = node_counts(arguments.nodes), spread_of(arguments.spread)
    found = [of_nodes(some, arguments, spread) for some in nodes]
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    if arguments.out:
        with explain_disk_errors(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out / "goodput.json", found)
            draw(found, arguments.out / "goodput.png")


if __name__ == "__main__":
    main()

"""Measure nodes for the plan: `python -m scaler.calibrate node.yaml --recipe aws_roberta [--hardware dgx-h100]`.

Started like a training, on all ranks of one node, or of several. Each rank takes steps of the real engine by itself,
with random tokens, in two sizes of micro-batch: of these come the time of a row, of a micro-batch and of an update.
Then the ranks measure their links. What cannot be measured here stays as --hardware has it, such as the network
between nodes where there is one node, and prices. Needs no data.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scaler.config.deepspeed import DEFAULT_DS_CONFIG
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core.cli import command
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import write_whole
from scaler.distributed.world import detect_world
from scaler.engine import process_group
from scaler.planning.calibrate import described, measure


def _rows(text: str) -> tuple[int, int]:
    try:
        few, many = (int(part) for part in text.split(","))
    except ValueError:
        few, many = 0, 0
    if not 0 < few < many:
        raise argparse.ArgumentTypeError(f"{text!r}, but two rising numbers are needed, as in 2,8")
    return few, many


@command
def main() -> None:
    """Run the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scaler.calibrate", description=__doc__, formatter_class=style)
    parser.add_argument("out", type=Path, help="the YAML file to write, for `python -m scaler.plan --hardware`")
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="name or YAML file (%(default)s)")
    parser.add_argument("--deepspeed_config", type=Path, default=DEFAULT_DS_CONFIG, help="(ds_configs/zero2.json)")
    parser.add_argument("--hardware", help="name or file of what cannot be measured here")
    parser.add_argument(
        "--rows", type=_rows, help="of the two micro-batches (the recipe's largest, and a quarter of it)"
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="that each rank takes steps (30)")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    arguments = parser.parse_intermixed_args()
    if arguments.seconds <= 0:
        raise ScalerError(f"--seconds {arguments.seconds:g}: give more than 0")
    if arguments.out.suffix != ".yaml" or not arguments.out.parent.is_dir():
        raise ScalerError(f"{arguments.out}: a file *.yaml in a folder that is there is needed; name another")
    found = measure(arguments, detect_world())
    if found is not None:
        text = described(found, arguments.recipe)
        with explain_disk_errors(arguments.out.parent):
            write_whole(arguments.out, text)
        print(f"{text}{arguments.out}: for python -m scaler.plan --hardware {arguments.out}")
    process_group.leave()


if __name__ == "__main__":
    main()

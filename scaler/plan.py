"""What more nodes will give: `python -m scaler.plan --recipe aws_roberta --hardware dgx-h100 --nodes 1,2,4,8`.

Memory a rank and time a step for every ZeRO stage and micro-batch on any number of nodes, the best of them, where more
nodes stop paying, and why. Needs no data, no GPU and no DeepSpeed. Figures of the hardware that were not measured are
the makers', times what is usually reached of them; docs/scaling.md has the formulae, and how far they were right.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaler.config.deepspeed import DEFAULT_DS_CONFIG
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core.cli import command
from scaler.planning.plan import NODES, plan, render


def _nodes(text: str) -> tuple[int, ...]:
    try:
        nodes = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        nodes = (0,)
    if nodes[0] < 1:
        raise argparse.ArgumentTypeError(f"{text!r}, but whole numbers from 1 on are needed, as in 1,8,64")
    return nodes


@command
def main() -> None:
    """Run the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scaler.plan", description=__doc__, formatter_class=style)
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help="name or YAML file (%(default)s)")
    parser.add_argument("--deepspeed_config", type=Path, default=DEFAULT_DS_CONFIG, help="(ds_configs/zero2.json)")
    parser.add_argument("--hardware", required=True, help="name of a known kind of node, or a YAML file")
    parser.add_argument("--nodes", type=_nodes, default=NODES, help="as in 1,8,64 (1 to 1,024)")
    parser.add_argument("--weak", action="store_true", help="the recipe's batch is that of each node")
    batch = parser.add_mutually_exclusive_group()
    batch.add_argument("--critical_rows", type=float, help="critical batch, beyond which rows save few steps")
    batch.add_argument("--noise_scale", type=Path, metavar="runs/NAME", help="the same, as it was measured of a run")
    parser.add_argument("--max_hours", type=float, help="find the cheapest that takes no longer")
    parser.add_argument("--max_cost", type=float, help="find the fastest that costs no more")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    arguments = parser.parse_intermixed_args()
    content = plan(arguments)
    print(json.dumps(content, indent=2) if arguments.json else render(content))


if __name__ == "__main__":
    main()

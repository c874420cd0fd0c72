"""Predict time, memory and cost of a recipe on any number of nodes.

`scaler plan --recipe aws_roberta --hardware dgx-h100 --nodes 1,2,4,8` finds memory per rank and time per step for every
ZeRO stage and micro-batch, the best of them, and the number of nodes from which efficiency is low, and why. It needs no
data, no GPU and no DeepSpeed. Figures of the hardware that were not measured are the makers', times what is usually
reached of them; docs/design/cost-model.md has the formulae, and how far they were right.
"""

from __future__ import annotations

import json
from pathlib import Path

from scaler.config.command_line import add_allow_untested, add_ds_config, add_overrides, add_recipe
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core.cli import Parser, command, numbers


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("plan", __doc__)
    add_recipe(made, DEFAULT_RECIPE)
    add_ds_config(made)
    add_allow_untested(made)
    made.add_argument("--hardware", required=True, metavar="NAME", help="name of a known kind of node, or a YAML file")
    made.add_argument(
        "--nodes",
        type=numbers,
        default=tuple(2**power for power in range(11)),
        metavar="N,N,...",
        help="numbers of nodes, such as 1,8,64 (default: the powers of 2 from 1 to 1,024)",
    )
    made.add_argument("--weak", action="store_true", help="take the recipe's batch as that of each node")
    batch = made.add_mutually_exclusive_group()
    batch.add_argument(
        "--critical_rows",
        type=float,
        metavar="ROWS",
        help="critical batch size in rows, beyond which more rows save few steps (default: not considered)",
    )
    batch.add_argument(
        "--noise_scale",
        type=Path,
        metavar="runs/NAME",
        help="run whose measured noise scale gives the critical batch size (default: none)",
    )
    made.add_argument(
        "--max_hours", type=float, metavar="H", help="limit in hours, to find the cheapest (default: none)"
    )
    made.add_argument(
        "--max_cost", type=float, metavar="COST", help="limit in money, to find the fastest (default: none)"
    )
    made.add_json("the plan")
    add_overrides(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.planning.plan import plan, render

    content = plan(arguments)
    print(json.dumps(content, indent=2) if arguments.json else render(content))


if __name__ == "__main__":
    main()

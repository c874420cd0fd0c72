"""How many of a job's nodes can share a batch equally: `python -m scaler.sharing --nodes 7 --ranks_per_node 8 ...`.

The rest is train.py's command line. Prints a number of nodes, the largest that can.
"""

from __future__ import annotations

from scaler.config.batch import nodes_that_share
from scaler.config.command_line import chosen_recipe, parser
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    made = parser("python -m scaler.sharing", __doc__)
    made.add_argument("--nodes", type=int, required=True, help="that there are")
    made.add_argument("--ranks_per_node", type=int, required=True, help="that each of them has")
    arguments = made.parse_intermixed_args()
    _, recipe = chosen_recipe(arguments)
    print(nodes_that_share(recipe.training.rows, arguments.nodes, arguments.ranks_per_node))


if __name__ == "__main__":
    main()

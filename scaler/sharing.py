"""Print how many of a job's nodes can share a batch equally.

`scaler nodes-for-batch --nodes 7 --ranks_per_node 8` takes the options of `scaler train` as well. It prints the
largest number of nodes whose ranks take equally many rows of the recipe's batch.
"""

from __future__ import annotations

from scaler.config.batch import nodes_that_share
from scaler.config.command_line import chosen_recipe, run_parser
from scaler.core.cli import Parser, at_least, command


def parser() -> Parser:
    """Return the command's parser."""
    made = run_parser("nodes-for-batch", __doc__)
    made.add_argument("--nodes", type=at_least(1), required=True, metavar="N", help="number of nodes of the job")
    made.add_argument("--ranks_per_node", type=at_least(1), required=True, metavar="N", help="ranks on each of them")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    _, recipe = chosen_recipe(arguments)
    print(nodes_that_share(recipe.training.rows, arguments.nodes, arguments.ranks_per_node))


if __name__ == "__main__":
    main()

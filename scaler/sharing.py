"""How many of a job's nodes can share a batch equally: `python -m scaler.sharing --nodes 7 --ranks_per_node 8 ...`.

The rest is train.py's command line. Prints a number of nodes, the largest that can.
"""

from __future__ import annotations

from scaler.config.command_line import chosen_recipe, parser
from scaler.core.errors import ScalerError, command


def nodes_that_share(rows: int, nodes: int, ranks_per_node: int) -> int:
    """The most nodes, up to `nodes`, whose ranks take equally many of a batch's rows.

    >>> nodes_that_share(rows=64, nodes=7, ranks_per_node=8)
    4

    Raises: ScalerError where not even one node can.
    """
    for number in range(nodes, 0, -1):
        if rows % (number * ranks_per_node) == 0:
            return number
    raise ScalerError(
        f"training.rows={rows} cannot be shared equally by the {ranks_per_node} ranks of a node; lower RANKS_PER_NODE "
        f"in slurm/env.sh, or take a multiple of {ranks_per_node} rows"
    )


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

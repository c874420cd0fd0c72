"""Prepare all data of a recipe, each stage only if it is not up to date: `python -m data_prep --recipe quickstart`.

Started by `mpiexec -n 8` or `srun --mpi=pmi2`, the same command shares the work between all ranks.
"""

from __future__ import annotations

import argparse

from data_prep.pipeline.workers import worker_pool
from data_prep.prepared.prepare import prepare
from scaler.config.recipe import DEFAULT_RECIPE, load
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"name or YAML file ({DEFAULT_RECIPE})")
    parser.add_argument("--processes", type=int, help="that share the work (one a core)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    arguments = parser.parse_intermixed_args()
    with worker_pool(arguments.processes) as pool:
        prepare(load(arguments.recipe, arguments.overrides), pool, arguments.processes)


if __name__ == "__main__":
    main()

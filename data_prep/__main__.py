"""Prepare all data of a recipe, each stage only if it is not up to date.

`scaler prepare --recipe quickstart` makes corpus, clean text, deduplicated text, tokenizer, shards, word vectors and
rows. Started by `mpiexec -n 8` or `srun --mpi=pmi2`, the same command shares the work among all ranks.
"""

from __future__ import annotations

from data_prep.pipeline.options import add_processes
from scaler.config.command_line import add_overrides, add_recipe
from scaler.config.recipe import DEFAULT_RECIPE, load
from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("prepare", __doc__)
    add_recipe(made, DEFAULT_RECIPE)
    add_processes(made)
    add_overrides(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.pipeline.workers import worker_pool
    from data_prep.prepared.prepare import prepare

    with worker_pool(arguments.processes) as pool:
        prepare(load(arguments.recipe, arguments.overrides), pool, arguments.processes)


if __name__ == "__main__":
    main()

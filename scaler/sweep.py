"""Search hyperparameters of a pretraining.

`scaler sweep FOLDER --space KEY=RANGE ...`: a trial is a training, and trial 0 has the recipe's own values. Poor trials
are stopped by successive halving, the others ranked by their held-out loss. The same command continues a sweep that was
stopped, and joins one that is at work, also on other machines. Ranges: key=low:high, key=log:low:high, 'key=[a, b, c]'.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from scaler.config.command_line import add_allow_untested, add_ds_config, add_overrides, add_recipe
from scaler.config.recipe import DEFAULT_RECIPE
from scaler.core.cli import Parser, at_least, command
from scaler.core.errors import ScalerError


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("sweep", __doc__)
    made.add_argument("folder", type=Path, metavar="FOLDER", help="folder of the sweep, new or to continue")
    add_recipe(made, DEFAULT_RECIPE)
    add_ds_config(made, None)
    add_allow_untested(made)
    option = made.add_argument
    option("--space", action="append", required=True, metavar="KEY=RANGE", help="range of a key; give it once a key")
    option("--trials", type=at_least(1), default=16, help="trials in all (default: %(default)s)")
    option("--workers", type=at_least(1), default=1, help="trials at work at a time (default: %(default)s)")
    option("--ranks", type=at_least(1), default=1, help="ranks of each trial, on this machine (default: %(default)s)")
    made.add_json("the results")
    add_overrides(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    if importlib.util.find_spec("optuna") is None:
        raise ScalerError("a sweep needs optuna; install it with `pip install '.[sweep]'`")
    from scaler.sweeps.sweep import run

    run(arguments)


if __name__ == "__main__":
    main()

"""Search hyperparameters of a pretraining: `python -m scaler.sweep FOLDER --space KEY=RANGE ...`.

A trial is a training; trial 0 has the recipe's own values. Poor ones are stopped by successive halving, the others
ranked by their held-out loss. The same command goes on with a sweep that was stopped, and joins one that is at work, on
other machines, too. Ranges: key=low:high, key=log:low:high, 'key=[a, b, c]'. docs/sweep.md has an example.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from scaler.config import recipe
from scaler.core.cli import command
from scaler.core.errors import ScalerError
from scaler.sweeps.sweep import run


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.sweep", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="of the sweep, new or one to go on with")
    parser.add_argument("--recipe", default=recipe.DEFAULT_RECIPE, help=f"name or file ({recipe.DEFAULT_RECIPE})")
    parser.add_argument("--deepspeed_config", type=Path, help="DeepSpeed's JSON (ds_configs/zero2.json)")
    parser.add_argument(
        "--space", action="append", required=True, metavar="KEY=RANGE", help="what is searched; once a key"
    )
    parser.add_argument("--trials", type=int, default=16, help="in all, the recipe's own values among them (16)")
    parser.add_argument("--workers", type=int, default=1, help="trials that this process has at work at a time (1)")
    parser.add_argument("--ranks", type=int, default=1, help="of each trial, on this machine (1)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    arguments = parser.parse_intermixed_args(given)
    for name in ("trials", "workers", "ranks"):
        if getattr(arguments, name) < 1:
            raise ScalerError(f"--{name} {getattr(arguments, name)}: 1 is the least")
    return arguments


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    if importlib.util.find_spec("optuna") is None:
        raise ScalerError("a sweep needs optuna; install it with `pip install '.[sweep]'`")
    run(arguments)


if __name__ == "__main__":
    main()

"""The words of a command line that say which run, and the recipe that they mean. Needs no torch."""

from __future__ import annotations

import argparse
from pathlib import Path

from scaler.config import recipe
from scaler.config.recipe import DEFAULT_RECIPE, Recipe

RECIPE_FILE = "recipe.yaml"  # in the folder of a run


def parser(prog: str, description: str | None) -> argparse.ArgumentParser:
    """What every command takes that all ranks of a run start."""
    style = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser(prog=prog, description=description, formatter_class=style)
    made.add_argument("--deepspeed_config", type=Path, help="DeepSpeed's JSON (the run's, or ds_configs/zero2.json)")
    made.add_argument("--recipe", help="name or YAML file (the run's, or quickstart)")
    made.add_argument("--run_dir", type=Path, help="folder of the run; a run that is there goes on (a new runs/NAME)")
    made.add_argument("--ranks", type=int, help="refuse to start on any other number of ranks")
    made.add_argument("--allow_changes", action="store_true", help="go on with another batch, seed, rate or data")
    made.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    made.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    return made


def run_recipe(run_dir: Path | None) -> Path | None:
    """The recipe that a run in this folder began with, if one has begun."""
    path = run_dir / RECIPE_FILE if run_dir is not None else None
    return path if path is not None and path.is_file() else None


def chosen_recipe(arguments: argparse.Namespace) -> tuple[str, Recipe]:
    """The recipe's name or file, and the recipe. In the folder of a run its own is the default.

    Raises: ScalerError when there is none, or it makes no sense.
    """
    name = arguments.recipe or str(run_recipe(arguments.run_dir) or DEFAULT_RECIPE)
    return name, recipe.load(name, arguments.overrides)

"""Define the options that several commands share, and find the recipe and the DeepSpeed configuration they name."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from scaler.config import recipe
from scaler.config.deepspeed import DEFAULT_DS_CONFIG
from scaler.config.recipe import DEFAULT_RECIPE, Recipe
from scaler.core.cli import Parser, at_least
from scaler.core.errors import nearest
from scaler.core.provenance import explaining_versions

RECIPE_FILE = "recipe.yaml"  # in the folder of a run
DS_CONFIGS = DEFAULT_DS_CONFIG.parent


def ds_config(text: str) -> Path:
    """Return the file of a DeepSpeed configuration, which is given as a file or by its name in ds_configs/.

    Raises: argparse.ArgumentTypeError for a name that is none. Whether a file exists is checked when it is read.
    """
    path, named = Path(text), DS_CONFIGS / f"{text}.json"
    if path.suffix or len(path.parts) != 1 or path.is_file():
        return path
    if not named.is_file():
        known = [path.stem for path in DS_CONFIGS.glob("*.json")]
        raise argparse.ArgumentTypeError(f"{text}: no such file, and no name in ds_configs/; {nearest(text, known)}")
    return named


def add_recipe(parser: Parser, default: str | None, otherwise: str = "") -> None:
    """Add `--recipe`; `otherwise` says where the recipe comes from if `default` is None."""
    parser.add_argument(
        "--recipe", default=default, metavar="RECIPE", help=f"name or YAML file (default: {default or otherwise})"
    )


def add_ds_config(parser: Parser, default: Path | None = DEFAULT_DS_CONFIG, otherwise: str = "zero2") -> None:
    """Add `--deepspeed_config`; `otherwise` says in words what the default is."""
    parser.add_argument(
        "--deepspeed_config",
        type=ds_config,
        default=default,
        metavar="FILE",
        help=f"DeepSpeed's JSON: a file, or a name in ds_configs/ such as zero1 (default: {otherwise})",
    )


def add_allow_untested(parser: Parser) -> None:
    """Add `--allow_untested_ds_keys`."""
    untested = "accept keys of DeepSpeed's JSON that this project was never run with"
    parser.add_argument("--allow_untested_ds_keys", action="store_true", help=untested)


def add_overrides(parser: Parser) -> None:
    """Add the overrides of the recipe, which are positional."""
    parser.add_argument(
        "overrides",
        nargs="*",
        default=[],
        metavar="section.key=value",
        help="values to replace in the recipe (default: none)",
    )


def run_parser(name: str, description: str | None) -> Parser:
    """Return the parser of a command that all ranks of a run start."""
    parser = Parser(name, description)
    add_ds_config(parser, None, "the run's, or zero2")
    add_recipe(parser, None, f"the run's, or {DEFAULT_RECIPE}")
    parser.add_argument(
        "--run_dir",
        type=Path,
        metavar="DIR",
        help="folder of the run, new or to continue (default: a new runs/NAME)",
    )
    parser.add_argument(
        "--ranks", type=at_least(1), metavar="N", help="refuse to start on any other number of ranks (default: any)"
    )
    parser.add_argument(
        "--allow_changes",
        action="store_true",
        help="continue the run with another batch, seed, learning rate or data than it began with",
    )
    add_allow_untested(parser)
    parser.add_local_rank()
    add_overrides(parser)
    return parser


def prepare_command(arguments: argparse.Namespace) -> str:
    """Return the command that prepares the data of a command line's recipe, with the same recipe and overrides."""
    name = arguments.recipe or str(run_recipe(arguments.run_dir) or DEFAULT_RECIPE)
    return shlex.join(["scaler", "prepare", "--recipe", name, *arguments.overrides])


def run_recipe(run_dir: Path | None) -> Path | None:
    """Return the recipe that a run in this folder began with, or None if no run has begun there."""
    path = run_dir / RECIPE_FILE if run_dir is not None else None
    return path if path is not None and path.is_file() else None


def load_run_recipe(run_dir: Path) -> Recipe:
    """Load the recipe that a run began with.

    Raises: ScalerError if it is invalid; if another version wrote it, the error names both versions.
    """
    with explaining_versions(run_dir):
        return recipe.load(str(run_dir / RECIPE_FILE))


def chosen_recipe(arguments: argparse.Namespace) -> tuple[str, Recipe]:
    """Return the recipe's name or file, and the recipe. In the folder of a run the run's own recipe is the default.

    Raises: ScalerError if there is no such recipe, or it is invalid.
    """
    began_with = run_recipe(arguments.run_dir)
    name = arguments.recipe or str(began_with or DEFAULT_RECIPE)
    if began_with is not None and arguments.recipe is None:
        load_run_recipe(began_with.parent)
    return name, recipe.load(name, arguments.overrides)

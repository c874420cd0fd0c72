"""Print a recipe with all its values, or the JSON schema of recipes.

`scaler recipe NAME section.key=value ...` prints what a training would use: the recipe, what it extends, defaults and
overrides. `scaler recipe` alone lists the names of the recipes.
"""

from __future__ import annotations

import json

from scaler.config import recipe
from scaler.config.command_line import add_overrides
from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("recipe", __doc__)
    made.add_argument("recipe", nargs="?", metavar="NAME", help="name or YAML file (default: a list of the names)")
    made.add_argument("--schema", action="store_true", help="print the JSON schema of recipes, for editors")
    made.add_json("the recipe")
    add_overrides(made)
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    if arguments.schema:
        from scaler.config.schema import json_schema

        print(json.dumps(json_schema(), indent=2))
        return
    if arguments.recipe is None:
        names = sorted(path.stem for path in recipe.RECIPES.glob("*.yaml"))
        print(json.dumps(names, indent=2) if arguments.json else "\n".join(names))
        return
    found = recipe.load(arguments.recipe, arguments.overrides)
    print(json.dumps(found.to_plain(), indent=2) if arguments.json else found.to_yaml(), end="\n" * arguments.json)


if __name__ == "__main__":
    main()

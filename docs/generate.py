"""Write the generated pages and the schema of recipes: `python docs/generate.py` (`make reference`).

With `--check` nothing is written: pages that are out of date are named, and the status is 1 if there are any.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).resolve().parent
BEGIN, END = "<!-- The plan's table, by docs/generate.py -->", "<!-- end of the table -->"
TYPES = {
    "integer": "int",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}
GPUS = ("v100-16", "rtx4090", "a100-40", "h100")
COMMANDS = """# Commands

`scaler` lists all commands with a line each. `scaler COMMAND --help` explains one. `scaler --version` has the version.
`python -m scaler` is the same. A flag may be written `--run_dir` or `--run-dir`.
What a status of the shell means: [exit statuses](exit-statuses.md).

Training on several ranks needs a launcher that starts them. `deepspeed --num_gpus 2 scaler/train.py` has the arguments
of `scaler train`. Launchers such as `torchrun` take modules: `python -m scaler.finetune` is `scaler finetune`.

"""


def table(columns: list[str], rows: list[list[object]]) -> str:
    """Format a Markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join("" if cell is None else str(cell) for cell in line) + " |" for line in lines)


def hardware() -> str:
    """Return the page of known devices and nodes."""
    from scaler.planning.hardware import RENAMED, TABLE, Hardware

    renamed = "".join(f"`{old}` is the old name of `{new}`, read for one release.\n" for old, new in RENAMED.items())
    known = yaml.safe_load(Path(TABLE).read_text(encoding="utf-8"))
    devices = [
        [f"`{name}`", *(one[key] for key in ("memory", "bf16", "fp16", "fp32", "memory_bandwidth", "link", "source"))]
        for name, one in known["devices"].items()
    ]
    nodes = [
        [f"`{name}`", f"`{one['device']}`", one["devices"], one["network"], one["price"], one["source"]]
        for name, one in known["nodes"].items()
    ]
    sources = "".join(
        line.lstrip("# ").rstrip() + "\n"
        for line in Path(TABLE).read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    )
    columns = [
        "device",
        "memory, GB",
        "bf16, TFLOP/s",
        "fp16, TFLOP/s",
        "fp32, TFLOP/s",
        "memory, TB/s",
        "link, GB/s",
        "source",
    ]
    return f"""# Hardware

Names for `--hardware` of `scaler plan`, `scaler calibrate` and `scaler report`. A YAML file with your own figures
works, too: `scaler calibrate` writes one. Its keys:

{table_of(Hardware)}

{renamed}
## Nodes

{table(["node", "device", "devices", "network, GB/s", "price, USD/h", "source"], nodes)}

## Devices

{table(columns, devices)}

## What the figures are

{sources}"""


def recipe() -> str:
    """Return the page of all keys of a recipe: type, default and meaning, a table for each section."""
    from scaler.config import typed
    from scaler.config.recipe import EXTENDS, Recipe

    schema = typed.adapter(Recipe).json_schema()
    properties = schema["properties"]
    sections = {name: part for name in properties if "properties" in (part := typed.schema_at(schema, [name]))}
    pages = [
        "# Keys of a recipe\n",
        "A recipe is a YAML file of the sections below; `section.key=value` on the command line changes a key. "
        "Numbers may be written as `5e-5`. A key without a default has to be given, unless the recipe extends "
        "another one.\n",
        "## Top level\n",
        *keys({"properties": {name: properties[name] for name in properties if name not in sections}}, schema),
        f"| `{EXTENDS}` | text | | Recipe that this one changes, key by key: a shipped one's name, or a file. |\n",
    ]
    for name, part in sections.items():
        default = properties[name].get("default", "")
        off = " The section is off unless it is given." if default is None else ""
        pages += [f"## {name}\n", f"{meaning(part)}{off}\n", *keys(part, schema)]
        if name == "corpus":
            source = typed.schema_at(schema, ["corpus", "sources", 0])
            pages += ["", "### corpus.sources\n", f"{meaning(source)}\n", *keys(source, schema)]
        pages.append("")
    return "\n".join(pages).rstrip() + "\n"


def table_of(kind: Any) -> str:
    """Return a Markdown table of the keys of a dataclass: type, default and meaning."""
    from scaler.config import typed

    schema = typed.adapter(kind).json_schema()
    return "\n".join(keys(typed.schema_at(schema, []), schema))


def keys(part: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    """Return the lines of a Markdown table of the keys of a part of a schema."""
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, given in part["properties"].items():
        default = f"`{json.dumps(given['default'], ensure_ascii=False)}`" if "default" in given else ""
        rows.append(f"| `{name}` | {type_of(given, schema)} | {default} | {meaning(given)} |")
    return rows


def meaning(part: dict[str, Any]) -> str:
    """Return a description in one line."""
    return " ".join(inspect.cleandoc(part.get("description", "")).split()).replace("|", "\\|")


def type_of(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """Describe the values that a part of the schema allows: "int, at least 1, or null"."""
    if "anyOf" in part:
        first, second = (type_of(choice, schema) for choice in part["anyOf"])
        return f"{first}{',' if ', ' in first else ''} or {second}"
    if "$ref" in part:
        return type_of(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "prefixItems" in part:
        return f"list of {len(part['prefixItems'])}: {type_of(part['prefixItems'][0], schema)}"
    if "items" in part:
        return f"list of {type_of(part['items'], schema)}"
    from scaler.config import typed

    rule = "" if "pattern" in part else typed.rule_of(part).removeprefix("it is ").removesuffix(", and finite")
    return f"{TYPES[part['type']]}{', ' if rule else ''}{rule}"


def describe_parser(parser: Any) -> str:
    """Render a command's description, positional arguments and options as Markdown, for the reference of commands."""
    first, _, rest = (parser.description or "").strip().partition("\n")
    lines = [f"## `{parser.prog}`", "", first, *([rest.rstrip()] if rest.strip() else []), ""]
    usage = " ".join(parser.format_usage().removeprefix("usage:").split())
    lines += ["```", usage, "```", "", "| argument | meaning |", "| --- | --- |"]
    formatter = argparse.HelpFormatter(parser.prog)
    for action in parser._actions:
        if action.help in (None, argparse.SUPPRESS) or action.dest in ("help", "verbosity"):
            continue
        names = action.option_strings or [formatter._format_args(action, str(action.metavar or action.dest))]
        meaning = formatter._expand_help(action) + " **Required.**" * bool(action.option_strings and action.required)
        lines.append(f"| {', '.join(f'`{name}`' for name in names)} | {' '.join(meaning.split())} |")
    return "\n".join(lines) + "\n"


def commands() -> str:
    """Return the page of all commands, by group, from their parsers."""
    from scaler.core.cli import parser_of
    from scaler.core.commands import GROUPS

    groups = []
    for group, members in GROUPS.items():
        groups.append(f"## {group[0].upper()}{group[1:]}\n")
        groups += [re.sub("^## ", "### ", describe_parser(parser_of(name)), flags=re.MULTILINE) for name in members]
    return COMMANDS + "\n".join(groups)


def schema() -> str:
    """Return the JSON schema by which editors complete and check recipes."""
    from scaler.config.schema import json_schema

    return json.dumps(json_schema(), indent=1, ensure_ascii=False)


def gpu_memory() -> str:
    """Return the guide to GPU memory with the plan's table between its two marks."""
    from scaler.config.recipe import RECIPES
    from scaler.planning.gpu_memory import gpu_memory_table

    cells: dict[tuple[object, ...], list[object]] = {}
    heads: dict[str, str] = {}
    for row in gpu_memory_table(sorted(path.stem for path in RECIPES.glob("*.yaml")), GPUS):
        heads[row["gpu"]] = f"`{row['gpu']}`, {row['gpu_bytes'] / 1e9:.0f} GB, {row['precision']}"
        batch = f"{row['micro_rows']} x {row['accumulation']}"
        line = cells.setdefault((f"`{row['recipe']}`", row["gpus"], batch), [])
        line.append(f"{row['peak_bytes'] / 1e9:.2f}" + ("" if row["fits"] else " (does not fit)"))
    made = table(["recipe", "GPUs", "micro x acc.", *heads.values()], [[*key, *line] for key, line in cells.items()])
    before, _, rest = (DOCS / "guides" / "gpu-memory.md").read_text(encoding="utf-8").partition(BEGIN)
    return f"{before}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"


PAGES: dict[str, Callable[[], str]] = {
    "reference/hardware.md": hardware,
    "reference/recipe.md": recipe,
    "reference/commands.md": commands,
    "../scaler/recipes/schema.json": schema,
    "guides/gpu-memory.md": gpu_memory,
}


def main() -> None:
    """Write the pages, or check them."""
    check = "--check" in sys.argv[1:]
    outdated = []
    for name, make in PAGES.items():
        path, content = DOCS / name, make().rstrip() + "\n"
        if not path.is_file() or path.read_text(encoding="utf-8") != content:
            outdated.append(name)
            if not check:
                path.write_text(content, encoding="utf-8")
    for name in outdated:
        print(f"{(DOCS / name).resolve().relative_to(DOCS.parent)} {'is out of date' if check else 'written'}")
    if check and outdated:
        raise SystemExit(1)


if __name__ == "__main__":
    main()

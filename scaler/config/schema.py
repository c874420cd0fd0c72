"""Make the JSON schema of a recipe, by which editors complete and check it, and the reference of all its keys."""

from __future__ import annotations

import inspect
import json
from typing import Any

from scaler.config import typed
from scaler.config.recipe import EXTENDS, RECIPES, Recipe

TYPES = {
    "integer": "int",
    "number": "number",
    "string": "text",
    "boolean": "true or false",
    "object": "mapping",
    "null": "null",
}
FILE = RECIPES / "schema.json"  # `# yaml-language-server: $schema=` of the shipped recipes points to it


def json_schema() -> dict[str, Any]:
    """Return the JSON schema (draft 2020-12) of a recipe's file.

    Sections demand no keys, because a recipe that extends another one need not have them; `recipe.load` demands them.
    """
    schema = _without_titles(typed.adapter(Recipe).json_schema())
    required = [name for name in schema.pop("required") if name != "name"]
    for section in schema["$defs"].values():
        section.pop("required", None)
    schema["properties"] = {
        EXTENDS: {"type": "string", "description": "Recipe that this one changes: a shipped one's name, or a file."},
        **schema["properties"],
    }
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Recipe of scaler",
        **schema,
        "anyOf": [{"required": [EXTENDS]}, {"required": required}],
    }


def _without_titles(part: Any) -> Any:
    """Leave out pydantic's titles, which repeat the keys."""
    if isinstance(part, dict):
        return {
            name: {key: _without_titles(value) for key, value in content.items()}
            if name == "properties"
            else _without_titles(content)
            for name, content in part.items()
            if name != "title"
        }
    return [_without_titles(item) for item in part] if isinstance(part, list) else part


def text() -> str:
    """Return the content of the schema's file."""
    return json.dumps(json_schema(), indent=1, ensure_ascii=False) + "\n"


def reference_markdown() -> str:
    """Return a page of all keys of a recipe as Markdown: type, default and meaning, a table for each section."""
    schema = typed.adapter(Recipe).json_schema()
    properties = schema["properties"]
    sections = {name: part for name in properties if "properties" in (part := typed.schema_at(schema, [name]))}
    pages = [
        "# Keys of a recipe\n",
        "A recipe is a YAML file of the sections below; `section.key=value` on the command line changes a key. "
        "Numbers may be written as `5e-5`. A key without a default has to be given, unless the recipe extends "
        "another one.\n",
        "## Top level\n",
        *_table({"properties": {name: properties[name] for name in properties if name not in sections}}, schema),
        f"| `{EXTENDS}` | text | | Recipe that this one changes, key by key: a shipped one's name, or a file. |\n",
    ]
    for name, part in sections.items():
        default = properties[name].get("default", "")
        off = " The section is off unless it is given." if default is None else ""
        pages += [f"## {name}\n", f"{_words(part)}{off}\n", *_table(part, schema)]
        if name == "corpus":
            source = typed.schema_at(schema, ["corpus", "sources", 0])
            pages += ["", "### corpus.sources\n", f"{_words(source)}\n", *_table(source, schema)]
        pages.append("")
    return "\n".join(pages).rstrip() + "\n"


def table_of(kind: Any) -> str:
    """Return a Markdown table of the keys of a dataclass: type, default and meaning."""
    schema = typed.adapter(kind).json_schema()
    return "\n".join(_table(typed.schema_at(schema, []), schema))


def _table(part: dict[str, Any], schema: dict[str, Any]) -> list[str]:
    rows = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for name, given in part["properties"].items():
        default = f"`{json.dumps(given['default'], ensure_ascii=False)}`" if "default" in given else ""
        rows.append(f"| `{name}` | {_type(given, schema)} | {default} | {_words(given)} |")
    return rows


def _words(part: dict[str, Any]) -> str:
    return " ".join(inspect.cleandoc(part.get("description", "")).split()).replace("|", "\\|")


def _type(part: dict[str, Any], schema: dict[str, Any]) -> str:
    """Describe the values that a part of the schema allows: "int, at least 1, or null"."""
    if "anyOf" in part:
        first, second = (_type(choice, schema) for choice in part["anyOf"])
        return f"{first}{',' if ', ' in first else ''} or {second}"
    if "$ref" in part:
        return _type(schema["$defs"][part["$ref"].rpartition("/")[2]], schema)
    if "enum" in part:
        return ", ".join(f"`{value}`" for value in part["enum"])
    if "prefixItems" in part:
        return f"list of {len(part['prefixItems'])}: {_type(part['prefixItems'][0], schema)}"
    if "items" in part:
        return f"list of {_type(part['items'], schema)}"
    rule = "" if "pattern" in part else typed.rule_of(part).removeprefix("it is ").removesuffix(", and finite")
    return f"{TYPES[part['type']]}{', ' if rule else ''}{rule}"


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
    print(reference_markdown(), end="")

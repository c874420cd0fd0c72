"""Make the JSON schema of a recipe, by which editors complete and check it."""

from __future__ import annotations

from typing import Any

from scaler.config import typed
from scaler.config.recipe import EXTENDS, Recipe


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

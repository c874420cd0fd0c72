"""Checked settings: a mapping of YAML or JSON becomes a frozen dataclass; what pydantic refuses becomes one line.

Also the arithmetic of plain mappings: overrides, merging, and the differences of two.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, cast

import yaml
from pydantic import BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as pydantic_dataclass
from pydantic_core import ErrorDetails, PydanticCustomError
from typing_extensions import dataclass_transform

from scaler.core.errors import ScalerError, nearest

Kind = TypeVar("Kind")

# strict: True is no number, and 1.5 no int; docstrings of attributes become descriptions in the schema
CONFIG = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)
MOST_PROBLEMS = 5  # in one line
NEEDED = {
    "int_type": "int",
    "int_from_float": "int",
    "float_type": "float",
    "string_type": "str",
    "bool_type": "bool",
    "dict_type": "dict",
    "mapping_type": "dict",
    "tuple_type": "a list",
}


def _as_float(value: Any) -> Any:
    """Read a number as people write it: YAML 1.1 takes 5e-5 for a string, and 1 for an int."""
    if isinstance(value, bool):
        return value
    try:
        return float(value) if isinstance(value, int | str) else value
    except (ValueError, OverflowError):  # OverflowError: an int of over 308 digits
        return value


READ_FLOAT = BeforeValidator(_as_float)
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0), READ_FLOAT]
NotNegative = Annotated[float, Field(ge=0), READ_FLOAT]
Fraction = Annotated[float, Field(ge=0, le=1), READ_FLOAT]
BelowOne = Annotated[float, Field(ge=0, lt=1), READ_FLOAT]


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def settings(where: str, document: str = "recipe") -> Callable[[type[Kind]], type[Kind]]:
    """Make a class a frozen pydantic dataclass that refuses a wrong value with a ScalerError of one line.

    Args:
        where: the section of `document` that the class describes; "" for the whole document.
        document: first word of the error.
    """

    def decorate(kind: type[Kind]) -> type[Kind]:
        made: Any = pydantic_dataclass(frozen=True, config=CONFIG)(kind)
        checked = made.__init__

        @functools.wraps(checked)
        def __init__(self: Any, *values: Any, **named: Any) -> None:
            try:
                checked(self, *values, **named)
            except ValidationError as error:
                raise ScalerError(f"{document}: {explain(error, made, where)}") from error

        made.__init__ = __init__
        result: type[Kind] = made
        return result

    return decorate


def require(holds: bool, key: str, value: object, rule: str) -> None:
    """Refuse a value in `__post_init__`, where it depends on another one. `key` is the field's name."""
    if not holds:
        raise PydanticCustomError("rule", "{key}: {rule}", {"key": key, "value": value, "rule": rule})


@functools.cache
def adapter(kind: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a dataclass."""
    return TypeAdapter(kind)


def build(kind: type[Kind], content: Any, where: str = "", document: str = "recipe", remedy: str = "") -> Kind:
    """Make a frozen dataclass of a mapping, and of the mappings in it.

    Args:
        kind: a dataclass of pydantic, or of the standard library.
        content: as YAML or JSON gives it.
        where: section of `document` that `content` is.
        document: first word of the error.
        remedy: how to add keys that are missing, with {it} in their place.

    Raises: ScalerError with all problems in one line: each names the key, the value, and the rule or the nearest key.
    """
    try:
        # as JSON, because pydantic's strict mode takes lists and mappings for tuples and dataclasses from there alone
        text = json.dumps(content, default=str)  # str: YAML makes a date of 2026-11-30
    except (TypeError, ValueError, RecursionError) as error:
        raise ScalerError(
            f"{document}: {where or 'the file'} has keys that are no words, or contains itself"
        ) from error
    try:
        made: Kind = adapter(cast(Any, kind)).validate_json(text, strict=True, extra="forbid")
    except ValidationError as error:
        raise ScalerError(f"{document}: {explain(error, kind, where, remedy)}") from error
    return made


def explain(error: ValidationError, kind: Any, where: str = "", remedy: str = "") -> str:
    """Describe all problems of a value in one line: unknown keys first, then wrong values, then missing keys."""
    schema = adapter(kind).json_schema()
    prefix = f"{where}." if where else ""
    unknown, wrong, missing = [], [], []
    suggested = set()
    for problem in error.errors(include_url=False):
        parts = [part for part in problem["loc"] if isinstance(part, str) and part != "[key]"]
        key = ".".join(filter(None, [where, *parts]))
        if problem["type"] == "unexpected_keyword_argument":
            known = schema_at(schema, problem["loc"][:-1])["properties"]
            hint = nearest(parts[-1], known)
            suggested |= {".".join([*parts[:-1], name]) for name in known if hint == f"did you mean {name!r}?"}
            unknown.append(f"unknown key {key}; {hint}")
        elif problem["type"] == "missing" and isinstance(problem["loc"][-1], str):
            missing.append(".".join(parts))
        elif problem["type"] != "too_short" or not problem["input"]:  # a list is short where its items are refused, too
            wrong.append(_explain_value(problem, key, schema))
    missing = [prefix + name for name in missing if name not in suggested]
    if missing:
        *first, last = missing
        listed = f"{', '.join(first)} and {last} are missing" if first else f"{last} is missing"
        missing = [listed + (f"; {remedy.format(it='them' if first else 'it')}" if remedy else "")]
    problems = list(dict.fromkeys([*unknown, *wrong, *missing]))
    more = len(problems) - MOST_PROBLEMS
    return "; ".join(problems[:MOST_PROBLEMS]) + (f"; and {more} more" if more > 0 else "")


def _explain_value(problem: ErrorDetails, key: str, schema: dict[str, Any]) -> str:
    """Describe a value that is refused: `key=value, but rule`."""
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "dataclass_type":
        return f"{key or 'the file'} is {value!r}, but a mapping of keys is needed"
    if kind == "rule":
        return f"{key}{'.' if key else ''}{context['key']}={context['value']!r}, but {context['rule']}"
    if kind == "literal_error" and not isinstance(value, str):
        kind = "string_type"
    if kind in NEEDED:
        return f"{key}={value!r}, but {NEEDED[kind]} is needed"
    place = schema_at(schema, problem["loc"])
    if kind in ("missing", "too_long", "too_short"):  # of a list
        if kind == "missing":
            place = schema_at(schema, problem["loc"][:-1])
        needed = f"{place['minItems']} values belong there" if "prefixItems" in place else "there is at least one"
        return f"{key}={value!r}, but {needed}"
    return f"{key}={value!r}, but {rule_of(place) or problem['msg']}"


def schema_at(schema: dict[str, Any], place: Sequence[int | str]) -> dict[str, Any]:
    """Return the part of a JSON schema that describes a place in a document, without null."""

    def resolved(part: dict[str, Any]) -> dict[str, Any]:
        while "$ref" in part or "anyOf" in part:
            if "$ref" in part:
                part = schema["$defs"][part["$ref"].rpartition("/")[2]]
            else:  # an optional one, or a string for a mapping: the mapping
                choices = [choice for choice in part["anyOf"] if choice.get("type") != "null"]
                part = next((choice for choice in choices if "$ref" in choice or "properties" in choice), choices[0])
        return part

    part = resolved(schema)
    for name in place:
        if isinstance(name, int):
            part = part["prefixItems"][name] if "prefixItems" in part else part["items"]
        elif name != "[key]":
            part = part.get("properties", {}).get(name) or part.get("additionalProperties") or {}
        part = resolved(part) if isinstance(part, dict) else {}
    return part


def value_type(kind: Any, name: str) -> type:
    """Return the type of a field's values as a command line reads them: int, float or str."""
    return {"integer": int, "number": float}.get(schema_at(adapter(kind).json_schema(), [name])["type"], str)


def rule_of(schema: dict[str, Any]) -> str:
    """Describe what a part of a JSON schema demands of a value beyond its type; "" for nothing.

    >>> rule_of({"type": "number", "exclusiveMinimum": 0, "maximum": 1})
    'it is above 0 and at most 1'
    """
    if "enum" in schema:
        return f"it is one of {', '.join(map(str, schema['enum']))}"
    if "pattern" in schema:
        return str(schema.get("patternErrorMessage", f"it matches {schema['pattern']}"))
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"it is between {low:g} and {high:g}" if high < 1e6 else f"it is between {low} and {high}"
    words = {"exclusiveMinimum": "above", "minimum": "at least", "exclusiveMaximum": "below", "maximum": "at most"}
    bounds = [f"{word} {schema[name]:g}" for name, word in words.items() if name in schema]
    if not bounds and schema.get("type") != "number":
        return ""
    unbounded = schema.get("type") == "number" and high is None and "exclusiveMaximum" not in schema
    return f"it is {' and '.join(bounds)}{', and finite' if unbounded else ''}" if bounds else "it is finite"


def read_yaml(path: Path) -> Any:
    """Read a file of YAML. Raises ScalerError if it is none."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:  # RecursionError: a thousand brackets
        raise ScalerError(f"{path}: not YAML ({' '.join(str(error).split())})") from error


def apply(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` to a mapping, in place."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not all(key.split(".")):
            raise ScalerError(f"{override!r} is no option: overrides look like training.steps=100")
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            if inner.get(section) is None:  # an optional section that is off
                inner[section] = {}
            inner = inner[section]
            if not isinstance(inner, dict):
                raise ScalerError(f"recipe: {override!r}: {section} is a value, not a section")
        try:
            inner[last] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError) as error:
            raise ScalerError(f"recipe: {override!r}: the value is not YAML") from error
    return content


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Change a mapping of mappings, each key by itself; lists are replaced whole."""
    both = {
        name: merged(base[name], value) if isinstance(base.get(name), dict) and isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return {**base, **both}


def plain(value: Any) -> Any:
    """Replace tuples in a mapping of mappings with lists, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def refuse_differences(
    begin: str, old: Mapping[str, Any], new: Mapping[str, Any], end: str = "name another folder"
) -> None:
    """Raise ScalerError for the first setting that differs: `begin`, the key with both values, and the remedy."""
    for name, (before, now) in differences(old, plain(new)).items():
        raise ScalerError(f"{begin} {name}={before!r}, and not {now!r}; {end}")


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Compare two plain recipes: "section.key" -> (old value, new value), where they differ."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found[prefix + name] = before, after
    return found

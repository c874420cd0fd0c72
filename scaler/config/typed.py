"""From YAML to frozen dataclasses, strict about every key and value; and back, and what is another between two."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from scaler.core.errors import ScalerError, nearest

ALONE = "alone"  # metadata of a field: a string in place of the section is this field's value


def build(kind: type, content: Any, where: str, document: str = "recipe") -> Any:
    """Make a frozen dataclass of a mapping, and of the mappings in it; errors name it as `where` in `document`.

    Raises: ScalerError that names the key, the rule and the nearest known key.
    """
    prefix = f"{where}." if where else ""
    if not isinstance(content, Mapping):
        raise ScalerError(f"{document}: {where or 'the file'} is {content!r}, but a mapping of keys is needed")
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in hints:
            raise ScalerError(f"{document}: unknown key {prefix}{name}; {nearest(str(name), hints)}")
    for member in dataclasses.fields(kind):
        no_default = member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
        if no_default and member.name not in content:
            raise ScalerError(f"{document}: {prefix}{member.name} is missing")
    return kind(**{name: _convert(value, hints[name], prefix + name, document) for name, value in content.items()})


def _convert(value: Any, kind: Any, where: str, document: str) -> Any:
    """Check `value` against a type hint and build it; `where` names it in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        alone = [member.name for member in dataclasses.fields(kind) if member.metadata.get(ALONE)]
        value = {alone[0]: value} if alone and isinstance(value, str) else value
        return build(typing.cast(type, kind), value, where, document)
    if origin in (types.UnionType, typing.Union):
        return (
            None
            if value is None
            else _convert(value, next(a for a in arguments if a is not type(None)), where, document)
        )
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ScalerError(f"{document}: {where}={value!r}, but a list is needed")
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) == len(arguments):
            return tuple(
                _convert(item, argument, where, document) for item, argument in zip(value, arguments, strict=True)
            )
        raise ScalerError(f"{document}: {where}={value!r}, but {len(arguments)} values belong there")
    expected = dict if origin is not None else kind
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 5e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ScalerError(f"{document}: {where}={value!r}, but {expected.__name__} is needed")
    return value


def apply(content: dict[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Apply `section.key=value` to a mapping, in place."""
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
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
        except yaml.YAMLError as error:
            raise ScalerError(f"recipe: {override!r}: the value is not YAML") from error
    return content


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A mapping of mappings with changes, each key by itself; lists are taken whole."""
    both = {
        name: merged(base[name], value) if isinstance(base.get(name), dict) and isinstance(value, dict) else value
        for name, value in changes.items()
    }
    return {**base, **both}


def plain(value: Any) -> Any:
    """A mapping of mappings and tuples with lists for the tuples, as YAML and JSON have them."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Where two plain recipes differ: "section.key" -> (old value, new value)."""
    found: dict[str, tuple[Any, Any]] = {}
    for name in {**old, **new}:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found |= differences(before, after, f"{prefix}{name}.")
        elif before != after:
            found[prefix + name] = before, after
    return found

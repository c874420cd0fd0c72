"""The JSON schema that editors check recipes by, and the reference of all keys that is generated from it."""

import json
import re

import pytest
import yaml
from conftest import ROOT

from scaler.config import schema
from scaler.config.recipe import RECIPES, load

REFERENCE = ROOT / "docs" / "reference" / "recipe.md"  # test_documentation.py checks that it is up to date
SHIPPED = sorted(RECIPES.glob("*.yaml"))
TYPES = {"integer": int, "number": (int, float), "string": str, "boolean": bool, "object": dict, "array": list}
ABOUT = {"$schema", "$defs", "title", "description", "default", "patternErrorMessage"}


def fits(value, part, whole):
    """Check a value by the keywords of JSON schema that ours has; any other is a KeyError."""
    properties = part.get("properties", {})
    checks = {
        "$ref": lambda name: fits(value, whole["$defs"][name.rpartition("/")[2]], whole),
        "anyOf": lambda parts: any(fits(value, one, whole) for one in parts),
        "type": lambda name: (
            value is None
            if name == "null"
            else isinstance(value, TYPES[name]) and (name == "boolean" or not isinstance(value, bool))
        ),
        "enum": lambda known: value in known,
        "required": lambda names: set(names) <= set(value),
        "properties": lambda known: all(fits(value[name], known[name], whole) for name in known if name in value),
        "additionalProperties": lambda allowed: allowed or set(value) <= set(properties),
        "items": lambda one: all(fits(item, one, whole) for item in value),
        "prefixItems": lambda parts: all(fits(item, one, whole) for item, one in zip(value, parts, strict=False)),
        "minItems": lambda least: len(value) >= least,
        "maxItems": lambda most: len(value) <= most,
        "pattern": lambda pattern: re.search(pattern, value) is not None,
        "minimum": lambda least: value >= least,
        "maximum": lambda most: value <= most,
        "exclusiveMinimum": lambda least: value > least,
        "exclusiveMaximum": lambda most: value < most,
    }
    first = ("type",) if "type" in part else ()  # before what only such a value can be asked
    return all(checks[name](part[name]) for name in (*first, *(set(part) - ABOUT)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_recipe_fits_the_schema_that_it_names(path):
    text = path.read_text(encoding="utf-8")
    named = text.splitlines()[0].removeprefix("# yaml-language-server: $schema=")
    whole = json.loads((path.parent / named).read_text(encoding="utf-8"))
    assert fits(yaml.safe_load(text), whole, whole)
    assert fits(yaml.safe_load(load(path.stem).to_yaml()), whole, whole)  # as a run's folder has it


@pytest.mark.parametrize(
    "change",
    [
        {"trainign": {}},
        {"training": {"stepz": 5}},
        {"training": {"steps": 0}},
        {"training": {"steps": True}},
        {"optimizer": {"betas": [0.9]}},
        {"optimizer": {"betas": [0.9, 1.0]}},
        {"schedule": {"shape": "wavy"}},
        {"corpus": {"sources": []}},
        {"corpus": {"sources": [{"weight": 1}]}},
        {"corpus": {"heldout_percent": 50}},
        {"cleaning": {"languages": ["english"]}},
        {"word2vec": {"ready_made": "vectors.pkl"}},
        {"word2vec": 768},
        {"name": 5},
    ],
)
def test_the_schema_refuses_what_the_recipe_refuses(change):
    whole = schema.json_schema()
    assert fits({"extends": "quickstart"}, whole, whole)
    assert not fits({"extends": "quickstart", **change}, whole, whole)


def test_a_recipe_that_extends_none_needs_its_sections():
    whole = schema.json_schema()
    content = yaml.safe_load((RECIPES / "quickstart.yaml").read_text(encoding="utf-8"))
    del content["optimizer"]
    assert not fits(content, whole, whole)
    assert fits({**content, "extends": "quickstart"}, whole, whole)


def test_the_file_of_the_schema_is_up_to_date():
    text = (RECIPES / "schema.json").read_text(encoding="utf-8")
    assert json.loads(text) == schema.json_schema(), "run `python docs/generate.py`"


def test_every_key_is_described_in_the_schema_and_in_the_reference():
    whole = schema.json_schema()
    page = REFERENCE.read_text(encoding="utf-8")
    for name, part in whole["$defs"].items():
        section = part.get("anyOf", [part])[-1]  # a source may be a string
        assert section["description"].endswith("."), name
        for key, described in section["properties"].items():
            assert described["description"].endswith("."), f"{name}.{key}"
            assert f"| `{key}` |" in page
    assert all(f"## {name}\n" in page or f"| `{name}` |" in page for name in whole["properties"])


@pytest.mark.parametrize(
    "row",
    [
        "| `patience` | int, at least 1, or null | `null` | Evaluations without a lower held-out loss after which the "
        "run stops; null: it does not. |",
        "| `betas` | list of 2: number, at least 0 and below 1 | `[0.9, 0.98]` | ",
        "| `learning_rate` | number, above 0 |  | Peak learning rate. |",
        '| `shape` | `linear`, `cosine`, `constant`, `sqrt` | `"linear"` | ',
        "| `sources` | list of text or mapping |  | ",
    ],
)
def test_the_reference_gives_type_default_and_meaning(row):
    assert f"\n{row}" in REFERENCE.read_text(encoding="utf-8")

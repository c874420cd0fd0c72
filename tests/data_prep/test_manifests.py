"""A manifest that was changed is one line of every command that reads it, whatever was changed."""

import copy
import json
import shutil

import pytest

from data_prep.formats import manifests
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared import prepare, verify
from scaler.core.errors import ScalerError
from scaler.core.files import MANIFEST, read_json

REMOVED = object()
VALUES = (REMOVED, None, "x", -1, True, 1.5, float("inf"), [], {}, ["x"], {"x": "x"})
FREE = {"made_from", "settings", "files", "kind", "format", "rensa"}  # which no other stage reads


def places(content, at=()):
    """Every place in a manifest, of a list the first item alone."""
    if at:
        yield at
    items = (
        content.items() if isinstance(content, dict) else enumerate(content[:1]) if isinstance(content, list) else ()
    )
    for key, value in items:
        if key not in FREE:
            yield from places(value, (*at, key))


def changed(content, at, value):
    content = copy.deepcopy(content)
    part = content
    for key in at[:-1]:
        part = part[key]
    if value is REMOVED:
        del part[at[-1]]
    else:
        part[at[-1]] = value
    return content


@pytest.mark.parametrize("name", ["corpus", "tokenizer", "shards", "rows-32"])
def test_whatever_is_changed_is_one_line_or_changes_nothing(tiny_recipe, tmp_path, name):
    data = tiny_recipe.rows_folder.parent
    for other in ("tokenizer", name):
        shutil.copytree(data / other, tmp_path / other, dirs_exist_ok=True)
    folder = tmp_path / name
    content, refused = read_json(folder / MANIFEST), 0
    kind = content["kind"]
    assert [*verify.problems(folder, WorkerPool())] == []
    for at in places(content):
        for value in VALUES:
            if value is REMOVED and isinstance(at[-1], int):
                continue
            (folder / MANIFEST).write_text(json.dumps(changed(content, at, value)))
            found = [*verify.problems(folder, WorkerPool())]  # anything but a ScalerError would end the test
            refused += bool(found)
            assert all("\n" not in problem and str(folder) in problem for problem in found), (at, value, found)
            try:
                prepare._counts(folder, kind)
            except ScalerError as error:
                assert found and str(folder) in str(error)
    assert refused > 40


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (("splits", "train", 0, "documents"), "many", "splits.train.0.documents: Input should be a valid integer"),
        (("splits", "train", 0, "name"), "../../mail", "splits.train.0.name: String should match pattern"),
        (("splits", "train", 0, "name"), "/etc/passwd", "splits.train.0.name: String should match pattern"),
        (("splits", "train"), REMOVED, "splits.train: Field required"),
        (("history",), 3, "history: Input should be a valid list"),
    ],
)
def test_the_key_and_the_rule_are_named(tiny_recipe, tmp_path, at, value, said):
    shutil.copytree(tiny_recipe.rows_folder.parent / "corpus", tmp_path / "corpus")
    path = tmp_path / "corpus" / MANIFEST
    path.write_text(json.dumps(changed(read_json(path), at, value)))
    with pytest.raises(ScalerError) as refused:
        manifests.read(tmp_path / "corpus", "corpus")
    assert str(refused.value).startswith(f"{path}: is damaged ({said}")
    assert str(refused.value).endswith("; delete its folder and prepare the data again")


def test_a_manifest_of_50_000_levels_is_one_line(tmp_path):
    (tmp_path / MANIFEST).write_text("[" * 50_000 + "]" * 50_000)
    with pytest.raises(ScalerError, match="no corpus here"):
        manifests.read(tmp_path, "corpus")
    assert manifests.kind_of(tmp_path) == ""

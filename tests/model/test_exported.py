"""Which folder is taken for an exported model, and whether it is whole."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from on_disk import flip
from safetensors.numpy import save_file

from scaler.core.errors import ScalerError
from scaler.core.files import checksum
from scaler.model import exported


def made(folder, second):
    """Make a folder that counts as an exported model of that time."""
    folder.mkdir(parents=True)
    (folder / exported.CONFIG).write_text("{}")
    os.utime(folder / exported.CONFIG, (second, second))
    return folder


def test_of_a_folder_of_runs_the_newest_export_is_taken(tmp_path):
    newest = made(tmp_path / "a" / "export", 2)
    made(tmp_path / "b" / "export", 1)
    (tmp_path / "c").mkdir()
    assert exported.find_newest(tmp_path) == newest


def test_a_model_comes_before_the_exports_in_its_subfolders(tmp_path):
    made(tmp_path / "a" / "export", 2)
    own = made(tmp_path / "export", 1)
    assert exported.find_newest(tmp_path) == own
    assert exported.find_newest(own) == own
    assert exported.find_newest(made(tmp_path / "model", 1)) == tmp_path / "model"


def test_a_run_that_is_not_finished_has_no_export(tmp_path):
    (tmp_path / exported.RECIPE).touch()
    made(tmp_path / "a" / "export", 2)
    with pytest.raises(ScalerError, match="this run has no export"):
        exported.find_newest(tmp_path)


@pytest.fixture
def whole(tmp_path):
    """The files of an exported model, and their checksums."""
    (tmp_path / exported.CONFIG).write_text("{}")
    (tmp_path / exported.TOKENIZER).write_text("{}")
    save_file({"weight": np.arange(1000.0)}, tmp_path / exported.WEIGHTS)
    return tmp_path, {path.name: checksum(path) for path in tmp_path.iterdir()}


def test_an_export_that_is_whole_has_no_problem(whole):
    assert exported.problem(*whole) is None and exported.problem(whole[0], {}) is None


@pytest.mark.parametrize("name", [exported.CONFIG, exported.TOKENIZER, exported.WEIGHTS])
@pytest.mark.parametrize(("how", "said"), [(Path.unlink, "missing"), (lambda path: os.truncate(path, 1), "damaged")])
def test_a_file_that_is_missing_or_cut_is_named(whole, name, how, said):
    """Also where nothing is known of checksums, as of an export of before."""
    how(whole[0] / name)
    for checksums in ({}, whole[1]):
        assert exported.problem(whole[0], checksums).startswith(f"{whole[0] / name}: {said}")


def test_a_bit_of_the_weights_that_is_another_is_seen_by_the_checksum(whole):
    flip(whole[0] / exported.WEIGHTS, 0.9)
    assert exported.problem(whole[0], {}) is None
    assert exported.problem(*whole) == f"{whole[0] / exported.WEIGHTS}: is not what was written"


def test_a_part_of_large_weights_that_is_missing_is_named(whole):
    (whole[0] / exported.WEIGHTS).rename(whole[0] / "part-1.safetensors")
    parts = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    (whole[0] / exported.PARTS).write_text(json.dumps({"weight_map": parts}))
    assert exported.problem(whole[0], {}) == f"{whole[0] / 'part-2.safetensors'}: missing"


def test_a_file_that_cannot_be_read_is_not_called_damaged(whole, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(exported, "checksum", fail)
    with pytest.raises(OSError, match="Input/output error"):
        exported.problem(*whole)

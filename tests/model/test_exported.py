"""Which folder is taken for an exported model."""

import os

import pytest

from scaler.core.errors import ScalerError
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

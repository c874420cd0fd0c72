"""Whether an exported model is whole, and which of its files is not."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from on_disk import flip
from safetensors.numpy import save_file

from scaler.core.files import checksum
from scaler.model import folder


@pytest.fixture
def whole(tmp_path):
    """The files of an exported model, and their checksums."""
    (tmp_path / folder.CONFIG).write_text("{}")
    (tmp_path / folder.TOKENIZER).write_text("{}")
    save_file({"weight": np.arange(1000.0)}, tmp_path / folder.WEIGHTS)
    return tmp_path, {path.name: checksum(path) for path in tmp_path.iterdir()}


def test_an_export_that_is_whole_has_no_problem(whole):
    assert folder.problem(*whole) is None and folder.problem(whole[0], {}) is None


@pytest.mark.parametrize("name", [folder.CONFIG, folder.TOKENIZER, folder.WEIGHTS])
@pytest.mark.parametrize(("how", "said"), [(Path.unlink, "missing"), (lambda path: os.truncate(path, 1), "damaged")])
def test_a_file_that_is_missing_or_cut_is_named(whole, name, how, said):
    """Also where nothing is known of checksums, as of an export of before."""
    how(whole[0] / name)
    for checksums in ({}, whole[1]):
        assert folder.problem(whole[0], checksums).startswith(f"{whole[0] / name}: {said}")


def test_a_bit_of_the_weights_that_is_another_is_seen_by_the_checksum(whole):
    flip(whole[0] / folder.WEIGHTS, 0.9)
    assert folder.problem(whole[0], {}) is None
    assert folder.problem(*whole) == f"{whole[0] / folder.WEIGHTS}: is not what was written"


def test_a_part_of_large_weights_that_is_missing_is_named(whole):
    (whole[0] / folder.WEIGHTS).rename(whole[0] / "part-1.safetensors")
    parts = {"a": "part-1.safetensors", "b": "part-2.safetensors"}
    (whole[0] / folder.PARTS).write_text(json.dumps({"weight_map": parts}))
    assert folder.problem(whole[0], {}) == f"{whole[0] / 'part-2.safetensors'}: missing"


def test_a_file_that_cannot_be_read_is_not_called_damaged(whole, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(folder, "checksum", fail)
    with pytest.raises(OSError, match="Input/output error"):
        folder.problem(*whole)

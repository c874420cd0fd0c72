"""Files appear complete and with the right checksum, or not at all."""

import errno
import os

import pytest
import torch
from safetensors.torch import save_file

from scaler.core.files import checksum, read_json, take_umask, whole_file, write_json, write_whole


def test_a_file_appears_once_it_is_complete_and_its_checksum_is_that_of_the_file(tmp_path):
    path = tmp_path / "file.bin"
    with whole_file(path) as file:
        file.write(b"one")
        file.write(memoryview(b"two"))
        assert not path.exists()
    assert path.read_bytes() == b"onetwo"
    assert file.checksum() == checksum(path)
    assert [*tmp_path.iterdir()] == [path]


def test_a_link_in_place_of_what_is_written_is_not_followed(tmp_path):
    (tmp_path / "keys").write_text("of somebody")
    (tmp_path / "state.json.partial").symlink_to(tmp_path / "keys")
    with pytest.raises(OSError, match="symbolic links"):
        write_whole(tmp_path / "state.json", "mine")
    assert (tmp_path / "keys").read_text() == "of somebody"
    assert (tmp_path / "state.json.partial").is_symlink() and not (tmp_path / "state.json").exists()


def test_names_that_are_no_utf_8_are_written_and_read_back(tmp_path):
    content = {"caf\udce9.txt": ["\\\ud83d", "caf\u00e9"]}
    write_json(tmp_path / "manifest.json", content)
    assert read_json(tmp_path / "manifest.json") == content
    assert "caf\u00e9" in (tmp_path / "manifest.json").read_text(encoding="utf-8")


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), ValueError("bad")])
def test_a_failure_leaves_what_was_there_before_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file.txt"
    write_whole(path, "before")
    with pytest.raises(type(failure)), whole_file(path) as file:
        file.write(b"half")
        raise failure
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o002, 0o664), (0o077, 0o600)])
def test_a_file_that_a_library_wrote_gets_the_mode_of_an_ordinary_one(tmp_path, umask, mode):
    path, before = tmp_path / "a.safetensors", os.umask(umask)
    try:
        save_file({"a": torch.zeros(3)}, path)
        take_umask(path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode
    assert [*tmp_path.iterdir()] == [path]

"""Files appear complete and with the right checksum, or not at all."""

import errno

import pytest

from scaler.core.files import checksum, whole_file, write_whole


def test_a_file_appears_once_it_is_complete_and_its_checksum_is_that_of_the_file(tmp_path):
    path = tmp_path / "file.bin"
    with whole_file(path) as file:
        file.write(b"one")
        file.write(memoryview(b"two"))
        assert not path.exists()
    assert path.read_bytes() == b"onetwo"
    assert file.checksum() == checksum(path)
    assert [*tmp_path.iterdir()] == [path]


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "no space"), KeyboardInterrupt(), ValueError("bad")])
def test_a_failure_leaves_what_was_there_before_and_nothing_else(tmp_path, failure):
    path = tmp_path / "file.txt"
    write_whole(path, "before")
    with pytest.raises(type(failure)), whole_file(path) as file:
        file.write(b"half")
        raise failure
    assert path.read_text() == "before"
    assert [*tmp_path.iterdir()] == [path]

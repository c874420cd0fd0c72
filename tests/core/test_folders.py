"""Output folders: new ones and those of the same kind are taken, others are refused; a lock has one holder."""

import os
import subprocess
import sys

import pytest
from refusals import error_of

from scaler.core import folders, slurm
from scaler.core.errors import ScalerError


def test_new_empty_and_own_folders_are_taken(tmp_path):
    for names in ((), (".lock",), ("first",), ("first.partial", "marker.partial"), ("marker", "anything")):
        folder = tmp_path / ("-".join(names) or "empty")
        folder.mkdir()
        for name in names:
            (folder / name).touch()
        folders.claim(folder, ("marker",), "a thing", ("first",))
    folders.claim(tmp_path / "absent", ("marker",), "a thing")


@pytest.mark.parametrize("names", [("anything",), ("first", "anything"), ("one",)])
def test_a_folder_with_something_else_is_refused(tmp_path, names):
    for name in names:
        (tmp_path / name).touch()
    assert (
        error_of(folders.claim, tmp_path, ("one", "two"), "a thing", ("first",), "--out")
        == f"--out {tmp_path}: is neither new nor a thing (no one and two); name another folder"
    )


def test_a_file_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ScalerError, match=r"file: is neither new nor a thing \(no one\)"):
        folders.claim(tmp_path / "file", ("one",), "a thing")


def test_a_lock_that_is_a_link_is_not_followed(tmp_path):
    (tmp_path / "keys").write_text("of somebody")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / folders.LOCK).symlink_to(tmp_path / "keys")
    with pytest.raises(OSError, match="symbolic links"):
        folders.lock(tmp_path / "run")
    with pytest.raises(OSError, match="symbolic links"), folders.exclusive(tmp_path / "run"):
        raise AssertionError
    assert (tmp_path / "keys").read_text() == "of somebody"


def test_what_is_removed_is_not_what_links_point_to(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").touch()
    (tmp_path / "folder").mkdir()
    for name in ("link", "folder/link"):
        (tmp_path / name).symlink_to(tmp_path / "mine")
    for name in ("link", "folder", "absent"):
        folders.remove(tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"] and (tmp_path / "mine" / "file").exists()


def test_a_lock_is_held_until_its_file_is_closed(tmp_path):
    first, second = (os.open(tmp_path / "lock", os.O_RDWR | os.O_CREAT) for _ in range(2))
    assert folders.try_lock(first, tmp_path) and not folders.try_lock(second, tmp_path)
    os.close(first)
    assert folders.try_lock(second, tmp_path)
    os.close(second)


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("written", ["", "process 1 on {node}", "job 7, start 0, process {pid} on {node}"])
def test_a_refusal_names_the_process_that_holds_the_lock_and_not_an_earlier_one(tmp_path, written):
    path, pipe = tmp_path / folders.LOCK, subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdin=pipe, stdout=pipe, text=True) as other:
        assert other.stdout.readline() == "held\n"
        path.write_text(written := written.format(pid=other.pid, node=slurm.node_name()))
        line = error_of(folders.lock, tmp_path)
        other.communicate("")
    shown = written if "job" in written else f"process {other.pid} on {slurm.node_name()}"
    assert line == f"{tmp_path}: another run is at work in it ({shown}); stop it, or name another folder"

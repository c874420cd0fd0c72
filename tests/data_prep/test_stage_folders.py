"""A stage removes what data preparation has written, and nothing else, at whatever moment it is stopped."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.pipeline import folders
from scaler.core.errors import ScalerError
from scaler.core.files import MANIFEST


def write(folder, number, *, tasks=False):
    """Make a stage's output of one file, with settings of this number."""
    with folders.staged(folder, "corpus", {"number": number}) as partial:
        if tasks:
            (partial / folders.TASKS / "a.json").write_text("{}")
        (partial / "text.jsonl.zst").write_text(f"text {number}")
        folders.write_manifest(partial, "corpus", {"number": number})


def contents(folder):
    """All below a folder: names, and what is in the files or where the links point."""
    return {
        path.relative_to(folder).as_posix(): str(path.readlink()) if path.is_symlink() else path.read_bytes()
        for path in folder.rglob("*")
        if path.is_symlink() or path.is_file()
    }


def refused(folder, said):
    before = contents(folder.parent)
    with pytest.raises(ScalerError) as error, folders.staged(folder, "corpus", {"number": 2}):
        raise AssertionError
    assert str(error.value) == said
    assert contents(folder.parent) == before


@pytest.fixture
def precious(tmp_path):
    """A folder of the user's, with a file in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious.txt").write_text("years of work")
    return tmp_path / "mine"


@pytest.mark.parametrize("kind", ["folder", "file", "link", "a link that leads nowhere"])
def test_a_backup_of_the_users_stays(tmp_path, precious, kind):
    out, backup = tmp_path / "data" / "corpus", tmp_path / "data" / "corpus.old"
    write(out, 1)
    if kind == "folder":
        precious.rename(backup)
    elif kind == "file":
        backup.write_text("notes")
    else:
        backup.symlink_to(precious if kind == "link" else tmp_path / "nowhere")
    before = {name: what for name, what in contents(tmp_path).items() if not name.startswith("data/corpus/")}
    write(out, 2)
    after = contents(tmp_path)
    assert {name: what for name, what in after.items() if not name.startswith("data/corpus/")} == before
    assert after["data/corpus/text.jsonl.zst"] == b"text 2"


@pytest.mark.parametrize("linked", [False, True])
def test_a_folder_of_the_users_with_the_name_of_a_begun_stage_is_refused(tmp_path, precious, linked):
    partial = tmp_path / "corpus.partial"
    partial.symlink_to(precious) if linked else precious.rename(partial)
    said = "data preparation would write there, and did not make it; rename it, or name another folder"
    refused(tmp_path / "corpus", f"{partial}: {said}")


@pytest.mark.parametrize("to", ["output", "mine", "nowhere"])
def test_an_output_that_is_a_link_is_refused_and_kept(tmp_path, precious, to):
    write(tmp_path / "output", 1)
    link = tmp_path / "corpus"
    link.symlink_to(tmp_path / to)
    refused(link, f"{link}: is a link, which is not replaced; remove the link, or name another folder")
    assert folders.is_current(link, "corpus", {"number": 1}) is (to == "output")


@pytest.mark.parametrize("name", ["precious.txt", "notes/precious.txt", "link"])
def test_an_output_in_which_the_user_keeps_a_file_is_not_made_anew(tmp_path, precious, name):
    out = tmp_path / "corpus"
    write(out, 1)
    (out / name).parent.mkdir(exist_ok=True)
    if name == "link":
        (out / name).symlink_to(precious)
    else:
        (precious / "precious.txt").rename(out / name)
    said = "which data preparation did not write; move it elsewhere, and run again"
    refused(out, f"{out}: is to be made anew and holds {name}, {said}")
    assert folders.is_current(out, "corpus", {"number": 1})


def test_an_output_of_a_version_that_listed_no_files_is_replaced(tmp_path):
    write(tmp_path / "corpus", 1)
    path = tmp_path / "corpus" / MANIFEST
    content = json.loads(path.read_text())
    assert content.pop("files") == ["README.md", "manifest.json", "text.jsonl.zst"]
    path.write_text(json.dumps(content))
    write(tmp_path / "corpus", 2)
    assert (tmp_path / "corpus" / "text.jsonl.zst").read_text() == "text 2"


def test_links_in_what_is_emptied_are_removed_and_not_what_they_point_to(tmp_path, precious):
    with pytest.raises(ScalerError), folders.staged(tmp_path / "corpus", "corpus", {"number": 1}) as partial:
        (partial / folders.TASKS / "a.json").write_text("{}")
        (partial / "folder").mkdir()
        (partial / "link").symlink_to(precious)
        (partial / "folder" / "link").symlink_to(precious)
        raise ScalerError("half-way")
    write(tmp_path / "corpus", 2)
    assert (precious / "precious.txt").read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "corpus"}


def test_a_lock_that_is_a_link_is_not_followed(tmp_path, precious):
    (tmp_path / "corpus.partial").mkdir()
    (tmp_path / "corpus.partial" / "lock").symlink_to(precious / "precious.txt")
    before = contents(tmp_path)
    with pytest.raises((OSError, ScalerError)), folders.staged(tmp_path / "corpus", "corpus", {}):
        raise AssertionError
    assert contents(tmp_path) == before


KILLED = """
import os, pathlib, signal, sys
from data_prep.pipeline import folders
sys.path.insert(0, "tests/data_prep")
from test_stage_folders import write
rename, done = pathlib.Path.rename, []
def killed(path, target):
    if len(done) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(path)
    return rename(path, target)
pathlib.Path.rename = killed
folders._clear = lambda folder: os.kill(os.getpid(), signal.SIGKILL)
write(pathlib.Path(sys.argv[1]), 2, tasks=True)
"""


@pytest.mark.parametrize("renames", [0, 1, 2])
@pytest.mark.parametrize("next_number", [2, 3])
def test_whenever_a_run_is_killed_that_replaces_an_output_one_of_both_is_there(tmp_path, renames, next_number):
    """The first rename moves the old output aside, the second gives the new one its place."""
    out = tmp_path / "corpus"
    write(out, 1)
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", KILLED, str(out), str(renames)]
    assert subprocess.run(command, cwd=root, check=False).returncode == -signal.SIGKILL
    with pytest.raises(ScalerError, match="half-way"), folders.staged(out, "corpus", {"number": next_number}):
        raise ScalerError("half-way")
    assert (out / "text.jsonl.zst").read_text() == ("text 2" if renames == 2 else "text 1")
    assert folders.is_current(out, "corpus", {"number": 2 if renames == 2 else 1})
    assert sorted(os.listdir(out)) == ["README.md", "manifest.json", "text.jsonl.zst"]
    write(out, next_number)
    assert sorted(os.listdir(tmp_path)) == ["corpus"]
    assert sorted(os.listdir(out)) == ["README.md", "manifest.json", "text.jsonl.zst"]
    assert (out / "text.jsonl.zst").read_text() == f"text {next_number}"


def test_an_output_that_cannot_be_replaced_stays_and_so_does_the_work(tmp_path, monkeypatch):
    out = tmp_path / "corpus"
    write(out, 1)
    rename = Path.rename

    def refusing(path, target):
        if path.name == "corpus.partial":
            raise PermissionError(13, "Permission denied", str(path))
        return rename(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", refusing)
        with pytest.raises(ScalerError, match="not writable"):
            write(out, 2, tasks=True)
    assert (out / "text.jsonl.zst").read_text() == "text 1"
    with folders.staged(out, "corpus", {"number": 2}) as partial:
        assert (partial / folders.TASKS / "a.json").exists()
        folders.write_manifest(partial, "corpus", {"number": 2})

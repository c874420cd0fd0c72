"""The folder of a run: which one is taken, who holds it, and what a killed start may leave in it."""

import errno
import fcntl
import json
import os
import threading

import pytest
from on_disk import names

from scaler.core import folders
from scaler.core.errors import ScalerError
from scaler.training import run_folder


@pytest.mark.parametrize("left", [[], [".lock"], [".lock", "state.json"], ["state.json", "recipe.yaml.partial"]])
def test_a_start_that_was_killed_early_leaves_a_folder_that_is_still_new(tmp_path, left):
    for name in left:
        (tmp_path / name).write_text("half")
    assert run_folder.choose(tmp_path, "any") == tmp_path


def test_what_is_written_before_the_recipe_counts_as_nothing(tmp_path):
    folders.lock(tmp_path).close()
    run_folder.set_state(tmp_path, "running", step=0)
    run_folder.add_attempt(tmp_path, {"ranks": 1})
    (tmp_path / run_folder.DS_CONFIG).write_text("{}")
    assert run_folder.choose(tmp_path, "any") == tmp_path and not run_folder.is_run(tmp_path)


def test_somebody_elses_files_are_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ScalerError, match="neither new nor a run"):
        run_folder.choose(tmp_path, "any")
    with pytest.raises(ScalerError, match=r"thesis.tex is a file; name another folder"):
        run_folder.choose(tmp_path / "thesis.tex" / "run", "any")


def test_without_a_wish_the_first_free_name_is_taken(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "tiny").mkdir(parents=True)
    (tmp_path / "runs" / "tiny-2").mkdir()
    assert str(run_folder.choose(None, "tiny")) == "runs/tiny-3"


def test_a_name_is_taken_at_once_and_given_back_where_nothing_comes_of_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with run_folder.hold(None, "tiny") as first, run_folder.hold(None, "tiny") as second:
        assert [str(first), str(second)] == ["runs/tiny", "runs/tiny-2"]
        (second / run_folder.RECIPE).write_text("name: tiny\n")
        with pytest.raises(ScalerError, match="another run is at work in it"), run_folder.hold(first, "tiny"):
            pass
        assert first.is_dir()  # the refused start removes nothing of the other
    assert names(tmp_path / "runs") == ["tiny-2"] and names(tmp_path / "runs" / "tiny-2") == [".lock", "recipe.yaml"]
    with pytest.raises(ScalerError), run_folder.hold(tmp_path / "new" / "one", "tiny"):
        raise ScalerError("refused")
    assert names(tmp_path) == ["runs"]
    (tmp_path / "mine").mkdir()
    with run_folder.hold(tmp_path / "mine", "tiny"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_a_lock_that_was_removed_with_its_folder_is_none(tmp_path, monkeypatch):
    """Whoever has opened it before, and locks it after, would be alone with it."""
    folder, opened, open_lock = tmp_path / "run", [], folders._open_lock

    def open_and_lose_once(path):
        file = open_lock(path)
        if not opened:
            opened.append(path)
            (path / folders.LOCK).unlink()
            path.rmdir()
        return file

    monkeypatch.setattr(folders, "_open_lock", open_and_lose_once)
    with folders.lock(folder), pytest.raises(ScalerError, match="another run is at work"):
        folders.lock(folder)


def test_looking_at_a_lock_is_not_holding_it(tmp_path):
    """A start that meets somebody who looks waits a moment; whoever looks changes nothing."""
    assert folders.is_held(tmp_path) is False and not names(tmp_path)
    held = folders.lock(tmp_path)
    said = (tmp_path / folders.LOCK).read_text()
    assert folders.is_held(tmp_path) is True and (tmp_path / folders.LOCK).read_text() == said
    held.close()
    assert folders.is_held(tmp_path) is False
    looking = (tmp_path / folders.LOCK).open()
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(folders.TRY_SECONDS / 2, looking.close).start()
    folders.lock(tmp_path).close()


@pytest.mark.parametrize(
    ("holder", "answer", "held"),
    [("process 4 on gpu07", True, None), ("job 11, start 0, process 4 on gpu07", True, True)]
    + [("job 11, start 0, process 4 on gpu07", answer, answer) for answer in (False, None)],
)
def test_of_a_lock_on_another_node_slurm_alone_can_tell(tmp_path, monkeypatch, holder, answer, held):
    (tmp_path / folders.LOCK).write_text(holder + "\n")
    monkeypatch.setattr(folders.slurm, "is_running", lambda job: answer)
    assert folders.is_held(tmp_path) is held


def test_two_cannot_hold_one_folder(tmp_path):
    held = folders.lock(tmp_path)
    with pytest.raises(ScalerError, match="another run is at work in it"):
        folders.lock(tmp_path)
    held.close()
    folders.lock(tmp_path).close()


JOB = {"SLURM_JOB_ID": "12", "SLURM_JOB_NAME": "pretrain"}


def test_the_job_that_holds_a_folder_is_named(tmp_path, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    held = folders.lock(tmp_path)
    monkeypatch.setenv("SLURM_JOB_ID", "13")
    with pytest.raises(ScalerError, match=r"at work in it \(job 12, start 0, process \d+ on "):
        folders.lock(tmp_path)
    held.close()


def test_a_lock_that_outlives_the_node_of_an_earlier_start_of_the_job_does_not_stop_it(tmp_path, monkeypatch):
    for name, value in JOB.items():
        monkeypatch.setenv(name, value)
    dead = folders.lock(tmp_path)
    with pytest.raises(ScalerError, match="another run is at work"):
        folders.lock(tmp_path)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    folders.lock(tmp_path).close()
    dead.close()


@pytest.mark.parametrize("running", [True, False])
def test_where_locks_are_each_nodes_own_slurm_is_asked(tmp_path, monkeypatch, running):
    (tmp_path / folders.LOCK).write_text("job 11, start 0, process 4 on gpu07\n")
    monkeypatch.setattr(folders.slurm, "is_running", lambda job: running and job == "11")
    if running:
        with pytest.raises(ScalerError, match="job 11, start 0, process 4 on gpu07"):
            folders.lock(tmp_path)
    else:
        folders.lock(tmp_path).close()


def test_a_disk_without_locks_is_worked_on_and_it_is_said(tmp_path, monkeypatch, capsys, caplog):
    def refuse(file, how):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with caplog.at_level("WARNING", "scaler"):
        folders.lock(tmp_path).close()
    assert "cannot be locked (No locks available); let no second start work in it" in caplog.text
    assert not capsys.readouterr().out  # which is for results


def test_what_fails_after_the_end_leaves_it_finished(tmp_path):
    run_folder.set_state(tmp_path, "finished", step=3)
    with pytest.raises(OSError), run_folder.recording_failure(tmp_path):
        raise OSError(errno.EIO, "the last file cannot be removed")
    assert json.loads((tmp_path / "state.json").read_text())["state"] == "finished"


def test_the_reason_of_a_failure_is_written_down(tmp_path):
    with pytest.raises(ScalerError), run_folder.recording_failure(tmp_path):
        raise ScalerError("the loss is not finite")
    assert json.loads((tmp_path / "state.json").read_text())["why"] == "the loss is not finite"

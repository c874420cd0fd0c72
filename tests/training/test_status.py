"""What is said of a run from its folder alone, however far it came."""

import json
import os
import shutil
import time

import pytest
from refusals import refusal

from scaler import status, train
from scaler.core import folders
from scaler.core.errors import ScalerError
from scaler.training import run_folder
from scaler.training import status as training_status


@pytest.fixture
def run(tmp_path, tiny_recipe_file):
    """A run that began, logged, met a fault and is running."""
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / run_folder.RECIPE).write_text(tiny_recipe_file.read_text().replace("steps: 12", "steps: 100"))
    (folder / "checkpoints" / "step_00000020").mkdir(parents=True)
    run_folder.set_state(folder, "running", step=20, steps=100)
    for ranks in (4, 2):
        slurm = {"id": "12", "name": "pretrain"}
        run_folder.add_attempt(folder, {"ranks": ranks, "hosts": {"node1": ranks}, "slurm": slurm})
    records = [
        {"step": 20, "heldout_loss": 5.5},
        {"step": 30, "train_loss": 5.25, "speed_tokens_per_second": 1234.5, "speed_seconds_left": 75.0},
        {"step": 30, "speed_slowest_rank": 1, "speed_slowest_rank_to_median": 1.5},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records) + '{"step": 3')
    (folder / "faults.jsonl").write_text(json.dumps({"step": 25, "verdict": "skipped"}) + "\n")
    return folder


@pytest.fixture
def at_work(run):
    """The run, while a process holds its folder."""
    with folders.lock(run):
        yield run


def test_a_running_one_says_all_of_it(at_work):
    run = at_work
    lines = [" ".join(line.split()) for line in training_status.render(training_status.status(run)).splitlines()]
    assert lines == [
        str(run),
        "state running",
        "step 30 of 100, saved at 20",
        "loss training 5.250, held-out 5.500",
        "speed 1,234 tokens/s, 1m15s left",
        "slowest rank 1, 1.50 times the median's time for its own work",
        "starts 2; the last one: 2 ranks on node1 (2), SLURM job 12",
        "faults 1; the last at step 25: skipped",
    ]


def test_one_that_nobody_is_at_work_in_is_not_running(run, call, monkeypatch):
    """A kill leaves the word; the lock goes with the process."""
    folders.lock(run).close()
    found = training_status.status(run)
    assert found["state"] == "interrupted" and found["seconds_left"] is None
    text = training_status.render(found)
    assert "interrupted (no process is at work in it; the same command with --run_dir goes on)" in text
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "mine")
    monkeypatch.chdir(run.parent)
    assert "interrupted" in call(status.main)[1] and "running" not in call(status.main, "--json")[1]


def test_where_no_lock_can_tell_it_is_said(run):
    (run / folders.LOCK).write_text("process 4 on another-node\n")
    text = training_status.render(training_status.status(run))
    assert "running (it says; its lock cannot be seen from this machine)" in text


def test_a_finished_one_has_an_export_that_opens(run):
    run_folder.set_state(run, "finished", step=100)
    found = training_status.status(run)
    assert found["state"] == "finished" and found["why"] == f"{run / 'export' / 'config.json'}: missing"


def test_one_that_has_been_silent_for_long_may_be_dead(at_work):
    run = at_work
    for path in run.iterdir():
        os.utime(path, (0, time.time() - 7200))
    assert "its last word is 2h00m old: look whether it still is" in training_status.render(training_status.status(run))


def test_a_failed_one_says_why(run):
    run_folder.set_state(run, "failed", why="the disk is full")
    found = training_status.status(run)
    assert "failed (the disk is full)" in training_status.render(found)
    assert found["seconds_left"] is None


def test_one_that_has_only_begun(tmp_path):
    (tmp_path / run_folder.RECIPE).write_text("name: mine\n")
    text = training_status.render(training_status.status(tmp_path))
    assert "step     0 of ?, nothing saved" in text and "loss     -" in text


def test_reports_of_a_hung_rank_are_named(run):
    (run / "hung").mkdir()
    (run / "hung" / "rank_00001.txt").write_text("{}")
    assert "reports in hung/: rank_00001.txt" in training_status.render(training_status.status(run))


def test_several_as_json(run, call):
    ended, printed, _ = call(status.main, run, run, "--json")
    assert ended == 0 and [found["step"] for found in json.loads(printed)] == [30, 30]


def test_a_folder_without_a_run_is_refused(tmp_path, call):
    with pytest.raises(ScalerError, match=r"no run \(no recipe.yaml\)"):
        training_status.status(tmp_path)
    refusal(call(status.main, tmp_path / "nowhere"))


def test_fine_tunings_among_runs_are_passed_over(run, tmp_path, call):
    (tmp_path / "mine-tokens").mkdir()
    (tmp_path / "mine-tokens" / "settings.json").write_text("{}")
    result, output, _ = call(status.main, tmp_path / "mine", tmp_path / "mine-tokens")
    assert result == 0 and str(run) in output and "mine-tokens" not in output


def test_a_run_of_another_version_is_named_with_both_versions(run, call):
    run_folder.add_attempt(run, {"packages": {"scaler": "9.0"}, "commit": "f" * 40, "ranks": 1, "hosts": {"a": 1}})
    recipe = run / run_folder.RECIPE
    recipe.write_text(recipe.read_text().replace("objective:", "objectives:"))
    shown = training_status.render(training_status.status(run))
    assert f"written by scaler 9.0, commit {'f' * 40}, and this is scaler" in shown and "step     30 of ?" in shown
    error = refusal(call(train.main, "--run_dir", run, "--dry_run"))
    assert "written by scaler 9.0" in error and "unknown key objectives" in error
    assert "use the version that wrote it, or begin a new run" in error


def test_a_run_that_cannot_be_read_does_not_hide_the_others(run, monkeypatch, call):
    (run.parent / "runs").mkdir()
    run.rename(run.parent / "runs" / "mine")
    shutil.copytree(run.parent / "runs" / "mine", run.parent / "runs" / "broken")
    (run.parent / "runs" / "broken" / run_folder.STATE).write_text("{")
    monkeypatch.chdir(run.parent)
    ended, said, _ = call(status.main)
    assert ended == 0 and "unreadable: runs/broken/state.json" in said and "30 of 100" in said

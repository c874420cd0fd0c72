"""Sweeps: the space, halving, trials that fail, kills, several workers, what is refused; a real one in the end."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from functools import partial

import optuna
import pytest
from conftest import ROOT
from failures import failing
from limits import limit, wait_until
from refusals import refusal
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from scaler import status, sweep
from scaler.config import recipe
from scaler.core import charts, files, folders
from scaler.sweeps import report as sweep_report
from scaler.sweeps import sweep as sweeps_sweep
from scaler.sweeps import trial as sweep_trial

STUB = ROOT / "tests" / "workers" / "training_stub.py"
RATE = "optimizer.learning_rate=log:1e-5:1e-1"
SHORT = ["training.steps=12", "training.evaluate_every=2"]  # six evaluations


# ---- halving


@pytest.mark.parametrize("seed", range(5))
def test_halving_decides_as_optunas_does(seed):
    chance = random.Random(seed)
    study = optuna.create_study(pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3))
    came: dict[int, list[float]] = {}
    for _ in range(40):
        trial = study.ask()
        for number in range(1, 28):
            loss = float(chance.randrange(12))  # so that some are equal
            trial.report(loss, number)
            ours = sweep_trial.goes_on(number, loss, came.get(number, []))
            came.setdefault(number, []).append(loss)
            assert ours != trial.should_prune(), (number, loss)
            if not ours:
                break
        study.tell(trial, 0.0)


def test_between_the_rungs_nobody_is_stopped():
    assert all(sweep_trial.goes_on(number, 9.0, [1.0] * 9) for number in (2, 4, 5, 6, 7, 8, 10, 12, 18))
    assert not any(sweep_trial.goes_on(number, 9.0, [1.0] * 9) for number in (1, 3, 9, 27))


# ---- sweeps of trainings that take no time


@pytest.fixture
def search(tiny_recipe_file, tmp_path, monkeypatch, call):
    """Do a sweep over learning rates; exit status, output, error output."""
    monkeypatch.setattr(sweeps_sweep, "TRAIN", STUB)
    monkeypatch.setattr(sweeps_sweep, "POLL_SECONDS", 0.02)
    return partial(call, sweep.main, tmp_path / "sweep", "--recipe", tiny_recipe_file, "--space")


def records(folder):
    return sweep_trial.records(folder / "sweep")


def without_time(folder):
    return [
        {key: value for key, value in record.items() if key not in ("seconds", "steps")} for record in records(folder)
    ]


def test_a_sweep_finds_a_better_rate_than_the_recipes_own_and_says_what_it_cost(search, tmp_path, tiny_recipe_file):
    status_, said, _ = search(RATE, *SHORT, "optimizer.learning_rate=1e-4", "--trials", 8)
    assert status_ == 0
    results = json.loads((tmp_path / "sweep" / "results.json").read_text())
    ranked = {trial["trial"]: trial for trial in results["trials"]}
    best, own = ranked[results["best"]], ranked[0]
    assert own["state"] == "finished" and own["parameters"] == {"optimizer.learning_rate": 1e-4}
    assert best["heldout_loss"] < own["heldout_loss"] == pytest.approx(2 + 1 / 6)
    assert (
        f"best: trial {results['best']}, held-out loss {best['heldout_loss']:.3f} (trial 0, the recipe as it is: 2.167)"
        in said
    )
    assert {trial["state"] for trial in ranked.values()} == {"finished", "pruned"}
    for trial in ranked.values():
        assert trial["tokens"] == trial["steps"] * 12 * 32
        assert len(trial["losses"]) in ([6] if trial["state"] == "finished" else [1, 3])
    cost = results["cost"]
    assert (
        cost["tokens"] + cost["tokens_saved_by_halving"] == 8 * cost["tokens_of_a_whole_training"] == 8 * 12 * 12 * 32
    )
    assert f"8 trials, {cost['steps']} steps, {cost['tokens']:,} tokens" in said

    found = recipe.load(str(tmp_path / "sweep" / "best.yaml"))
    own_recipe = recipe.load(str(tiny_recipe_file), SHORT)
    rate = best["parameters"]["optimizer.learning_rate"]
    assert found == replace(own_recipe, name="tiny-best", optimizer=replace(own_recipe.optimizer, learning_rate=rate))

    runs = tmp_path / "sweep"
    assert [path.parent.name for path in runs.glob("*/export")] == [f"trial-{results['best']:04d}"]
    assert not list(runs.glob("*/checkpoints"))
    assert (runs / "sweep.png").read_bytes().startswith(b"\x89PNG")
    for number, trial in ranked.items():
        board = EventAccumulator(str(runs / "tensorboard" / f"trial-{number:04d}")).Reload()
        assert board.Scalars("sweep/heldout_loss")[0].value == pytest.approx(trial["heldout_loss"])
        shown = board.summary_metadata["_hparams_/session_start_info"].plugin_data.content
        assert b"optimizer.learning_rate" in shown and trial["state"].encode() in shown


def test_the_same_sweep_has_the_same_trials_and_a_second_look_changes_nothing(search, tmp_path):
    search(RATE, *SHORT, "--trials", 4)
    first = without_time(tmp_path)
    status_, said, errors = search(RATE, *SHORT, "--trials", 4, "--json")
    assert (status_, "begins" in errors) == (0, False)
    assert json.loads(said) == json.loads((tmp_path / "sweep" / "results.json").read_text())
    assert without_time(tmp_path) == first
    (tmp_path / "sweep").rename(tmp_path / "before")
    search(RATE, *SHORT, "--trials", 2)
    search(RATE, *SHORT, "--trials", 4)  # more of them
    assert without_time(tmp_path) == first
    assert {record["state"] for record in first} == {"finished", "pruned"}


def test_a_picture_and_a_curve_that_fail_cost_a_warning(search, tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "save", failing)
    monkeypatch.setattr(RecordWriter, "write", failing)
    ended, said, errors = search(RATE, *SHORT, "--trials", 2)
    assert ended == 0 and "best: trial " in said and "Traceback" not in errors
    assert "sweep.png: no picture: no such colour" in errors and "TensorBoard's curves end here" in errors
    assert json.loads((tmp_path / "sweep" / "results.json").read_text())["best"] is not None
    assert (tmp_path / "sweep" / "best.yaml").is_file()


def test_where_the_best_export_is_damaged_the_others_stay(search, tmp_path):
    search(RATE, *SHORT, "--trials", 1)
    (tmp_path / "sweep" / "trial-0000" / "export" / "model.safetensors").write_bytes(b"")
    record = tmp_path / "sweep" / "trial-0000.json"
    record.write_text(json.dumps({**json.loads(record.read_text()), "losses": {"6": 0.0}}))
    search(RATE, *SHORT, "--trials", 4)
    finished = {f"trial-{one['trial']:04d}" for one in records(tmp_path) if one["state"] == "finished"}
    assert {path.parent.name for path in (tmp_path / "sweep").glob("*/export")} >= finished > {"trial-0000"}


def test_a_poor_trial_is_stopped_by_the_file_and_left_alone(search, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.3")
    search(RATE, *SHORT, "--trials", 3)
    pruned = [record for record in records(tmp_path) if record["state"] == "pruned"]
    assert pruned
    for record in pruned:
        assert record["steps"] < record["of_steps"]
        state = json.loads((tmp_path / "sweep" / f"trial-{record['trial']:04d}" / "state.json").read_text())
        assert (state["state"], state["by"]) == ("stopped", "a file STOP")


@pytest.mark.parametrize(
    ("variable", "error"),
    [("STUB_BREAK", "the rate broke it (status 2)"), ("STUB_NAN", "the held-out loss is nan after step 2")],
)
def test_failed_trials_are_shown_as_failed(search, tmp_path, monkeypatch, variable, error):
    monkeypatch.setenv(variable, "2e-4")
    ended, said, _ = search(RATE, *SHORT, "optimizer.learning_rate=1e-4", "--trials", 3)
    failed = [record for record in records(tmp_path) if record["state"] == "failed"]
    assert ended == 0 and failed and len(records(tmp_path)) == 3
    for record in failed:
        assert record["parameters"]["optimizer.learning_rate"] > 2e-4 and record["error"] == error
        assert f"trial {record['trial']} failed: {error}" in said
    listed = json.loads((tmp_path / "sweep" / "results.json").read_text())["trials"]
    assert [trial["state"] for trial in listed[-len(failed) :]] == ["failed"] * len(failed)


def test_where_all_fail_there_is_no_best(search, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_BREAK", "0")
    ended, said, _ = search(RATE, *SHORT, "--trials", 2)
    assert ended == 0 and said.count("failed: the rate broke it") >= 2 and "best:" not in said
    assert json.loads((tmp_path / "sweep" / "results.json").read_text())["best"] is None
    assert not (tmp_path / "sweep" / "best.yaml").exists()


def test_categories_and_values_that_the_recipe_does_not_have_are_drawn(search, tmp_path):
    space = ("training.rows=[6, 24]", "--space", "model.classifier_dropout=0.0:0.5", "--space", RATE)
    ended, _, _ = search(*space, *SHORT, "--trials", 3)
    assert ended == 0 and (tmp_path / "sweep" / "sweep.png").is_file()
    assert records(tmp_path)[0]["parameters"]["model.classifier_dropout"] is None
    assert {record["rows"] * record["of_steps"] for record in records(tmp_path)} == {144}


# ---- stops, kills, several workers

PROGRAM = """
import sys
from pathlib import Path
from scaler.sweep import main
from scaler.sweeps import sweep
sweep.TRAIN, sweep.POLL_SECONDS = Path(sys.argv.pop(1)), 0.05
main()
"""


@pytest.fixture
def start(tiny_recipe_file, tmp_path, start_command):
    """Start a sweep as a process of its own, which is killed with its trainings where the test leaves it."""

    def run(*more, **environ):
        words = (sys.executable, "-c", PROGRAM, STUB, tmp_path / "sweep", "--recipe", tiny_recipe_file, "--space", RATE)
        said = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        return start_command(*words, *SHORT, *more, environ=environ, **said)

    return run


def starts(folder, number):
    path = folder / "sweep" / f"trial-{number:04d}" / "starts"
    return [int(line) for line in path.read_text().splitlines()] if path.is_file() else []


def evaluations(folder, number):
    path = sweep_trial.record_file(folder / "sweep", number)
    return len(json.loads(path.read_text())["losses"]) if path.is_file() else 0


def test_a_sweep_that_is_killed_goes_on_with_the_same_trials(start, search, tmp_path):
    killed = start("--trials", "3", STUB_SECONDS="0.5")
    wait_until(lambda: evaluations(tmp_path, 0) >= 2, killed)
    os.kill(killed.pid, signal.SIGKILL)  # its training goes on by itself, and is not started a second time
    ended, said, _ = search(RATE, *SHORT, "--trials", 3)
    assert ended == 0 and "trial 0 goes on: the recipe as it is" in said
    assert starts(tmp_path, 0) == [0]
    resumed = without_time(tmp_path)
    (tmp_path / "sweep").rename(tmp_path / "before")
    search(RATE, *SHORT, "--trials", 3)
    assert without_time(tmp_path) == resumed


def test_a_training_that_died_with_its_sweep_goes_on_where_it_was(search, tmp_path, monkeypatch):
    search(RATE, *SHORT, "--trials", 1)
    path = sweep_trial.record_file(tmp_path / "sweep", 0)
    done = json.loads(path.read_text())
    path.write_text(json.dumps({**done, "state": "running", "losses": {"1": done["losses"]["1"]}}))
    run = tmp_path / "sweep" / "trial-0000"
    (run / "state.json").write_text('{"state": "running"}')
    (run / "metrics.jsonl").write_text("".join((run / "metrics.jsonl").read_text().splitlines(keepends=True)[:3]))
    (run / "STOP").touch()  # that another start has not come to see
    assert search(RATE, *SHORT, "--trials", 1)[0] == 0
    (again,) = records(tmp_path)
    assert starts(tmp_path, 0) == [0, 6] and again == {**done, "seconds": again["seconds"]}
    assert again["seconds"] > done["seconds"]


@pytest.mark.parametrize("how", ["SIGTERM", "STOP"])
def test_a_sweep_that_is_asked_to_stop_stops_its_trials_and_goes_on(search, tmp_path, monkeypatch, how):
    def ask():
        wait_until(lambda: evaluations(tmp_path, 0) >= 1)
        (tmp_path / "sweep" / "STOP").touch() if how == "STOP" else os.kill(os.getpid(), signal.SIGTERM)

    asking = threading.Thread(target=ask)
    asking.start()
    monkeypatch.setenv("STUB_SECONDS", "0.5")
    ended, said, _ = search(RATE, *SHORT, "--trials", 3)
    asking.join()
    assert ended == 0 and "the same command goes on" in said and "trial 0: stopped after" in said
    assert [record["state"] for record in records(tmp_path)] == ["running"]  # not over
    told = json.loads((tmp_path / "sweep" / "results.json").read_text())["trials"]
    assert [trial["state"] for trial in told] == ["stopped"]
    with folders.lock(tmp_path / "sweep" / "trial-0000"):  # a training whose sweep was killed alone
        assert sweep_report.write(tmp_path / "sweep")["trials"][0]["state"] == "running"
    assert not list((tmp_path / "sweep").rglob("STOP"))
    monkeypatch.delenv("STUB_SECONDS")
    assert search(RATE, *SHORT, "--trials", 3)[0] == 0
    assert len(starts(tmp_path, 0)) == 2 and starts(tmp_path, 0)[1] >= 2
    assert "running" not in {record["state"] for record in records(tmp_path)} and len(records(tmp_path)) == 3


def test_two_workers_have_two_trials_at_work(search, tmp_path, monkeypatch):
    monkeypatch.setenv("STUB_SECONDS", "0.2")
    ended, said, _ = search(RATE, *SHORT, "--trials", 3, "--workers", 2)
    lines = [line.split(":")[0] for line in said.splitlines() if line.startswith("trial ")]
    assert ended == 0 and lines[:2] == ["trial 0 begins", "trial 1 begins"] and len(lines) == 6
    assert all(starts(tmp_path, number) == [0] for number in range(3))


@pytest.mark.slow
def test_processes_share_the_trials(start, search, tmp_path, monkeypatch):
    other = start("--trials", "8", "--workers", "2", STUB_SECONDS="0.3")
    wait_until(lambda: evaluations(tmp_path, 1) >= 1, other)
    monkeypatch.setenv("STUB_SECONDS", "0.3")
    ended, said, _ = search(RATE, *SHORT, "--trials", 8, "--workers", 2)
    others, _ = other.communicate(timeout=limit(400))
    assert ended == 0 and other.returncode == 0, others
    assert sorted(record["trial"] for record in records(tmp_path)) == list(range(8))
    assert all(starts(tmp_path, number) == [0] for number in range(8))
    assert said.count("begins") + others.count("begins") == 8 and "begins" in said and "begins" in others
    assert {record["state"] for record in records(tmp_path)} <= {"finished", "pruned"}
    assert len(json.loads((tmp_path / "sweep" / "results.json").read_text())["trials"]) == 8


def test_each_trial_at_work_has_its_share_of_cores_and_gpus(monkeypatch):
    given = sweep.parser().parse(["x", "--space", RATE, "--workers", "2", "--ranks", "2"])
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    monkeypatch.setenv("OMP_NUM_THREADS", "16")
    monkeypatch.setattr(sweeps_sweep.torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4,6,7")
    found = [sweeps_sweep._environ(given, slot) for slot in range(2)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found] == ["3,4", "6,7"]
    assert [one["OMP_NUM_THREADS"] for one in found] == ["4", "4"]
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert sweeps_sweep._environ(given, 0)["OMP_NUM_THREADS"] == "1"


@pytest.mark.parametrize("allowed", [(), ("--allow_untested_ds_keys",)])
def test_keys_that_were_never_tried_are_allowed_to_trainings_where_they_are_to_the_sweep(allowed):
    given = sweep.parser().parse(["x", "--space", RATE, *allowed])
    command = sweeps_sweep._command(given, {"trial": 1, "overrides": []})
    assert ("--allow_untested_ds_keys" in command) == bool(allowed)


# ---- what is refused


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["optimizer.weight_decay=0.5"], "was begun with optimizer.weight_decay"),
        (["--space", "training.rows=[6, 12]"], "was begun with space"),
        (["seed=3"], "was begun with recipe.seed=0, and not 3; name another folder"),
        (["--deepspeed_config", ROOT / "ds_configs" / "zero1.json"], "was begun with ds_config"),
    ],
)
def test_the_folder_of_another_sweep_is_refused(search, tmp_path, more, said):
    search(RATE, *SHORT, "--trials", 1)
    before = without_time(tmp_path)
    error = refusal(search(RATE, *SHORT, "--trials", 2, *more))
    assert said.replace("begun with optimizer", "begun with recipe.optimizer") in error
    assert without_time(tmp_path) == before


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([RATE, "--trials", 0], "--trials 0: 1 is the least"),
        ([RATE, "training.evaluate_every=5"], "training.steps=12 is no multiple of training.evaluate_every=5"),
        ([RATE, "data.folder=nowhere"], "nowhere/rows-32: no rows here"),
        (["optimizer.learning_rat=1:2"], "did you mean 'learning_rate'?"),
        (["model.hidden_dropout=0.0:0.1"], "unknown key model.hidden_dropout for roberta"),
        (["training.rows=[6, 9]", "--ranks", 2], "9"),
        ([RATE, "--recipe", "nowhere"], "no recipe and no file 'nowhere'"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(search, tmp_path, words, said):
    assert said in refusal(search(*words))
    assert not (tmp_path / "sweep").exists()


def test_the_folder_of_something_else_is_refused(search, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "thesis.tex").touch()
    ended, _, error = search(RATE)
    assert ended == 2 and "is neither new nor a sweep (no settings.json)" in error
    assert [path.name for path in (tmp_path / "sweep").iterdir()] == ["thesis.tex"]


def test_without_optuna_it_says_what_to_install(search, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    ended, _, error = search(RATE)
    assert ended == 2 and "pip install '.[sweep]'" in error


def test_among_runs_a_sweep_is_passed_over_and_its_trials_have_a_status(search, tmp_path, call):
    search(RATE, *SHORT, "--trials", 1)
    ended, said, _ = call(status.main, tmp_path / "sweep", tmp_path / "sweep" / "trial-0000")
    assert ended == 0 and "finished" in said and said.count("state") == 1


# ---- real trainings


def test_a_poor_training_is_stopped_and_its_checkpoints_go(search, tmp_path, monkeypatch):
    long = [RATE, "training.steps=3000", "training.evaluate_every=10", "checkpoint.every=3000", "--trials"]
    search(*long, 1)  # a stand-in, too good to be true
    monkeypatch.setattr(sweeps_sweep, "TRAIN", ROOT / "scaler" / "train.py")
    ended, said, _ = search(*long, 2)
    poor = records(tmp_path)[1]
    assert ended == 0 and poor["state"] == "pruned" and poor["steps"] < 3000, said
    assert 3 < poor["losses"]["1"] < 6 and len(poor["losses"]) == 1
    run = tmp_path / "sweep" / "trial-0001"
    assert json.loads((run / "state.json").read_text())["by"] == "a file STOP"
    assert {path.name for path in run.iterdir()} & {"checkpoints", "export", "STOP"} == set()
    asked = recipe.load(str(run / "recipe.yaml"))
    assert asked.optimizer.learning_rate == poor["parameters"]["optimizer.learning_rate"]
    assert (asked.name, asked.training.steps, asked.checkpoint.keep_last) == ("tiny", 3000, 1)


@pytest.mark.slow
def test_a_real_sweep_survives_kills_and_its_best_recipe_trains(tiny_recipe_file, run_command, start_command, tmp_path):
    def words(folder):
        search = ["--space", "optimizer.learning_rate=log:1e-4:3e-2", "--space", "model.hidden_size=[32, 30]"]
        short = ["training.steps=60", "training.evaluate_every=10", "optimizer.learning_rate=2e-4"]
        start = [sys.executable, "-m", "scaler.sweep", folder, "--recipe", str(tiny_recipe_file)]
        return [*start, *search, *short, "--trials", "5"]

    environ = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    run_command(*words("alone"), cwd=tmp_path, timeout=900, status=0, **environ)

    for kill in (os.kill, os.killpg):  # the sweep alone, and all of it
        process = start_command(*words("sweep"), environ=environ, stderr=None)
        wait_until(lambda: list((tmp_path / "sweep").glob("*/metrics.jsonl")))
        time.sleep(3)
        kill(process.pid, signal.SIGKILL)
        process.wait()
    run_command(*words("sweep"), cwd=tmp_path, timeout=900, status=0, **environ)
    results = [json.loads((tmp_path / name / "results.json").read_text()) for name in ("alone", "sweep")]
    told = [[(trial["trial"], trial["state"], trial["losses"]) for trial in one["trials"]] for one in results]
    assert told[0] == told[1]
    ranked = {trial["trial"]: trial for trial in results[0]["trials"]}
    assert ranked[results[0]["best"]]["heldout_loss"] < ranked[0]["heldout_loss"]
    assert {trial["state"] for trial in ranked.values()} == {"finished", "pruned", "failed"}
    assert all("Transformers refuses this model" in trial["error"] for trial in ranked.values() if "error" in trial)

    train = (sys.executable, ROOT / "scaler" / "train.py")
    run_command(*train, "--recipe", "sweep/best.yaml", "--run_dir", "best", cwd=tmp_path, status=0, **environ)
    losses = [
        each["heldout_loss"] for each in files.records(tmp_path / "best" / "metrics.jsonl") if "heldout_loss" in each
    ]
    assert losses[-1] == pytest.approx(ranked[results[0]["best"]]["heldout_loss"], abs=1e-6)


@pytest.mark.slow
def test_a_trial_of_two_ranks(tiny_recipe_file, run_command, tmp_path):
    run_command(
        *(sys.executable, "-m", "scaler.sweep", "sweep", "--recipe", tiny_recipe_file, "--trials", 1, "--ranks", 2),
        *("--space", "optimizer.learning_rate=[1e-2, 2e-2]"),
        cwd=tmp_path,
        status=0,
        CUDA_VISIBLE_DEVICES="",
    )
    (attempt,) = json.loads((tmp_path / "sweep" / "trial-0000" / "environment.json").read_text())["attempts"]
    assert attempt["ranks"] == 2 and records(tmp_path)[0]["state"] == "finished"

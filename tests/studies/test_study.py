"""A study of scaling on this machine: its grid, its points really measured, stops, failures, and what is refused."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from multiprocessing.context import ForkServerProcess
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from limits import wait_until
from refusals import refusal

from scaler import study
from scaler.core import folders
from scaler.core.errors import ScalerError
from scaler.distributed import devices, local_ranks
from scaler.distributed.world import World
from scaler.studies import folder as study_folder
from scaler.studies import point as study_point
from scaler.studies import run as study_run
from scaler.studies.run import PRELOAD

PRECISION = "bf16" if devices.bf16_is_native(torch.device("cpu")) else "fp32"
SHORT = ("--steps", 2, "--warmup", 1)
NAMES = {stage: f"strong-n1x{{}}-zero{stage}-bucket50000000-rows12-micro{{}}" for stage in range(4)}


@pytest.fixture
def begin(call, tmp_path, tiny_recipe_file, monkeypatch):
    """Call the command on a study of the tiny recipe: status, output, errors."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments, folder=tmp_path / "study"):
        return call(study.main, folder, "--recipe", tiny_recipe_file, *arguments)

    return run


def names_of(said: str) -> list[str]:
    return said.split()


# ---- the grid


def test_a_grid_has_a_point_for_each_combination(begin, tmp_path):
    status, said, errors = begin("--write_only", "--nodes", "1,2", "--ranks_per_node", "1,2", "--series", "strong,weak")
    assert status == 0 and len(names_of(said)) == 2 * 4 * 4 and "left out" not in errors
    points = [entry.point for entry in study_folder.read(tmp_path / "study")]
    assert {(point.ranks, point.rows, point.micro_rows) for point in points if point.series == "strong"} == {
        *((1, 12, 4), (2, 12, 3), (4, 12, 3))
    }
    assert {(point.ranks, point.rows) for point in points if point.series == "weak"} == {(1, 12), (2, 24), (4, 48)}
    for point in points:
        written = json.loads((study_folder.folder_of(tmp_path / "study", point) / "ds_config.json").read_text())
        assert written["zero_optimization"]["stage"] == point.stage and written["gradient_clipping"] == 1.0
        assert written["train_micro_batch_size_per_gpu"] == written["gradient_accumulation_steps"] == "auto"


def test_offload_buckets_and_micro_batches_are_the_points_own(begin, tmp_path):
    grid = ("--stages", "1,0", "--offload", "both", "--buckets", "5e6,1e6", "--micro_rows", "2,4")
    status, said, errors = begin("--write_only", *grid)
    assert status == 0 and len(names_of(said)) == 2 * (1 + 4)
    assert "left out: stage 0 with offload: " in errors and "left out: stage 0 with a bucket of 1,000,000: " in errors
    for entry in study_folder.read(tmp_path / "study"):
        folder = study_folder.folder_of(tmp_path / "study", entry.point)
        zero = json.loads((folder / "ds_config.json").read_text())["zero_optimization"]
        assert zero["reduce_bucket_size"] == entry.point.bucket
        assert zero.get("offload_optimizer") == ({"device": "cpu"} if entry.point.offload else None)


def test_a_point_is_timed_with_the_mean_share_of_masks_and_holds_the_most_once(begin, tmp_path, monkeypatch):
    falling = ("objective.mask_probability=0.25", "objective.final_mask_probability=0.125")
    assert begin("--write_only", "--stages", "0", *falling)[0] == 0
    (entry,) = study_folder.read(tmp_path / "study")
    this = study_point.resolved(tmp_path / "study", entry.point, World())
    masked: list[int] = []

    def train_batch(_, job_of_step, progress, __):
        masked.append(job_of_step.recipe.masked_per_row(progress.step / this.recipe.training.steps))
        return torch.zeros(()), 1.0

    monkeypatch.setattr(study_point.loop, "train_batch", train_batch)
    engine = SimpleNamespace(train=lambda _: None, close=lambda: None)
    monkeypatch.setattr("scaler.engine.engine.Engine", lambda *_: engine)
    timed = "scaler.engine.clock.timed_collectives"
    monkeypatch.setattr(timed, lambda _: contextlib.nullcontext([]))
    found = study_point.measure(this, World(), steps=4, warmup=2)
    assert masked == [6] * (2 + 4) + [8] + [6] * study_point.COMMUNICATION_STEPS
    assert len(found.step_seconds[0]) == 4


def test_what_cannot_share_the_batch_is_named_with_the_reason(begin):
    status, said, errors = begin("--write_only", "--ranks_per_node", "1,5", "--stages", "0", "--micro_rows", "4,5")
    assert status == 0 and names_of(said) == [NAMES[0].format(1, 4)]
    left_out = [line for line in errors.splitlines() if line.startswith("left out: ")]
    assert len(left_out) == 3
    assert "strong on 1 x 5 ranks, micro-batch 4: training.rows=12 cannot be shared equally by 5 ranks" in left_out[1]
    assert "strong on 1 x 1 rank, micro-batch 5: point: 12 rows are no multiple of 1 rank x 5 rows" in left_out[0]


def test_points_are_added_and_weak_ones_keep_the_share_of_a_rank(begin, tmp_path):
    weak = ("--write_only", "--series", "weak", "--stages", "0", "--ranks_per_node")
    assert begin(*weak, "2,4")[0] == begin(*weak, "1,8")[0] == 0
    found = {entry.point.ranks: entry.point.rows for entry in study_folder.read(tmp_path / "study")}
    assert found == {1: 6, 2: 12, 4: 24, 8: 48}


# ---- what is refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["training.steps=13"], "its recipe has training.steps=12, and not 13; give the same, or name another folder"),
        (["--deepspeed_config", "other.json"], "its DeepSpeed configuration has zero_optimization.overlap_comm=False"),
    ],
)
def test_a_study_is_of_one_recipe_and_one_configuration(begin, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    content = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    content["zero_optimization"]["overlap_comm"] = True
    (tmp_path / "other.json").write_text(json.dumps(content))
    assert begin("--write_only")[0] == 0
    before = sorted((tmp_path / "study" / "points").iterdir())
    assert said in refusal(begin("--write_only", *arguments, "--ranks_per_node", 2))
    assert sorted((tmp_path / "study" / "points").iterdir()) == before


def test_keys_that_were_never_tried_are_refused_unless_allowed(begin, tmp_path):
    path = tmp_path / "untested.json"
    content = json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    path.write_text(json.dumps({**content, "prescale_gradients": False}))
    said = refusal(begin("--write_only", "--deepspeed_config", path))
    assert "prescale_gradients" in said and "--allow_untested_ds_keys" in said
    assert begin("--write_only", "--deepspeed_config", path, "--allow_untested_ds_keys")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--stages", "4"], "--stages 4: ZeRO has the stages 0, 1, 2 and 3"),
        (["--ranks_per_node", "0"], "--ranks_per_node '0': whole numbers from 1 on with commas"),
        (["--nodes", "1,two"], "--nodes '1,two': whole numbers from 1 on with commas"),
        (["--buckets", "1e5,nan"], "--buckets '1e5,nan': whole numbers"),
        (["--series", "strong,week"], "--series week: known are strong and weak"),
        (["--steps", "0"], "--steps 0: 1 is the least"),
        (["--ranks_per_node", "5"], "no point is possible: strong on 1 x 5 ranks: training.rows=12 cannot be shared"),
        (["--stages", "0", "--offload", "yes"], "no point is possible: stage 0 with offload: "),
        (["--recipe", "nowhere"], "nowhere"),
        (["--deepspeed_config", "nowhere.json"], "nowhere.json: no such file"),
        (["training.stepz=3"], "stepz"),
        (["data.folder=/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(begin, tmp_path, arguments, said):
    assert said in refusal(begin(*arguments))
    assert not (tmp_path / "study").exists()


def test_a_folder_of_something_else_is_refused(begin, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    for name in ("recipe.yaml", "state.json"):
        (run / name).write_text("{}")
    status, _, errors = begin(folder=run)
    assert status == 2 and "is neither new nor a study" in errors and len(list(run.iterdir())) == 2


def test_two_at_once_are_refused(begin, tmp_path):
    begin("--write_only", "--stages", "0")
    with folders.lock(tmp_path / "study"):
        status, _, errors = begin("--stages", "0")
    assert status == 2 and f"another run is at work in it (process {os.getpid()} on" in errors


def test_points_of_other_threads_do_not_compare(tmp_path, monkeypatch):
    point = study_folder.Point("strong", 1, 1, 0, False, 1, 12, 4)
    measured = study_folder.Measured(
        ("a",), 0, ((1.0,),), ((1.0,),), (0.0,), (1,), 30.0, "fp32", {}, None, "", "cpu", 2
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with pytest.raises(ScalerError, match="measured with 2 threads a rank, and now there would be 3; set OMP_NUM_TH"):
        study_run.threads(tmp_path, [study_folder.Entry(point, measured, ())])


def test_nodes_of_slurm_are_only_defined(begin, tmp_path):
    status, said, errors = begin("--nodes", "1,2", "--stages", "0")
    assert status == 0 and len(names_of(said)) == 2 and "sbatch slurm/scaling_study.sh" in errors
    assert not [entry for entry in study_folder.read(tmp_path / "study") if entry.measured]


def test_all_points_come_as_json_beside_what_is_said_of_them(begin, tmp_path):
    status, said, errors = begin("--write_only", "--stages", "0,1", "--json")
    first, _ = found = json.loads(said)
    assert status == 0 and "2 points to measure" in errors
    assert [one["name"] for one in found] == [entry.point.name for entry in study_folder.read(tmp_path / "study")]
    assert (first["stage"], first["rows"], first["step_seconds"], first["failures"]) == (0, 12, None, [])


# ---- really measured


def test_ctrl_c_while_a_rank_starts_is_ctrl_c_and_leaves_no_rank(tmp_path, monkeypatch):
    started, start = [], ForkServerProcess.start

    def interrupted(process):
        if started:
            raise KeyboardInterrupt
        start(process)
        started.append(process)

    monkeypatch.setattr(ForkServerProcess, "start", interrupted)
    with pytest.raises(KeyboardInterrupt):
        local_ranks.start(2, study_point.main, [str(tmp_path), "no-point"], tmp_path / "log.txt", PRELOAD)
    assert [process.exitcode is not None for process in started] == [True]


def test_a_study_is_stopped_goes_on_and_outlives_a_point_that_fails(begin, tmp_path):
    folder, grid = tmp_path / "study", ("--ranks_per_node", "1,2", "--stages", "0,3", *SHORT)
    begin("--write_only", *grid)
    names = [NAMES[0].format(1, 4), NAMES[0].format(2, 3), NAMES[3].format(1, 4), NAMES[3].format(2, 3)]
    broken = folder / "points" / names[1] / folders.LOCK
    broken.mkdir()  # so that this point's first rank cannot begin

    # ---- Ctrl-C in the second point
    def interrupt() -> None:
        while not list((folder / "logs").glob(f"{names[1]}-*")):
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    status, said, errors = begin(*grid)
    thread.join()
    assert status == 130 and errors == "stopped by Ctrl-C; nothing half-done counts as done\n"
    assert said.startswith(f"1/4 {names[0]}: ")
    first = (folder / "points" / names[0] / "measured.json").read_bytes()
    assert [entry.failures for entry in study_folder.read(folder)] == [()] * 4

    # ---- the rest; what fails is tried again twice, after the others
    status, said, _ = begin(*grid)
    assert status == 75 and f"{folder}: 3 measured, 1 failed, 0 left" in said
    assert names[0] not in said and "3/3 " in said
    assert (folder / "points" / names[0] / "measured.json").read_bytes() == first
    entries = {entry.point.name: entry for entry in study_folder.read(folder)}
    failures = entries[names[1]].failures
    assert len(failures) == 3 and all(f"{broken}: Is a directory" in reason for reason in failures)
    assert f"failed: {names[1]}: {failures[0]}\n" in said

    # ---- nothing more is tried, until somebody mends it
    status, said, errors = begin(*grid, "--json")
    assert status == 75 and "3 measured, 1 failed, 0 left" in errors
    assert [(one["step_seconds"] is None, len(one["failures"])) for one in json.loads(said)].count((True, 3)) == 1
    broken.rmdir()
    (folder / "points" / names[1] / "failures.jsonl").unlink()
    status, said, _ = begin(*grid)
    assert status == 0 and "4 measured, 0 failed, 0 left" in said

    for entry in study_folder.read(folder):
        found = entry.measured
        assert found is not None and found.warmup == 1 and found.precision == PRECISION and found.threads == 1
        ranks = entry.point.ranks
        assert [len(steps) for steps in found.step_seconds] == [2] * ranks
        assert [len(steps) for steps in found.own_seconds] == [study_point.COMMUNICATION_STEPS] * ranks
        assert all(seconds > 0 for of_rank in (*found.step_seconds, *found.own_seconds) for seconds in of_rank)
        assert len(found.hosts) == len(found.communication_seconds) == len(found.peak_bytes) == ranks
        assert min(found.peak_bytes) > 1 << 20 and 0 < found.tokens_per_row <= 32
        assert ranks == 1 or min(found.communication_seconds) > 0
        assert "torch" in found.versions


def test_a_point_that_does_not_learn_is_a_failure_that_says_so(begin, tmp_path):
    status, said, _ = begin("--stages", "2", *SHORT, "optimizer.learning_rate=1e30")
    (entry,) = study_folder.read(tmp_path / "study")
    assert status == 75 and entry.measured is None and len(entry.failures) == 3
    assert all("the gradient norm is" in reason for reason in entry.failures) and "1 failed" in said


def test_other_ranks_than_the_point_is_for_are_refused(begin, call, tmp_path):
    begin("--write_only", "--ranks_per_node", 2, "--stages", "0")
    name = NAMES[0].format(2, 3)
    assert f"error: {name}: needs 1 node x 2 ranks, but" in refusal(call(study_point.main, tmp_path / "study", name))
    said = refusal(call(study_point.main, tmp_path / "study", "nowhere"))
    assert "nowhere/point.json: not readable" in said


def test_the_reason_is_what_the_first_rank_in_trouble_said(tmp_path):
    log = tmp_path / "log.txt"
    log.write_text("warning: x\nerror: rank 1: out of memory\nTraceback\nerror: rank 0: another rank has gone\n")
    assert local_ranks.reason_of(log, 2) == "rank 1: out of memory"
    log.write_text("free(): invalid pointer\n\n")
    assert local_ranks.reason_of(log, -6) == "free(): invalid pointer"
    assert local_ranks.reason_of(tmp_path / "none", -9) == "killed by signal 9"
    assert local_ranks.reason_of(tmp_path / "none", 3) == "status 3"


@pytest.mark.slow
def test_the_ranks_of_a_killed_study_end_with_it(begin, tmp_path, tiny_recipe_file):
    grid = ("--recipe", tiny_recipe_file, "--ranks_per_node", 2, "--stages", 0, "--steps", 1000000)
    command = [sys.executable, "-m", "scaler.study", tmp_path / "study", *grid]
    with subprocess.Popen([str(word) for word in command], cwd=ROOT) as running:
        point = tmp_path / "study" / "points" / NAMES[0].format(2, 3)
        wait_until(lambda: (point / folders.LOCK).is_file() and (point / folders.LOCK).read_text())
        running.kill()
    wait_until(lambda: not is_locked(point))
    status, said, _ = begin("--ranks_per_node", 2, "--stages", 0, *SHORT)
    assert status == 0 and "1 measured, 0 failed, 0 left" in said


def is_locked(folder) -> bool:
    try:
        folders.lock(folder).close()
    except ScalerError:
        return True
    return False

"""What version 0.1.0 wrote before its modules stood in packages still loads: data, runs, checkpoints, studies, sweeps.

`tests/fixtures/before_packages.tar.xz` was written by commit c4f3e37: a RoBERTa of 2 layers of 16 on 260 documents.
"""

import json
import shutil
import sys
import tarfile

import pytest
from conftest import ROOT
from on_disk import metric
from refusals import refusal

MORE_LOSSES = [3.62999, 3.52895]  # of steps 7 and 8, that commit c4f3e37 came to when it went on with the run


@pytest.fixture
def old(tmp_path):
    with tarfile.open(ROOT / "tests" / "fixtures" / "before_packages.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path


@pytest.fixture
def scaler(old, run_command):
    def run(*arguments, status=0):
        return run_command(sys.executable, "-m", "scaler", *arguments, cwd=old, status=status, CUDA_VISIBLE_DEVICES="")

    return run


def test_prepared_data_is_up_to_date_and_whole(scaler):
    stages = [
        line for line in scaler("prepare", "--recipe", "tiny.yaml").stdout.splitlines() if not line.endswith("...")
    ]
    assert len(stages) == 6 and all("up to date" in stage for stage in stages)
    assert scaler("verify", "data/tiny").stdout.count(": whole") == 6


def test_a_finished_run_is_shown_evaluated_and_goes_on(scaler, old):
    assert json.loads(scaler("status", "runs/tiny", "--json").stdout)[0]["state"] == "finished"
    scaler("evaluate", "runs/tiny", "--split", "heldout")
    evaluated = json.loads((old / "runs/tiny/evaluation_heldout.json").read_text())
    assert evaluated["loss"] == pytest.approx(metric(old / "runs/tiny", "heldout_loss")[-1], abs=1e-5)
    assert "kana" in scaler("fill-mask", "runs/tiny", "kana <mask> kashi kazu").stdout
    refused = scaler("train", "--run_dir", "runs/tiny", "training.steps=8", status=2)
    assert "--allow_changes" in refusal(refused, begun=True)
    scaler("train", "--run_dir", "runs/tiny", "--allow_changes", "training.steps=8")
    assert metric(old / "runs/tiny", "train_loss")[-2:] == pytest.approx(MORE_LOSSES, abs=1e-3)


def test_a_killed_run_goes_on_from_an_earlier_checkpoint_to_the_same_losses(scaler, old):
    run = old / "runs/tiny"
    before = {name: metric(run, name) for name in ("train_loss", "heldout_loss", "train_gradient_norm")}
    shutil.rmtree(run / "checkpoints/step_00000006")
    shutil.rmtree(run / "export")
    (run / "state.json").unlink()
    scaler("train", "--run_dir", "runs/tiny")
    assert all(metric(run, name) == pytest.approx(values, abs=1e-4) for name, values in before.items())


def test_studies_sweeps_fine_tunings_and_measured_nodes_are_read(scaler, old):
    config = ("--recipe", "tiny.yaml", "--deepspeed_config", "zero2-fp32.json")
    plan = json.loads(scaler("plan", *config, "--hardware", "node.yaml", "--nodes", "1,2", "--json").stdout)
    assert [point["nodes"] for point in plan["points"]] == [1, 2]
    assert "2 ranks" in scaler("report", "runs/study", "--hardware", "node.yaml").stdout
    grid = ("--ranks_per_node", "1,2", "--stages", "2", "--steps", "3", "--warmup", "1")
    assert "2 measured, 0 failed, 0 left" in scaler("study", "runs/study", *config, *grid).stdout
    space = ("--space", "optimizer.learning_rate=log:1e-3:1e-1", "--trials", "2")
    fixed = ("training.evaluate_every=2", "checkpoint.every=6")
    best = json.loads((old / "runs/sweep/results.json").read_text())
    scaler("sweep", "runs/sweep", *config, *space, *fixed)
    assert json.loads((old / "runs/sweep/results.json").read_text())["trials"] == best["trials"]
    tuned = ("--learning_rates", "1e-3", "--epochs", "2", "--max_length", "32", "--out", "runs/tiny-classification")
    results = (old / "runs/tiny-classification/results.json").read_text()
    scaler("finetune", "runs/tiny", "--data", "labels.jsonl", *tuned)
    assert (old / "runs/tiny-classification/results.json").read_text() == results

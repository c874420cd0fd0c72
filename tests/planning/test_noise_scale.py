"""The gradient noise scale: against problems whose noise is known, of a run on one and two ranks, and in the plan."""

import dataclasses
import functools
import itertools
import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from refusals import refusal

from scaler import noise_scale
from scaler.checkpoint import folder as checkpoint_folder
from scaler.config import recipe as recipes
from scaler.core.errors import ScalerError
from scaler.distributed.world import World
from scaler.planning import critical_batch
from scaler.planning import noise_scale as planning_noise_scale
from scaler.planning.critical_batch import Estimate, Record

BATCHES = 24


def estimate_of(gradients: np.ndarray, rows: int) -> Estimate:
    """From gradients of batches as the rows of a matrix."""
    mean = gradients.mean(0)
    return critical_batch.estimate((gradients**2).sum(1), gradients @ mean, float(mean @ mean), rows)


class Regression:
    """Linear regression of known noise: rows x ~ N(0, 1), y = x w + noise; the loss is half of the squared error.

    At w + delta a row's gradient is x (x delta - noise), so |G|^2 = |delta|^2 and tr(Sigma) = (d + 1) |delta|^2 +
    d sigma^2.
    """

    def __init__(self, width: int, delta: float, sigma: float, rows: int, seed: int) -> None:
        self.width, self.delta, self.sigma, self.rows, self.seed = width, delta, sigma, rows, seed
        self.square = width * delta**2
        self.noise = (width + 1) * self.square + width * sigma**2
        self.parameters = [torch.zeros(width, requires_grad=True)]

    def gradient(self, number: int) -> list[torch.Tensor]:
        chance = torch.Generator().manual_seed(1000 * self.seed + number)
        x = torch.randn(self.rows, self.width, generator=chance)
        y = self.sigma * torch.randn(self.rows, generator=chance) - self.delta * x.sum(1)
        (weight,) = self.parameters
        weight.grad = None
        (0.5 * (x @ weight - y) ** 2).mean().backward()
        return [weight.grad]


def test_the_noise_of_a_known_problem_is_found_within_its_error():
    known = Regression(width=20, delta=0.5, sigma=2.0, rows=4, seed=0)
    found = planning_noise_scale.measure(known.gradient, known.parameters, batches=400, rows=4, world=World())
    assert abs(found.gradient - known.square) < 3 * found.gradient_error < 0.5 * known.square
    assert abs(found.noise - known.noise) < 3 * found.noise_error < 0.5 * known.noise
    assert abs(found.rows - known.noise / known.square) < 3 * found.rows_error < 0.5 * found.rows


def test_standard_errors_are_those_of_many_measurements():
    runs = [
        planning_noise_scale.measure(known.gradient, known.parameters, batches=24, rows=4, world=World())
        for known in (Regression(width=10, delta=0.5, sigma=1.0, rows=4, seed=seed) for seed in range(1, 81))
    ]
    known = Regression(10, 0.5, 1.0, 4, 0)
    for name, true in (("gradient", known.square), ("noise", known.noise), ("rows", known.noise / known.square)):
        values = np.array([getattr(run, name) for run in runs])
        errors = np.array([getattr(run, f"{name}_error") for run in runs])
        # a ratio of unbiased estimates is a little too large
        assert abs(values.mean() - true) < 4 * values.std() / math.sqrt(len(runs)) + 0.05 * true * (name == "rows")
        assert 0.75 < np.median(errors) / values.std() < 1.33, name


@pytest.mark.parametrize("batches, rows", [(3, 1), (4, 1), (3, 2)])
def test_both_estimators_are_unbiased_over_all_draws(batches, rows):
    population = np.array([[1.0, 0.5], [-2.0, 1.0], [0.25, 3.0]])
    mean = population.mean(0)
    found = []
    for draw in itertools.product(range(3), repeat=batches * rows):
        gradients = population[list(draw)].reshape(batches, rows, 2).mean(1)
        found.append(estimate_of(gradients, rows))
    assert np.mean([one.gradient for one in found]) == pytest.approx(mean @ mean)
    assert np.mean([one.noise for one in found]) == pytest.approx(population.var(0).sum())


def test_the_jackknife_leaves_out_one_batch_after_the_other():
    gradients = np.random.default_rng(0).normal(3.0, 0.5, (5, 3))
    without = [estimate_of(np.delete(gradients, number, 0), 2) for number in range(5)]
    found = estimate_of(gradients, 2)
    for name in ("gradient", "noise", "rows"):
        values = np.array([getattr(one, name) for one in without])
        assert getattr(found, f"{name}_error") == pytest.approx(math.sqrt(4 * values.var()))


def test_a_gradient_that_is_not_finite_is_no_noise():
    parts = [torch.ones(3)]
    with pytest.raises(ScalerError, match="not finite"):
        planning_noise_scale.measure(
            lambda number: [part / number for part in parts], parts, batches=3, rows=1, world=World()
        )


def test_where_noise_drowns_the_gradient_no_number_is_given():
    gradients = np.random.default_rng(1).normal(0.0, 1.0, (16, 50))
    found = estimate_of(gradients, 1)
    assert found.rows is None and found.rows_error is None
    assert found.noise == pytest.approx(50, rel=0.2)


# ---- of a run


@pytest.fixture(scope="module")
def figures(worker_figures, tiny_recipe_file):
    """A finished run of the tiny recipe with dropout, all of its checkpoints kept; a copy that two ranks measured."""
    return worker_figures("noise_worker", tiny_recipe_file, BATCHES)


@pytest.fixture(scope="module")
def run_dir(figures):
    return Path(figures["run"])


@pytest.fixture
def measured(run_dir, tmp_path):
    """A copy of it that a test may change."""
    return shutil.copytree(run_dir, tmp_path / "run")


def test_all_checkpoints_are_measured_kept_and_shown(measured, call):
    before = {path: path.read_bytes() for path in measured.rglob("*") if path.is_file()}
    status, said, error = call(noise_scale.main, measured, "--batches", BATCHES, "--json")
    assert status == 0, error
    found = json.loads(said)
    assert [record["step"] for record in found] == [0, 6, 12]
    for record in found:
        assert 0 < record["rows"] < math.inf and 0 < record["rows_error"] < record["rows"]
        assert record["rows"] == pytest.approx(record["noise"] / record["gradient"])
        assert (record["batches"], record["batch_rows"], record["training_rows"]) == (BATCHES, 8, 12)
        assert 16 < record["tokens_per_row"] <= 32
    kept = [json.loads(line) for line in (measured / "noise_scale.jsonl").read_text().splitlines()]
    assert kept == found
    assert len(list((measured / "tensorboard" / "noise_scale").glob("events*"))) == 1
    # and nothing of the training's own was touched
    assert all(path.read_bytes() == content for path, content in before.items())


def test_a_measurement_replaces_the_earlier_one_of_its_step_alone(measured, call):
    for batches in ("3", "12"):
        assert call(noise_scale.main, measured, "--batches", batches, "--steps", "last")[0] == 0
    assert call(noise_scale.main, measured, "--batches", "6")[0] == 0
    assert call(noise_scale.main, measured, "--batches", "12", "--steps", "last")[0] == 0
    kept = critical_batch.read(measured)
    assert [(record.step, record.batches) for record in kept] == [(0, 6), (6, 6), (12, 12)]


def test_two_ranks_find_what_one_finds(measured, figures, call):
    assert call(noise_scale.main, measured, "--batches", BATCHES)[0] == 0
    found = critical_batch.read(measured), critical_batch.read(Path(figures["shared"]))
    assert figures["said"].count("step ") == 3
    for one, two in zip(*found, strict=True):
        assert one.rows is not None
        same = {name: value for name, value in vars(one).items() if name != "seconds"}
        assert {name: getattr(two, name) for name in same} == pytest.approx(same, rel=1e-4)


def test_the_gradient_is_that_of_the_rows_that_come_next_with_their_dropout(run_dir):
    run = planning_noise_scale.Run(run_dir, torch.device("cpu"))
    run.load(run.checkpoints[-1])

    def flat(first, rows):
        return torch.cat([part.flatten() for part in run.gradient(first, rows)]).clone()

    assert torch.equal(flat(144, 8), flat(144, 8))
    run.network.eval()  # without dropout gradients of rows add up, in micro-batches of 4, too
    both = (3 * flat(144, 3) + 5 * flat(147, 5)) / 8
    assert torch.allclose(flat(144, 8), both, atol=1e-6)
    assert not torch.allclose(flat(144, 8), flat(152, 8), atol=1e-4)
    batch = next(run.batch(144, 8))
    assert torch.equal(batch.input_ids, run.reader.at(144, 4).input_ids)

    asked, gradient = [], run.gradient
    run.gradient = lambda first, rows: asked.append((first, rows)) or gradient(first, rows)
    run.noise_at(run.checkpoints[1], batches=3, rows=8, world=World())  # after 6 steps of 12 rows
    assert asked == 2 * [(72, 8), (80, 8), (88, 8)]


def test_the_masks_are_as_many_as_at_the_checkpoint(run_dir):
    run = planning_noise_scale.Run(run_dir, torch.device("cpu"))
    objective = dataclasses.replace(run.recipe.objective, mask_probability=0.25, final_mask_probability=0.125)
    run.recipe = dataclasses.replace(run.recipe, objective=objective)
    for path, masked in zip(run.checkpoints, (8, 6, 4), strict=True):  # after 0, 6 and 12 of 12 steps
        run.load(path)
        assert next(run.batch(144, 8)).labels.shape[1] == masked


def test_a_checkpoint_that_the_run_removes_meanwhile_is_left_out(measured, call, monkeypatch):
    opened = planning_noise_scale.Run.load

    def load(self, path):
        if path.name == "step_00000006":
            shutil.rmtree(path)
        return opened(self, path)

    monkeypatch.setattr(planning_noise_scale.Run, "load", load)
    status, said, error = call(noise_scale.main, measured, "--batches", "3", "--json")
    assert status == 0 and [record["step"] for record in json.loads(said)] == [0, 12]
    assert "step_00000006: removed by the run" in error
    monkeypatch.setattr(planning_noise_scale.Run, "load", lambda self, path: None)
    status, _, error = call(noise_scale.main, measured, "--batches", "3")
    assert status == 2 and "were removed while they were read" in error.splitlines()[-1]


def test_a_damaged_checkpoint_is_named(measured, call):
    file = measured / "checkpoints" / "step_00000006" / "rank_00000.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    error = refusal(call(noise_scale.main, measured, "--batches", "3"), begun=True)
    assert "step_00000006" in error and "damaged" in error


@pytest.mark.parametrize("key", ["rows_xxh3", "tokenizer_xxh3"])
def test_rows_or_a_tokenizer_that_the_run_did_not_have_are_refused(measured, call, key):
    path = measured / "checkpoints" / "step_00000006"
    manifest = checkpoint_folder.read_manifest(path)
    checkpoint_folder.write_manifest(path, {**manifest, key: "0" * 32})
    assert "trained on other rows" in refusal(call(noise_scale.main, measured, "--batches", "3"), begun=True)


def test_a_run_whose_data_is_away_is_refused(measured, tmp_path, call):
    recipe = recipes.load(str(measured / "recipe.yaml"))
    file = measured / "recipe.yaml"
    file.write_text(file.read_text().replace(f"folder: {recipe.data.folder}", f"folder: {tmp_path / 'away'}"))
    assert str(tmp_path / "away") in refusal(call(noise_scale.main, measured))


@pytest.mark.parametrize(
    "options, said",
    [
        (("--batches", "2"), "--batches 2: give 3 or more"),
        (("--rows", "0"), "--rows 0: give 1 or more"),
        (("--batches", "1000", "--rows", "1000"), "training rows, and each counts once"),
    ],
)
def test_batches_that_tell_nothing_are_refused(run_dir, call, options, said):
    assert said in refusal(call(noise_scale.main, run_dir, *options))
    assert not (run_dir / "noise_scale.jsonl").exists()


def test_folders_without_run_or_checkpoint_are_refused(measured, tmp_path, call):
    assert "no run here" in refusal(call(noise_scale.main, tmp_path / "nowhere"))
    shutil.rmtree(measured / "checkpoints")
    assert "no checkpoint here" in refusal(call(noise_scale.main, measured))


def test_an_earlier_result_that_is_damaged_is_found_before_the_work(measured, call, monkeypatch):
    monkeypatch.setattr(planning_noise_scale, "measure", None)
    for content, said in (("{", "not readable"), ('{"step": 3}\n', "seconds are missing")):
        (measured / "noise_scale.jsonl").write_text(content)
        error = refusal(call(noise_scale.main, measured))
        assert "noise_scale.jsonl" in error and said in error


# ---- what it means for a plan


def record(step: int, rows: float | None, training_rows: int = 8) -> Record:
    return Record(1.0, 0.1, 1.0, 0.1, rows, None, step, training_rows, 32, 8, 128.0, 1.0)


def test_steps_and_rows_keep_to_their_trade_off():
    critical, then = 1000.0, 64
    least_steps = critical_batch.steps(10_000, then, 10**12, critical)
    least_rows = critical_batch.steps(10_000, then, 1, critical) / (1 + critical) * critical  # B -> 0 of S B
    for rows in (1, 64, 1000, 50_000):
        steps = critical_batch.steps(10_000, then, rows, critical)
        assert (steps / least_steps - 1) * (steps * rows / least_rows - 1) == pytest.approx(1, rel=1e-6)
    assert critical_batch.steps(10_000, then, then, critical) == 10_000
    assert critical_batch.steps(10_000, then, 128, None) == 5_000
    assert critical_batch.steps(10_000, then, 128, 1e12) == pytest.approx(5_000)


def test_the_critical_batch_of_a_training_weighs_steps_by_the_way_that_they_go():
    assert critical_batch.over_training([record(0, None)]) is None
    assert critical_batch.over_training([record(5, 40.0), record(9, None)]) == pytest.approx(40)
    assert critical_batch.over_training([record(step, 40.0) for step in (0, 1, 50)]) == pytest.approx(40)
    # two hundred steps of 8 rows at 8 rows of noise, then as many at 24: 1/2 and 1/4 of a step's way
    found = critical_batch.over_training([record(0, 8.0), record(199, 8.0), record(201, 24.0), record(400, 24.0)])
    assert found == pytest.approx((8 / 2 + 24 / 4) / (1 / 2 + 1 / 4), rel=1e-2)


@pytest.fixture
def on_p5(planned):
    options = ("--hardware", "p5.48xlarge", "--nodes", "1,2,4,8", "training.rows=64", "training.steps=1000")
    return functools.partial(planned, *options)


def test_a_grown_batch_pays_for_its_rows_past_the_critical_one(on_p5):
    free = json.loads(on_p5("--weak", "--json")[1])["points"]
    content = json.loads(on_p5("--weak", "--json", "--critical_rows", "200")[1])
    assert content["critical_rows"] == 200
    assert [line["past_critical"] for line in content["points"]] == [False, False, True, True]
    for line, before in zip(content["points"], free, strict=True):
        assert line["steps"] == pytest.approx(1000 * (1 + 200 / line["rows"]) / (1 + 200 / 64))
        assert line["hours"] / before["hours"] == pytest.approx(line["steps"] / before["steps"])
        assert line["cost"] / before["cost"] == pytest.approx(line["steps"] / before["steps"])
        assert before["past_critical"] is False
    text = on_p5("--weak", "--critical_rows", "200")[1]
    assert "critical batch 200 rows, passed from 4 nodes on (*)" in text
    assert f"8 nodes need {(512 + 200) / (64 + 200):.3g} times the rows of 1" in text
    assert [line.endswith(" *") for line in text.splitlines()[2:6]] == [False, False, True, True]
    assert "critical batch 1,000 rows, not reached" in on_p5("--weak", "--critical_rows", "1000")[1]


def test_without_it_the_plan_says_what_it_takes_for_granted(on_p5):
    assert "twice the batch needs half of the steps" in on_p5("--weak")[1]
    assert "twice the batch" not in on_p5()[1]


def test_the_same_batch_takes_the_same_steps(on_p5):
    assert {line["steps"] for line in json.loads(on_p5("--critical_rows", "9", "--json")[1])["points"]} == {1000}


def test_a_plan_takes_what_was_measured_of_a_run(measured, on_p5, tiny_recipe):
    options = ("--weak", "--noise_scale", measured, "model.hidden_dropout_prob=0.1")
    status, _, error = on_p5(*options)
    assert status == 2 and "it was not measured" in error
    critical_batch.write(measured, [record(6, None), record(12, None)])
    assert "more batches are needed" in refusal(on_p5(*options))
    critical_batch.write(measured, [record(6, 300.0), record(12, 300.0)])
    assert json.loads(on_p5(*options, "--json")[1])["critical_rows"] == pytest.approx(300)
    assert "model.hidden_dropout_prob=0.1, and the plan 0.0" in refusal(on_p5("--weak", "--noise_scale", measured))


@pytest.mark.parametrize("value", ["-5", "0", "nan", "inf"])
def test_critical_rows_are_a_number_above_0(on_p5, value):
    assert "give a number of rows above 0" in refusal(on_p5("--weak", f"--critical_rows={value}"))


def test_what_is_given_and_what_was_measured_are_not_both_taken(on_p5, measured):
    status, _, error = on_p5("--critical_rows", "9", "--noise_scale", measured)
    assert status == 2 and "--noise_scale" in error and "--critical_rows" in error


def test_a_run_that_is_none_is_refused(tmp_path, tiny_recipe):
    with pytest.raises(ScalerError, match="no run here"):
        critical_batch.chosen(None, tmp_path, tiny_recipe)

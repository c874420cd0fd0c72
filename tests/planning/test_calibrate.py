"""Calibration: the line through two micro-batches, a real measurement that the plan takes, and bad input."""

import sys

import pytest
import yaml

from scaler import calibrate, plan
from scaler.core.errors import ScalerError
from scaler.planning import calibrate as planning_calibrate
from scaler.planning import hardware
from scaler.planning.calibrate import Alone

FLOPS_PER_ROW = 3e9


def test_a_line_is_found_whatever_single_steps_are_late():
    def rank(row: float, floor: float, update: float) -> Alone:
        times = {rows: [floor + rows * row + late for late in (0.0, 0.0, 0.0, 0.0, 1.0)] for rows in (2, 8)}
        return Alone(times, [update, update, 9.0], 1e9)

    found = planning_calibrate.fitted([rank(0.1, 0.02, 0.5), rank(0.1, 0.02, 0.5), rank(0.3, 0.5, 2.0)], FLOPS_PER_ROW)
    assert found["flops"] == pytest.approx(FLOPS_PER_ROW / 0.1)
    assert found["micro_seconds"] == pytest.approx(0.02) and found["update"] == 0.5 and found["spread"] == 0


def test_spread_is_a_standard_deviation_as_a_share():
    times = [1.0 + 0.01 * deviation for deviation in (-3, -2, -1, 0, 1, 2, 3)]
    found = planning_calibrate.fitted([Alone({1: [0.5], 2: times}, [0.1], 1e9)], FLOPS_PER_ROW)
    assert found["spread"] == pytest.approx(1.4826 * 0.02)


def test_a_micro_batch_that_is_slower_with_fewer_rows_is_no_measurement():
    with pytest.raises(ScalerError, match="a micro-batch of 8 rows took 1 s, and one of 2 took 2 s"):
        planning_calibrate.fitted([Alone({2: [2.0], 8: [1.0]}, [0.1], 1e9)], FLOPS_PER_ROW)


def test_a_network_is_told_from_the_cores_that_fill_it():
    network, cores = 1e8, 4e8
    on = planning_calibrate.without_cores({"inside": cores, "between": 1 / (1 / network + 1 / cores)})
    assert on["between"] == pytest.approx(network) and on["inside"] == cores
    assert (
        planning_calibrate.without_cores({"inside": 4e8, "between": 4.1e8})["between"] == planning_calibrate.UNLIMITED
    )
    assert planning_calibrate.without_cores({"inside": cores}) == {"inside": cores}


def test_one_process_measures_what_the_plan_needs(run_command, call, tiny_recipe_file, tmp_path):
    asked = ("--recipe", tiny_recipe_file, "--seconds", 1, "--rows", "2,300")
    run_command(sys.executable, "-m", "scaler.calibrate", "here.yaml", *asked, cwd=tmp_path, status=0)
    found = hardware.load(str(tmp_path / "here.yaml"))
    assert (
        found.on_cpu
        and found.devices == 1
        and found.between == planning_calibrate.UNLIMITED > found.inside
        and found.price is None
    )
    assert {"flops", "memory_bandwidth", "inside", "latency", "spread"} <= set(found.measured)
    assert "between" not in found.measured
    here = ("--hardware", tmp_path / "here.yaml", "--nodes", "1,2")
    status, said, error = call(plan.main, "--recipe", tiny_recipe_file, *here)
    assert status == 0 and "measured of the hardware: devices, flops, inside" in said, error


@pytest.mark.slow
def test_two_ranks_measure_their_link_and_keep_what_they_cannot_know(run_command, tiny_recipe_file, tmp_path):
    ranks = ("-m", "torch.distributed.run", "--nproc-per-node", 2, "-m", "scaler.calibrate", "node.yaml")
    asked = ("--recipe", tiny_recipe_file, "--seconds", 1, "--rows", "2,300", "--hardware", "p4d.24xlarge")
    run_command(sys.executable, *ranks, *asked, cwd=tmp_path, status=0)
    found, table = hardware.load(str(tmp_path / "node.yaml")), hardware.load("p4d.24xlarge")
    assert found.devices == 2 and (found.price, found.between) == (table.price, table.between)
    assert found.inside != table.inside and "inside" in found.measured and "between" not in found.measured
    assert yaml.safe_load((tmp_path / "node.yaml").read_text())["name"] == "node"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["here.txt"], "here.txt: a file *.yaml in a folder that exists is needed"),
        (["nowhere/here.yaml"], "nowhere/here.yaml: a file *.yaml in a folder that exists is needed"),
        (["here.yaml", "--rows", "8,2"], "--rows '8,2': two rising numbers are needed, such as 2,8"),
        (["here.yaml", "--seconds", "0"], "--seconds 0: give more than 0"),
        (["here.yaml", "--seconds", "nan"], "--seconds nan: give more than 0"),
        (["here.yaml", "--hardware", "p4e.24xlarge"], "no known hardware and no file 'p4e.24xlarge'"),
        (["here.yaml", "--deepspeed_config", "none.json"], "none.json: no such file"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(call, tiny_recipe_file, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    status, _, error = call(calibrate.main, *arguments, "--recipe", tiny_recipe_file)
    assert status == 2 and said in error.splitlines()[-1]
    assert not list(tmp_path.iterdir())


def test_keys_that_training_refuses_are_refused(call, tiny_recipe_file, tmp_path):
    file = tmp_path / "mine.json"
    file.write_text('{"prescale_gradients": false}')
    words = (tmp_path / "here.yaml", "--recipe", tiny_recipe_file, "--deepspeed_config", file)
    status, _, error = call(calibrate.main, *words)
    assert status == 2 and "prescale_gradients: this project was never run with it" in error
    refused_later = ("--allow_untested_ds_keys", "--hardware", "p4e.24xlarge")
    assert "no known hardware" in call(calibrate.main, *words, *refused_later)[2]

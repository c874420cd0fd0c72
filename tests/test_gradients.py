"""Weights after a few steps through every DeepSpeed configuration equal those of plain PyTorch."""

import json
import socket

import pytest
from conftest import ROOT

CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
# of the distance that the weights moved: fp32 differs in summation order alone; bf16 keeps 8 bits of each gradient
BOUNDS = {"fp32": 2e-5, "bf16": 5e-2}


@pytest.fixture(scope="module")
def figures(tiny_recipe_file, run_command, tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = run_command(
        *("deepspeed", "--num_gpus", 2, "--master_port", port, "--no_local_rank", ROOT / "tests/parity_worker.py"),
        *(tiny_recipe_file, folder / "figures.json", *CONFIGS),
        cwd=folder,
        CUDA_VISIBLE_DEVICES="",
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads((folder / "figures.json").read_text())


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("config", [path.stem for path in CONFIGS])
def test_two_ranks_with_accumulation_move_the_weights_as_plain_pytorch(figures, config, optimizer, precision):
    assert figures[f"{config}-{optimizer}-{precision}"]["relative_error"] < BOUNDS[precision]


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("config", [path.stem for path in CONFIGS])
def test_the_gradient_norm_is_that_of_the_whole_batch(figures, config, precision):
    assert figures[f"{config}-sgd-{precision}"]["norm_error"] < BOUNDS[precision]

"""Weights after a few steps through every DeepSpeed configuration equal those of plain PyTorch."""

import pytest
from conftest import ROOT

from scaler.distributed.world import free_port

CONFIGS = sorted((ROOT / "ds_configs").glob("*.json"))
# of the distance that the weights moved: fp32 differs in summation order alone; bf16 keeps 8 bits of each gradient
BOUNDS = {"fp32": 2e-5, "bf16": 5e-2}


@pytest.fixture(scope="module")
def figures(tiny_recipe_file, worker_figures):
    launcher = ("deepspeed", "--num_gpus", 2, "--master_port", free_port(), "--no_local_rank")
    return worker_figures("parity_worker", tiny_recipe_file, *CONFIGS, launcher=launcher)


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
@pytest.mark.parametrize("config", [path.stem for path in CONFIGS])
def test_two_ranks_with_accumulation_move_the_weights_as_plain_pytorch(figures, config, optimizer, precision):
    assert figures[f"{config}-{optimizer}-{precision}"]["relative_error"] < BOUNDS[precision]


@pytest.mark.parametrize("precision", BOUNDS)
@pytest.mark.parametrize("config", [path.stem for path in CONFIGS])
def test_the_gradient_norm_is_that_of_the_whole_batch(figures, config, precision):
    assert figures[f"{config}-sgd-{precision}"]["norm_error"] < BOUNDS[precision]

"""What makes a training fast changes nothing that is learned: losses and norms with each of it on and off."""

import sys

import numpy as np
import pytest
from conftest import ROOT

SWITCHES = ("attention", "head", "lookup", "gradient norm", "allocator")
STEPS = 12


@pytest.fixture(scope="module")
def figures(tiny_recipe_file, worker_figures):
    return worker_figures(sys.executable, ROOT / "tests" / "workers" / "switches_worker.py", tiny_recipe_file)


def apart(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest relative difference of losses, norms and held-out losses."""
    assert [len(values) for values in one.values()] == [STEPS, STEPS, 3]
    return max(float(np.max(np.abs(np.divide(values, other[what]) - 1))) for what, values in one.items())


@pytest.mark.parametrize("switch", SWITCHES)
def test_each_of_it_changes_fp32_losses_by_rounding_alone(figures, switch):
    found = apart(figures["fp32 on"], figures[f"fp32 without {switch}"])
    assert found < 1e-4
    assert (found == 0) == (switch == "allocator")  # where the others are really off, they round in another order


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_all_of_it_changes_losses_by_rounding_alone(figures, precision, bound):
    assert 0 < apart(figures[f"{precision} on"], figures[f"{precision} off"]) < bound

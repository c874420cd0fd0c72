"""Replacements of library code change nothing that is learned: losses and norms with each of them on and off."""

import numpy as np
import pytest

from scaler.core.switches import NAMES

STEPS = 12
# two ranks add up the same two numbers in either way, and the dropout of this recipe is 0
EXACT = ("dropout", "direct_collectives", "allocator")


@pytest.fixture(scope="module")
def figures(tiny_recipe_file, worker_figures):
    return worker_figures("switches_worker", tiny_recipe_file)


def apart(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest relative difference of losses, norms and held-out losses."""
    values = [[figures[what] for what in ("losses", "norms", "held out")] for figures in (one, other)]
    assert [len(series) for series in values[0]] == [STEPS, STEPS, 3]
    return max(float(np.max(np.abs(np.divide(mine, yours) - 1))) for mine, yours in zip(*values, strict=True))


def test_the_run_folder_says_which_were_applied(figures):
    assert set(figures["fp32 none"]["patches"].values()) == {"off"}
    assert set(figures["fp32 all"]["patches"].values()) == {"applied"}
    for name in NAMES:
        found = figures[f"fp32 without {name}"]["patches"]
        assert [other for other, outcome in found.items() if outcome == "off"] == [name]


@pytest.mark.parametrize("name", NAMES)
def test_each_changes_fp32_losses_by_rounding_alone(figures, name):
    found = apart(figures["fp32 all"], figures[f"fp32 without {name}"])
    assert found < 1e-4
    assert (found == 0) == (name in EXACT)  # where the others are really off, they round in another order


@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 2e-2)])
def test_all_change_losses_by_rounding_alone(figures, precision, bound):
    assert 0 < apart(figures[f"{precision} all"], figures[f"{precision} none"]) < bound

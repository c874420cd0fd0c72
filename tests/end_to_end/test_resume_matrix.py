"""A checkpoint of any world size, ZeRO stage and precision goes on at any other, with the same losses."""

import pytest

# fp32 differs in the order of summation alone; bf16 keeps 8 bits of weights and gradients
PROBE_BOUND = {"fp32": 1e-6, "bf16": 2e-3}
LOSS_BOUND = {"fp32": 1e-5, "bf16": 5e-3}


pytestmark = pytest.mark.slow  # `make resume-matrix` tries all pairs


@pytest.fixture(scope="module")
def figures(tiny_recipe_file, worker_figures):
    return worker_figures("resume_worker", tiny_recipe_file, "some")


def pairs(figures):
    """(saved, read, name of the pair, the coarser precision of both, whether it is the same)."""
    for name, read in figures["read"].items():
        source, target = name.split()
        precisions = [where.split(":")[1] for where in (source, target)]
        yield figures["saved"][source], read, name, min(precisions), precisions[0] == precisions[1]


def test_every_pair_was_tried(figures):
    worlds = {(name.split()[0][0], name.split()[1][0]) for name in figures["read"]}
    assert worlds == {(a, b) for a in "1234" for b in "1234"} and len(figures["read"]) == 36


def test_parameters_and_optimizer_state_are_read_bit_by_bit(figures):
    for _, read, name, _, same_precision in pairs(figures):
        # what does not train is kept in the precision of the run
        assert read["differ"] == [] or (read["differ"] == ["frozen"] and not same_precision), name


def test_the_probe_loss_is_the_one_that_was_saved(figures):
    for saved, read, name, precision, _ in pairs(figures):
        assert read["probe"] == pytest.approx(saved["probe"], abs=PROBE_BOUND[precision]), name


def test_the_next_losses_are_those_of_the_run_that_went_on(figures):
    for saved, read, name, precision, _ in pairs(figures):
        assert read["losses"] == pytest.approx(saved["losses"], abs=LOSS_BOUND[precision]), name


def test_a_gradient_that_is_not_a_number_moves_nothing_at_any_stage(figures):
    assert all(saved["unmoved"] for saved in figures["saved"].values())

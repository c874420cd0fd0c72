"""Learning rate: up in a line, down along the chosen shape."""

from typing import get_args

import pytest

from scaler.config.training_sections import Schedule, Shape


def rate(step: int, shape: str = "linear", warmup: int = 10, total: int = 100, floor: float = 0.1) -> float:
    return Schedule(warmup / total, shape, floor).learning_rate(step, total, peak=2.0)


@pytest.mark.parametrize("shape", get_args(Shape))
def test_warm_up_is_a_line_that_ends_at_the_peak(shape):
    assert [rate(step, shape) for step in range(10)] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rate(10, shape) == 2.0


@pytest.mark.parametrize("shape", get_args(Shape))
def test_after_the_peak_it_never_rises_and_ends_at_the_floor(shape):
    rates = [rate(step, shape) for step in range(10, 101)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(2.0 if shape == "constant" else 0.2)


@pytest.mark.parametrize(
    "shape, halfway", [("linear", 0.5), ("cosine", 0.5), ("sqrt", 1 - 0.5**0.5), ("constant", 1.0)]
)
def test_halfway_down_the_shapes_differ_as_they_should(shape, halfway):
    assert rate(55, shape, floor=0.0) == pytest.approx(2.0 * halfway)


@pytest.mark.parametrize("shape", get_args(Shape))
@pytest.mark.parametrize("step", [100, 101, 10_000])
def test_beyond_the_end_it_stays_at_the_end(shape, step):
    assert rate(step, shape) == rate(100, shape)


def test_a_run_may_do_without_warm_up_or_be_nothing_else():
    assert rate(0, warmup=0) == 2.0
    assert rate(99, warmup=100) == 2.0

"""The sum of squares of a gradient, at any size, precision and magnitude; test_gradients.py tests its use."""

import pytest
import torch

from scaler.model import parameters


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (256,), (300, 7), (1 << 20,), (3, (1 << 20) + 77)])
def test_it_is_right_to_a_millionth(shape, scale, dtype):
    torch.manual_seed(0)
    numbers = (torch.randn(shape) * scale).to(dtype)
    exact = numbers.double().square().sum()
    assert parameters.square(numbers).dtype == torch.float64
    torch.testing.assert_close(parameters.square(numbers), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("place", [0, 255, 256, 5000, -1])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_number_that_is_not_finite_shows(place, bad):
    numbers = torch.ones(5001)
    numbers[place] = bad
    assert not parameters.square(numbers).isfinite()

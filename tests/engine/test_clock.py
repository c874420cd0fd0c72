"""The clock of a rank's own computing."""

import pytest
import torch

from scaler.engine import clock as engine_clock


def test_only_what_is_inside_counts_and_a_reading_begins_anew(monkeypatch):
    seconds = iter([10.0, 10.5, 20.0, 20.25])  # in and out, twice
    monkeypatch.setattr(engine_clock.time, "perf_counter", lambda: next(seconds))
    clock = engine_clock.ComputeClock(torch.device("cpu"))
    assert clock.read() == 0.0
    for _ in range(2):
        with clock:
            pass
    assert clock.read() == pytest.approx(0.75)
    assert clock.read() == 0.0

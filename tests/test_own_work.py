"""The clock that tells the slowest rank."""

import time

import torch

from scaler.own_work import OwnWork


def test_only_what_is_inside_counts_and_a_reading_begins_anew():
    clock, begun = OwnWork(torch.device("cpu")), time.perf_counter()
    assert clock.read() == 0.0
    for _ in range(3):
        with clock:
            time.sleep(0.02)
    inside = time.perf_counter() - begun
    time.sleep(0.1)
    assert 0.06 <= clock.read() <= inside
    assert clock.read() == 0.0

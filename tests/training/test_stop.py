"""Requests to stop: which signals are heard, and which are not."""

import os
import signal

import pytest

from scaler.training import stop


@pytest.mark.parametrize("number", stop.SIGNALS)
def test_each_signal_is_a_request_that_ranks_can_add_up(number):
    before = signal.getsignal(number)
    with stop.StopRequests(None) as requests:
        assert stop.reason(requests.flags()) is None
        os.kill(os.getpid(), number)
        assert stop.reason(requests.flags()) == stop.SIGNALS[number]
    assert signal.getsignal(number) == before


def test_after_nohup_a_terminal_that_goes_stops_nothing():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.StopRequests(None) as requests:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.reason(requests.flags()) is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)

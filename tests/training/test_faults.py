"""What losses and gradient norms call for; who asked to stop; who hangs. All pure."""

import math
import os
import signal
from pathlib import Path

import pytest

from scaler.config.training_sections import Faults
from scaler.distributed.world import World
from scaler.training import stop, watchdog
from scaler.training.faults import Judge, Verdict

FINE, SKIPPED, SPIKE, GO_BACK, STOP = Verdict


def verdicts(settings, steps, recent=()):
    judge = Judge(settings, list(recent))
    return [judge.judge(*step) for step in steps]


@pytest.mark.parametrize("bad", [(math.nan, 1.0), (math.inf, 1.0), (2.0, math.nan), (2.0, math.inf)])
def test_what_is_not_finite_is_skipped_then_gone_back_from_then_given_up(bad):
    found = verdicts(Faults(skips=1, rollbacks=1), [(2.0, 1.0), bad, bad, bad])
    assert found == [FINE, SKIPPED, GO_BACK, STOP]


def test_skips_count_only_in_a_row():
    bad, good = (math.nan, 1.0), (2.0, 1.0)
    assert verdicts(Faults(skips=2), [bad, bad, good, bad, bad]) == [SKIPPED, SKIPPED, FINE, SKIPPED, SKIPPED]


def test_no_skips_and_no_returns_mean_stop_at_once():
    assert verdicts(Faults(skips=0, rollbacks=0), [(math.nan, 1.0)]) == [STOP]


@pytest.mark.parametrize("count", [19, 20, 99])
def test_a_spike_is_told_from_noise_once_there_are_enough_losses(count):
    recent = [3.0 + 0.01 * (number % 5) for number in range(count)]
    found = verdicts(Faults(), [(3.05, 1.0), (4.0, 1.0), (3.0, 1.0)], recent)
    assert found == [FINE, SPIKE if count >= 19 else FINE, FINE]


def test_a_spike_does_not_enter_the_losses_that_the_next_is_measured_against():
    judge = Judge(Faults(), recent := [3.0 + 0.01 * (number % 5) for number in range(50)])
    assert [judge.judge(9.0, 1.0) for _ in range(3)] == [SPIKE] * 3 and max(recent) < 4


def test_a_loss_that_has_risen_for_good_is_a_spike_no_more():
    recent = [3.0 + 0.01 * (number % 5) for number in range(50)]
    found = verdicts(Faults(), [(5.0 + 0.01 * (number % 5), 1.0) for number in range(60)], recent)
    assert found == [SPIKE] * 19 + [FINE] * 41


def test_spikes_can_be_left_unwatched_or_gone_back_from():
    recent = [3.0 + 0.01 * (number % 5) for number in range(50)]
    assert verdicts(Faults(spike_deviations=None), [(9.0, 1.0)], recent) == [FINE]
    assert verdicts(Faults(spike_rollback=True), [(9.0, 1.0)], recent) == [GO_BACK]


def test_a_falling_loss_is_no_spike():
    assert set(verdicts(Faults(), [(5.0 - 0.02 * step, 1.0) for step in range(200)])) == {FINE}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT])
def test_a_signal_is_noted_and_the_handler_given_back(number):
    before = signal.getsignal(number)
    with stop.StopRequests(None) as requests:
        assert stop.reason(requests.flags()) is None
        os.kill(os.getpid(), number)
        assert stop.reason(requests.flags()) == stop.SIGNALS[number]
    assert signal.getsignal(number) is before


def test_the_second_ctrl_c_interrupts_also_after_another_signal():
    with stop.StopRequests(None):
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)  # the first one
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)


def test_the_stop_file_is_seen_on_the_first_rank_and_removed_once_honoured(tmp_path):
    (tmp_path / "STOP").touch()
    requests, elsewhere = stop.StopRequests(tmp_path), stop.StopRequests(None)
    flags = [mine + other for mine, other in zip(requests.flags(), elsewhere.flags(), strict=True)]
    assert stop.reason(flags) == "a file STOP"
    requests.honoured()
    assert not (tmp_path / "STOP").exists()


def report(rank, beats):
    return {"rank": rank, "beats": beats, "doing": "the backward pass", "host": "node"}


@pytest.mark.parametrize(
    ("reports", "said"),
    [
        ([report(0, 9), report(1, 7), report(2, 9)], "rank 1 on node hangs, last seen in the backward pass"),
        ([report(0, 9), report(2, 9)], "rank 1 hangs and does not answer"),
        ([report(0, 9), report(1, 9), report(2, 9)], "all ranks wait at the same place"),
    ],
)
def test_the_rank_that_hangs_is_the_one_that_is_silent_or_came_least_far(reports, said):
    assert watchdog.blame(reports, 3, 600).startswith(said)


def test_a_disk_that_fails_when_all_is_done_does_not_fail_the_run(tmp_path, monkeypatch):
    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    with watchdog.Watchdog(tmp_path, World(), 60.0):
        assert (tmp_path / "hung" / "rank_00000.native.txt").exists()
        monkeypatch.setattr(Path, "unlink", refuse)

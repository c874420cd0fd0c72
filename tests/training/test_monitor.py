"""When a run shows a line, and what it keeps of its progress."""

import logging
from types import SimpleNamespace

import pytest

from scaler.core.log import SILENT_SECONDS
from scaler.distributed.world import World
from scaler.training.monitor import Monitor
from scaler.training.progress import Progress


@pytest.fixture
def monitor():
    training = SimpleNamespace(steps=1000, rows=8, log_every=500, evaluate_every=500)
    recipe = SimpleNamespace(training=training, data=SimpleNamespace(seq_len=16))
    job = SimpleNamespace(recipe=recipe, learning_rate=lambda step: 1e-3)
    return Monitor(job, World(), None, ceiling=1.0, unigram_entropy=5.0)


def test_slow_steps_are_shown_before_the_next_one_makes_the_silence_too_long(monitor, caplog):
    caplog.set_level(logging.INFO)
    monitor.add_step(Progress(step=1), loss=3.0, norm=1.0, seconds=SILENT_SECONDS + 1)
    (line,) = caplog.messages
    assert line.startswith("step      1/1,000 | loss 3.000 | lr 1.0e-03 | norm 1.00 | ")


def test_fast_steps_are_not_shown_one_by_one(monitor, caplog):
    caplog.set_level(logging.INFO)
    for step in range(1, 20):
        monitor.add_step(Progress(step=step), loss=3.0, norm=1.0, seconds=1e-4)
    assert caplog.messages == []


def test_a_step_that_is_reported_is_shown_once(monitor, caplog):
    caplog.set_level(logging.INFO)
    monitor.add_step(Progress(step=500), loss=3.0, norm=1.0, seconds=SILENT_SECONDS + 1)
    monitor.report(SimpleNamespace(compute_clock=SimpleNamespace(read=lambda: 1.0)), Progress(step=500), norm=1.0)
    assert len(caplog.messages) == 1


def test_progress_of_a_checkpoint_from_before_is_read_and_written_under_its_names():
    stored = {"step": 4, "consumed_rows": 48, "updates": 4, "digest": 7, "best_loss": 2.0, "best_step": 2}
    stored |= {"worse": 1, "recent_losses": [3.0]}
    progress = Progress.from_plain(stored)
    assert progress.evaluations_since_best == 1 and progress.to_plain() == stored

"""Measure and show a run: loss, speed, the time that is left; progress lines, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import logging
import math
import statistics
import time
from typing import Any

from scaler.core import files
from scaler.core.errors import dispensable
from scaler.core.log import SILENT_SECONDS
from scaler.core.text import duration
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.evaluation.heldout import HeldOut
from scaler.training import run_folder
from scaler.training.faults import Verdict
from scaler.training.job import Job
from scaler.training.metrics import RunLog
from scaler.training.progress import Progress

logger = logging.getLogger(__name__)


class Monitor:
    """The display and record of a run. Every rank has one; rank 0's has the log and writes.

    Args:
        log: of rank 0; None on the others.
        ceiling: rows per second, if all ranks did nothing but matrix multiplications; speed is compared with it.
        unigram_entropy: of the held-out masked tokens in nats, which held-out losses are compared with.
    """

    def __init__(self, job: Job, world: World, log: RunLog | None, ceiling: float, unigram_entropy: float) -> None:
        self.job, self.world, self.log = job, world, log
        self.training = job.recipe.training
        self.ceiling, self.unigram_entropy = ceiling, unigram_entropy
        self._losses: list[float] = []  # of the steps since the last report, as are the seconds
        self._seconds: list[float] = []
        self._evaluations: list[float] = []  # seconds of each
        self._shown = time.monotonic()

    def add_step(self, progress: Progress, loss: float, norm: float, seconds: float) -> None:
        """Count a step; show it where the next one may end later than ten seconds after the last progress line."""
        self._losses.append(loss)
        self._seconds.append(seconds)
        if time.monotonic() + seconds - self._shown > SILENT_SECONDS and progress.step % self.training.log_every:
            self._show(progress.step, norm, self._rates(progress.step))

    def report(self, engine: Any, progress: Progress, norm: float) -> None:
        """Show and record the steps since the last report. Collective."""
        step = progress.step
        values = self._rates(step)
        self._losses, self._seconds = [], []
        seconds = collectives.all_gather(engine.compute_clock.read(), self.world)
        values["speed_slowest_rank"] = seconds.index(max(seconds))
        values["speed_slowest_rank_to_median"] = max(seconds) / statistics.median(seconds)
        if self.log:
            values["speed_memory_bytes"] = devices.memory_bytes(devices.device(self.world))
            learning_rate = self.job.learning_rate(step - 1)
            self.log.write(step, train_learning_rate=learning_rate, train_gradient_norm=norm, **values)
        self._show(step, norm, values)

    def _rates(self, step: int) -> dict[str, float]:
        """Return means since the last report; losses that are not finite belong to skipped steps, and do not count."""
        losses = [loss for loss in self._losses if math.isfinite(loss)]
        steps_left = self.training.steps - step
        rows_per_second = len(self._seconds) * self.training.rows / sum(self._seconds)
        evaluation = sum(self._evaluations) / max(1, len(self._evaluations))
        return {
            "train_loss": sum(losses) / len(losses) if losses else math.nan,
            "speed_tokens_per_second": rows_per_second * self.job.recipe.data.seq_len,
            "speed_share_of_matmul_ceiling": rows_per_second / self.ceiling,
            "speed_seconds_left": steps_left * self.training.rows / rows_per_second
            + steps_left // self.training.evaluate_every * evaluation,
        }

    def _show(self, step: int, norm: float, values: dict[str, float]) -> None:
        self._shown = time.monotonic()
        logger.info(
            f"step {step:>6,}/{self.training.steps:,} | loss {values['train_loss']:.3f} | "
            f"lr {self.job.learning_rate(step - 1):.1e} | norm {norm:.2f} | "
            f"{values['speed_tokens_per_second']:,.0f} tokens/s | "
            f"{values['speed_share_of_matmul_ceiling']:.0%} of ceiling | {duration(values['speed_seconds_left'])} left"
        )

    def add_evaluation(self, step: int, measured: HeldOut, filled_masks: str, seconds: float) -> None:
        """Show and record an evaluation of the held-out rows.

        Args:
            filled_masks: some guesses in their context, as Markdown.
            seconds: that the evaluation took.
        """
        self._evaluations.append(seconds)
        if self.log:
            self.log.write(step, **measured.records("heldout"), heldout_unigram_entropy=self.unigram_entropy)
            self.log.text(step, "heldout/filled_masks", filled_masks)
        logger.info(
            f"step {step:>6,}/{self.training.steps:,} | held-out loss {measured.loss:.3f} "
            f"(unigram entropy {self.unigram_entropy:.3f}) | masked accuracy {measured.masked_accuracy:.1%}"
        )

    def add_fault(self, progress: Progress, verdict: Verdict, loss_by_rank: list[float], norm: float) -> None:
        """Show and record a loss or gradient norm that is not fine."""
        if self.log:
            loss, record = sum(loss_by_rank) / len(loss_by_rank), self.log.run_dir / files.FAULTS
            logger.warning(
                f"step {progress.step:,} | loss {loss:.3f} | norm {norm:.2f} | {verdict.value}; see {record}"
            )
            self.log.fault(
                step=progress.step,
                verdict=verdict.value,
                loss_by_rank=loss_by_rank,
                gradient_norm=norm,
                rows=[progress.consumed_rows - self.training.rows, progress.consumed_rows],
            )

    def add_checkpoint(self, step: int, stall_seconds: float) -> None:
        """Record a checkpoint that is now whole, and the seconds that training waited for it."""
        if self.log:
            self.log.write(step, checkpoint_stall_seconds=stall_seconds)
            with dispensable(f"{self.log.run_dir / run_folder.STATE}"):
                run_folder.set_state(self.log.run_dir, "running", step=step, steps=self.training.steps)

    def go_back(self, step: int) -> None:
        """Forget what was recorded after a step that the run has gone back to."""
        if self.log:
            self.log.go_back(step)

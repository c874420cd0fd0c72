"""Decide what a step's loss and gradient norm require: nothing, a skip, a warning, going back, or the end."""

from __future__ import annotations

import math
import statistics
from enum import Enum

from scaler.config.training_sections import Faults

WINDOW = 100  # losses that a spike is compared with
LEAST = 20  # losses that are needed to see a spike; as many spikes in a row are the new normal
NORMAL_DEVIATION = 1.4826  # standard deviations of a normal distribution in its median absolute deviation


class Verdict(Enum):
    """The reaction to one step."""

    FINE = "fine"
    SKIPPED = "batch skipped"
    SPIKE = "spike"
    GO_BACK = "back to a checkpoint"
    STOP = "run stopped"


class Judge:
    """A judge of each step's loss and gradient norm; the same on every rank, because both are sums over ranks.

    Args:
        settings: the recipe's section `faults`.
        recent: losses of the last steps, changed in place; a checkpoint keeps them.

    Attributes:
        skipped: batches skipped in a row.
        spikes: spikes in a row.
        rollbacks: returns to a checkpoint since the last one was saved.
    """

    def __init__(self, settings: Faults, recent: list[float]) -> None:
        self.settings, self.recent = settings, recent
        self.skipped = self.spikes = self.rollbacks = 0

    def judge(self, loss: float, norm: float) -> Verdict:
        """Judge a step by the mean loss over its rows and the gradient norm."""
        if not (math.isfinite(loss) and math.isfinite(norm)):
            self.skipped += 1
            return Verdict.SKIPPED if self.skipped <= self.settings.skips else self._back()
        self.skipped = 0
        self.spikes = self.spikes + 1 if self._is_spike(loss) else 0
        if 0 < self.spikes < LEAST:
            return self._back() if self.settings.spike_rollback else Verdict.SPIKE
        if self.spikes:  # the loss has risen for good
            self.recent.clear()
        self.recent.append(loss)
        del self.recent[:-WINDOW]
        return Verdict.FINE

    def went_back(self, recent: list[float], rollbacks: int) -> None:
        """Forget the losses since the checkpoint, but not how often the run has gone back."""
        self.recent, self.skipped, self.spikes, self.rollbacks = recent, 0, 0, rollbacks

    def _is_spike(self, loss: float) -> bool:
        if self.settings.spike_deviations is None or len(self.recent) < LEAST:
            return False
        middle = statistics.median(self.recent)
        deviation = NORMAL_DEVIATION * statistics.median(abs(other - middle) for other in self.recent)
        return loss > middle + self.settings.spike_deviations * deviation

    def _back(self) -> Verdict:
        self.rollbacks += 1
        return Verdict.GO_BACK if self.rollbacks <= self.settings.rollbacks else Verdict.STOP

"""What a run remembers beside its tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass, field


@dataclass
class Progress:
    """Where a run stands; saved with every checkpoint.

    Attributes:
        step: optimizer steps done, skipped ones included; the learning rate hangs on it.
        consumed_rows: rows that are behind it; order and masks hang on it.
        updates: steps that moved the weights.
        digest: of all rows and masks that were read for training, 64 bits; between saves, this rank's part of the sum.
        best_loss, best_step: of the lowest held-out loss so far.
        worse: evaluations since then.
        recent_losses: of the last steps, which a spike is measured against.
    """

    step: int = 0
    consumed_rows: int = 0
    updates: int = 0
    digest: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0
    recent_losses: list[float] = field(default_factory=list)

    def judge_evaluation(self, loss: float) -> None:
        """Note a held-out loss of this step."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self.worse = loss, self.step, 0
        else:
            self.worse += 1

    def waited(self, patience: int | None) -> bool:
        """The held-out loss has not fallen for so many evaluations."""
        return patience is not None and self.worse >= patience

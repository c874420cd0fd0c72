"""Keep what a run remembers beside its tensors."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

STORED_NAMES = {"evaluations_since_best": "worse"}  # names in checkpoints that are not the attributes' own


@dataclass
class Progress:
    """The progress of a run, saved with every checkpoint.

    Attributes:
        step: optimizer steps done, skipped ones included; the learning rate depends on it.
        consumed_rows: rows read or stepped over; order and masks depend on it.
        updates: steps that moved the weights.
        digest: 64-bit sum over all rows and masks read for training; between saves, this rank's part of it.
        best_loss, best_step: lowest held-out loss so far, and its step.
        evaluations_since_best: evaluations after that one.
        recent_losses: losses of the last steps, which a spike is compared with.
    """

    step: int = 0
    consumed_rows: int = 0
    updates: int = 0
    digest: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    evaluations_since_best: int = 0
    recent_losses: list[float] = field(default_factory=list)

    @classmethod
    def from_plain(cls, stored: Mapping[str, Any]) -> Progress:
        """Read what `to_plain` made."""
        names = {stored_name: name for name, stored_name in STORED_NAMES.items()}
        return cls(**{names.get(name, name): value for name, value in stored.items()})

    def to_plain(self) -> dict[str, Any]:
        """Return the content for a checkpoint's manifest."""
        return {STORED_NAMES.get(name, name): value for name, value in asdict(self).items()}

    def go_to(self, other: Progress) -> None:
        """Take over another's values."""
        vars(self).update(vars(other))

    def count_step(self, rows: int, norm: float) -> None:
        """Count a step over so many rows; one whose gradient norm is not finite did not move the weights."""
        self.step += 1
        self.consumed_rows += rows
        self.updates += math.isfinite(norm)

    def judge_evaluation(self, loss: float) -> bool:
        """Note a held-out loss of this step; return whether it is the lowest so far."""
        is_best = math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss)
        if is_best:
            self.best_loss, self.best_step, self.evaluations_since_best = loss, self.step, 0
        else:
            self.evaluations_since_best += 1
        return is_best

    def out_of_patience(self, patience: int | None) -> bool:
        """Return whether the held-out loss has not fallen for so many evaluations; None is endless patience."""
        return patience is not None and self.evaluations_since_best >= patience

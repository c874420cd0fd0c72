"""Reduce what was measured of a study's point to its figures: quartiles, communication, the slowest rank, memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from scaler.core.errors import ScalerError
from scaler.studies.folder import Measured, Point


@dataclass(frozen=True)
class Quartiles:
    """The quartiles of the measured steps."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Figures:
    """The figures of a measured point. A step takes as long as its slowest rank.

    Attributes:
        steps: number of measured steps.
        seconds: duration of a step.
        tokens_per_second: throughput of all ranks together.
        own, latest: seconds of own work in a step, of the median rank and of whichever rank is slowest in each step.
        slowest, slowest_rank, host: the largest median of a rank's own work in seconds, that rank, and its host.
        communication: seconds of communication in a step, of the rank with the least. Others also wait for the last.
        peak_bytes: peak memory of the rank with the most.
    """

    steps: int
    seconds: Quartiles
    tokens_per_second: Quartiles
    own: float
    latest: float
    slowest: float
    slowest_rank: int
    host: str
    communication: float
    peak_bytes: int

    @property
    def communication_fraction(self) -> float:
        """Return communication as a fraction of the median step, including what runs beside own work."""
        return self.communication / self.seconds.median

    @property
    def slowest_to_median(self) -> float:
        """Return own work of the slowest rank divided by that of the median rank."""
        return self.slowest / self.own if self.own else 1.0

    @property
    def parts(self) -> dict[str, float]:
        """Return the seconds of the median step by part."""
        rest = max(0.0, self.seconds.median - self.latest)
        waited = min(self.communication, rest)
        return {
            "own work": self.own,
            "stragglers": self.latest - self.own,
            "communication": waited,
            "other": rest - waited,
        }


def figures_of(point: Point, measured: Measured) -> Figures:
    """Compute the figures of a point.

    Raises: ScalerError where the measurements cannot be those of the point.
    """
    lists = (measured.hosts, measured.step_seconds, measured.own_seconds, measured.communication_seconds)
    lengths = {len(values) for values in (*lists, measured.peak_bytes)}
    steps, own_steps = (
        {len(values) for values in by_rank} for by_rank in (measured.step_seconds, measured.own_seconds)
    )
    if lengths != {point.ranks}:
        counts = " and ".join(map(str, sorted(lengths)))
        raise ScalerError(f"it has figures of {counts} ranks, but the point has {point.ranks}")
    if len(steps) != 1 or len(own_steps) != 1 or 0 in steps | own_steps:
        raise ScalerError("the ranks have different numbers of steps, or none")
    seconds = np.max(measured.step_seconds, axis=0)  # (steps,)
    if not (seconds.min() > 0 and 0 < measured.tokens_per_row < float("inf")):
        raise ScalerError("a step takes no time, or a row has no tokens")
    low, median, high = (float(value) for value in np.percentile(seconds, (25, 50, 75)))
    tokens = point.rows * measured.tokens_per_row
    by_rank_and_step = np.array(measured.own_seconds)  # (ranks, steps)
    by_rank = np.median(by_rank_and_step, axis=1)
    own, slowest = float(np.median(by_rank)), int(np.argmax(by_rank))
    return Figures(
        steps=len(seconds),
        seconds=Quartiles(low, median, high),
        tokens_per_second=Quartiles(tokens / high, tokens / median, tokens / low),
        own=own,
        latest=max(own, float(np.median(by_rank_and_step.max(axis=0)))),
        slowest=float(by_rank[slowest]),
        slowest_rank=slowest,
        host=measured.hosts[slowest],
        communication=min(measured.communication_seconds),
        peak_bytes=max(measured.peak_bytes),
    )

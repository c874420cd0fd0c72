"""What limits a curve of a scaling study at its knee, or else on the most ranks; and what to change there.

What limits (`limits`) is the part whose seconds have grown most above the first point's, those taken times the ratio of
rows a rank, as in ideal scaling; so the growths of all parts add up to what efficiency has lost. Parts that take
much of every step, and have not grown, come after those that have. Below `NOTICED` of the median step nothing is told.

stragglers     own work of each step's slowest rank, less that of the median rank
communication  the least of all ranks, for the others also wait for the last one to come; as far as own work leaves
               room for it in the step, for what runs beside that costs nothing
micro_batches  accumulation x the seconds of own work that one more micro-batch costs: the median slope to points
               that differ in the micro-batch alone. Without such points the predicted seconds, marked as that
memory         the same, where a larger micro-batch failed for want of memory, or is predicted not to fit
work           the rest of the median rank's own work, as far as it has grown: updates that do not shrink, memory and
               caches that ranks share
other          what is in none of these, for own work and communication are measured in steps of their own
"""

from __future__ import annotations

import dataclasses
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scaler.config.batch import batches
from scaler.planning import step_time
from scaler.studies.curves import Curve, Row, Study, of_node

NOTICED = 0.05  # shares of a step, and gains, below which nothing is said of them
NO_MEMORY = re.compile(r"memory|\boom\b|bad_alloc", re.IGNORECASE)  # in reasons of failures


@dataclass(frozen=True)
class Limit:
    """A part of the step that is judged.

    Attributes:
        share: of that step.
        grown: how much of it is above the first point's; 0 where this is the first point.
        predicted: its seconds are.
        row: the larger micro-batch that memory does not allow.
    """

    part: str
    share: float
    grown: float
    predicted: bool = False
    row: Row | None = None


@dataclass(frozen=True)
class Remedy:
    """What to change at the point that is judged.

    Attributes:
        kind: "setting" (another curve is measured faster), "predicted" (stage and micro-batch that were not tried),
            "host" (to replace: it makes up most of the waiting), "fewer" (ranks: the last that pay).
        gain: in tokens a second; of "fewer" the share of node-hours that are saved.
        row: the better point, measured.
        forecast: the better point, predicted.
        host: of the slowest rank.
    """

    kind: str
    gain: float
    row: Row | None = None
    forecast: step_time.Point | None = None
    host: str | None = None


def limits(curve: Curve) -> list[Limit]:
    """The parts that hold up the point that is judged: those that have grown, the most first, and then the others."""
    row, first = curve.judged, curve.best[0]
    figures, before = row.known, first.known
    seconds, parts = figures.seconds.median, figures.parts
    ideal = row.point.rows / row.point.ranks / (first.point.rows / first.point.ranks)
    grown = {part: (value - ideal * before.parts[part]) / seconds for part, value in parts.items()}
    found = [Limit(part, parts[part] / seconds, grown[part]) for part in ("stragglers", "communication", "other")]
    each, predicted = _micro_seconds(curve, row)
    micro = each * (row.point.accumulation - ideal * first.point.accumulation) / seconds
    larger = (
        other
        for other in curve.rows
        if other.point.ranks == row.point.ranks and other.point.micro_rows > row.point.micro_rows
    )
    too_large = next(filter(_lacks_memory, larger), None)
    part = "micro_batches" if too_large is None else "memory"
    found.append(Limit(part, each * row.point.accumulation / seconds, micro, predicted, too_large))
    found.append(Limit("work", grown["own work"] - micro, grown["own work"] - micro))
    found = [limit for limit in found if limit.share >= NOTICED]
    return sorted(
        found, key=lambda limit: (limit.grown < NOTICED, -limit.grown if limit.grown >= NOTICED else -limit.share)
    )


def remedies(study: Study, curve: Curve) -> list[Remedy]:
    """What to change at the point that is judged: what was measured, and what is predicted to be still better."""
    row, found = curve.judged, []
    figures = row.known
    here = [
        other
        for another in study.curves
        for other in another.rows
        if (other.point.series, other.point.ranks, other.point.rows)
        == (row.point.series, row.point.ranks, row.point.rows)
    ]
    clearly = [other for other in here if other.figures and other.figures.seconds.high < figures.seconds.low]
    faster = max(clearly, key=lambda row: row.speed, default=None)
    if faster is not None and faster.speed >= (1 + NOTICED) * row.speed:
        found.append(Remedy("setting", faster.speed / row.speed - 1, row=faster))
    else:
        faster = row
    held_up, late = limits(curve), _late_by_itself(row)
    if held_up and held_up[0].part == "stragglers" and 2 * late > figures.parts["stragglers"]:
        gain = figures.seconds.median / (figures.seconds.median - late) - 1
        found.append(Remedy("host", gain, host=figures.host))
    if curve.knee is not None:
        hours = [study.hours(some) * some.point.nodes for some in (curve.paying, row)]
        ranks = [study.hours(some) * some.point.ranks for some in (curve.paying, row)]
        some = hours if curve.paying.point.nodes != row.point.nodes else ranks
        found.append(Remedy("fewer", 1 - some[0] / some[1], row=curve.paying))
    better = _untried(study, faster, here)
    if better is not None:
        found.append(better)
    return found


def _untried(study: Study, row: Row, here: Sequence[Row]) -> Remedy | None:
    """A stage and micro-batch that nobody tried on these ranks, and that is predicted to be faster."""
    if study.prediction is None or row.predicted is None:
        return None
    base = row.predicted
    tried = {
        (other.point.stage, other.point.offload, other.point.micro_rows) for other in here if other.state != "not run"
    }
    candidates = [
        step_time.point(
            study.prediction.works[base.settings.precision],
            asked,
            batch,
            base.nodes,
            of_node(study.prediction.hardware, row.point),
        )
        for asked in (
            dataclasses.replace(base.settings, stage=stage, offload=base.settings.offload and stage > 0)
            for stage in (0, 1, 2, 3)
        )
        for batch in batches(row.point.rows, row.point.ranks)
        if (asked.stage, asked.offload, batch.micro_rows) not in tried
    ]
    best = step_time.best(candidates)
    if best is None or base.step.seconds < (1 + NOTICED) * best.step.seconds:
        return None
    return Remedy("predicted", base.step.seconds / best.step.seconds - 1, forecast=best)


def _late_by_itself(row: Row) -> float:
    """Seconds by which the host of the slowest rank is behind the slowest rank of all others; 0 where it is alone."""
    assert row.measured is not None and row.figures is not None
    pairs = zip(row.measured.hosts, row.measured.own_seconds, strict=True)
    others = [statistics.median(own) for host, own in pairs if host != row.figures.host]
    return row.figures.slowest - max(others) if others else 0.0


def _micro_seconds(curve: Curve, row: Row) -> tuple[float, bool]:
    """What one more micro-batch costs, and whether that is predicted; 0 where nothing is known."""
    figures, point = row.known, row.point
    slopes = [
        (other.figures.own - figures.own) / (other.point.accumulation - point.accumulation)
        for other in curve.rows
        if other.figures
        and (other.point.nodes, other.point.ranks, other.point.rows) == (point.nodes, point.ranks, point.rows)
        and other.point.accumulation != point.accumulation
    ]
    if slopes:
        return max(0.0, statistics.median(slopes)), False
    return (0.0, False) if row.predicted is None else (row.predicted.step.micro_batches / point.accumulation, True)


def _lacks_memory(row: Row) -> bool:
    if row.state == "failed":
        return bool(NO_MEMORY.search(row.failures[-1]))
    return row.state == "not run" and row.predicted is not None and not row.predicted.fits

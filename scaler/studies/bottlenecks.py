"""Find what limits a curve of a scaling study at its knee, or else on the most ranks; and what to change there.

`limits` compares the seconds of each part with the first point's. Ideal scaling multiplies those by the ratio of rows
per rank; what is above that has grown. So the growths of all parts add up to the lost efficiency. The part that has
grown most comes first. Parts that take much of every step, but have not grown, come after those that have. Parts below
`NOTICED` of the median step are left out.

stragglers     own work of each step's slowest rank, less that of the median rank
communication  the least of all ranks, because the others also wait for the last one to come; only as far as own work
               leaves room for it in the step, because what runs beside own work costs nothing
micro_batches  accumulation x the seconds of own work that one more micro-batch costs: the median slope to points
               that differ in the micro-batch alone. Without such points the predicted seconds, marked as predicted
memory         the same, where a larger micro-batch ran out of memory, or is predicted not to fit
work           the rest of the median rank's own work, as far as it has grown: updates that do not shrink, memory and
               caches that ranks share
other          what is in none of these, because own work and communication are measured in separate steps
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from scaler.core.text import percent, quantity
from scaler.planning import plan, step_time
from scaler.studies.curves import Curve, Row, Study
from scaler.studies.folder import Point
from scaler.studies.prediction import node_of_point

NOTICED = 0.05  # fractions of a step, and gains, below which the report leaves them out
NO_MEMORY = re.compile(r"memory|\boom\b|bad_alloc", re.IGNORECASE)  # in reasons of failures


@dataclass(frozen=True)
class Limit:
    """A part of the judged point's step.

    Attributes:
        fraction: of that step.
        grown: the fraction of the step by which the part exceeds the first point's; 0 where this is the first point.
        predicted: the seconds are predicted, not measured.
        row: the larger micro-batch that memory does not allow.
    """

    part: str
    fraction: float
    grown: float
    predicted: bool = False
    row: Row | None = None


@dataclass(frozen=True)
class Remedy:
    """A change to make at the judged point.

    Attributes:
        kind: "setting" (another curve is measured faster), "predicted" (stage and micro-batch that were not tried),
            "host" (replace it: it causes most of the waiting), "fewer" (ranks: the last efficient ones).
        gain: relative increase of the throughput; of "fewer" the fraction of node-hours that is saved.
        text: a sentence that says so.
    """

    kind: str
    gain: float
    text: str


def limits(curve: Curve) -> list[Limit]:
    """Return the parts that limit the judged point: those that have grown, the largest first, then the others."""
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
    found = [limit for limit in found if limit.fraction >= NOTICED]
    return sorted(
        found, key=lambda limit: (limit.grown < NOTICED, -limit.grown if limit.grown >= NOTICED else -limit.fraction)
    )


def remedies(study: Study, curve: Curve) -> list[Remedy]:
    """Return what to change at the judged point: what is measured to be better, then what is predicted to be."""
    row, found = curve.judged, []
    figures = row.known
    same_ranks = [
        other
        for another in study.curves
        for other in another.rows
        if (other.point.series, other.point.ranks, other.point.rows)
        == (row.point.series, row.point.ranks, row.point.rows)
    ]
    clearly = [other for other in same_ranks if other.figures and other.figures.seconds.high < figures.seconds.low]
    faster = max(clearly, key=lambda row: row.speed, default=None)
    if faster is not None and faster.speed >= (1 + NOTICED) * row.speed:
        found.append(_faster_setting(row.point, faster.point, faster.speed / row.speed - 1))
    else:
        faster = row
    limiting, late = limits(curve), _delay_of_host(row)
    if limiting and limiting[0].part == "stragglers" and 2 * late > figures.parts["stragglers"]:
        gain = figures.seconds.median / (figures.seconds.median - late) - 1
        replace = f"Replace node {figures.host}: without its delay steps would be {percent(gain)} faster."
        found.append(Remedy("host", gain, replace))
    if curve.knee is not None:
        fewer = curve.last_efficient
        unit = "rank" if fewer.point.nodes == row.point.nodes else "node"
        counts = [one.point.ranks if unit == "rank" else one.point.nodes for one in (fewer, row)]
        gain = 1 - study.hours(fewer) * counts[0] / (study.hours(row) * counts[1])
        use = f"Use {quantity(counts[0], unit)} instead: {percent(gain)} fewer {unit}-hours for the same training."
        found.append(Remedy("fewer", gain, use))
    better = _untried(study, faster, same_ranks)
    if better is not None:
        found.append(better)
    return found


def _faster_setting(now: Point, better: Point, gain: float) -> Remedy:
    """Return the remedy that names what differs between two measured points."""
    stage = f"ZeRO-{better.stage}{' without offload' * (now.offload and not better.offload)}"
    changed = {
        stage: (better.stage, better.offload) != (now.stage, now.offload),
        f"a bucket of {better.bucket / 1e6:g} M": better.bucket != now.bucket,
        f"micro-batches of {quantity(better.micro_rows, 'row')}": better.micro_rows != now.micro_rows,
    }
    what = " and ".join(text for text, differs in changed.items() if differs) or "the other layout of nodes"
    return Remedy("setting", gain, f"Use {what}: measured {percent(gain)} faster on {better.place}.")


def _untried(study: Study, row: Row, same_ranks: Sequence[Row]) -> Remedy | None:
    """Return a stage and micro-batch that were not tried on these ranks, and are predicted to be faster."""
    if study.prediction is None or row.predicted is None:
        return None
    base = row.predicted
    tried = {
        (other.point.stage, other.point.offload, other.point.micro_rows)
        for other in same_ranks
        if other.state != "not run"
    }
    work = study.prediction.works[base.sharding.precision]
    shardings = plan.alternatives(base.sharding, to_owners=(base.sharding.to_owners,))
    node = node_of_point(study.prediction.hardware, row.point)
    best = step_time.fastest(
        candidate
        for candidate in plan.candidates(work, shardings, row.point.rows, base.nodes, node)
        if (candidate.sharding.stage, candidate.sharding.offload, candidate.batch.micro_rows) not in tried
    )
    if best is None or base.step.seconds < (1 + NOTICED) * best.step.seconds:
        return None
    gain, rows = base.step.seconds / best.step.seconds - 1, quantity(best.batch.micro_rows, "row")
    what = f"ZeRO-{best.sharding.stage} with micro-batches of {rows} on {row.point.place}"
    return Remedy("predicted", gain, f"Try {what}: {percent(gain)} faster, which is predicted, not measured.")


def _delay_of_host(row: Row) -> float:
    """Return the seconds by which the slowest rank's host is behind all other hosts; 0 where there is no other."""
    assert row.measured is not None and row.figures is not None
    pairs = zip(row.measured.hosts, row.measured.own_seconds, strict=True)
    others = [statistics.median(own) for host, own in pairs if host != row.figures.host]
    return row.figures.slowest - max(others) if others else 0.0


def _micro_seconds(curve: Curve, row: Row) -> tuple[float, bool]:
    """Return the seconds that one more micro-batch costs, and whether they are predicted; 0 where nothing is known."""
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

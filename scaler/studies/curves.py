"""What a scaling study says: curves over ranks, speed-up and efficiency, beside what is predicted.

A step takes as long as its slowest rank. Tokens a second are rows x tokens of a row by the median step; speed-up is by
the curve's point on the fewest ranks, efficiency is speed-up by the ratio of ranks. A curve has its fastest micro-batch
at each number of ranks. It stops paying (the knee) at the first number of ranks with an efficiency below `PAYS`.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaler.config.batch import SolvedBatch
from scaler.config.recipe import Recipe, load
from scaler.core.errors import ScalerError
from scaler.core.files import read_json
from scaler.planning import hardware, step_time
from scaler.planning.hardware import Hardware
from scaler.planning.step_time import PAYS, Workload
from scaler.planning.workload import settings_of, workload
from scaler.studies import folder as study_folder
from scaler.studies.folder import Entry, Measured, Point

TOO_GOOD = 1.1  # efficiency above which the first point, and not this one, is in doubt
HARDWARE = "hardware.yaml"  # in the folder of a study


@dataclass(frozen=True)
class Quartiles:
    """Of the measured steps."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class Figures:
    """What was measured of a point.

    Attributes:
        steps: measured.
        seconds: of a step.
        tokens_per_second: of all ranks.
        own, latest: seconds of own work in a step, of the median rank, and of whichever is the slowest in each step.
        slowest, slowest_rank, host: of the rank whose median is the greatest; which it is, and where.
        communication: seconds of a step, of the rank with the least.
        peak_bytes: of the rank with the most.
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
    def communication_share(self) -> float:
        """Of the median step; what runs beside own work included."""
        return self.communication / self.seconds.median

    @property
    def slowest_to_median(self) -> float:
        """Own work of the slowest rank by that of the median rank."""
        return self.slowest / self.own if self.own else 1.0

    @property
    def parts(self) -> dict[str, float]:
        """Seconds of the median step by part."""
        rest = max(0.0, self.seconds.median - self.latest)
        waited = min(self.communication, rest)
        return {
            "own work": self.own,
            "stragglers": self.latest - self.own,
            "communication": waited,
            "other": rest - waited,
        }


@dataclass(frozen=True)
class Row:
    """A point of the study with all that is known of it."""

    point: Point
    measured: Measured | None
    figures: Figures | None
    predicted: step_time.Point | None
    failures: tuple[str, ...]

    @property
    def state(self) -> str:
        """ "measured", "failed" or "not run"."""
        return "measured" if self.figures else "failed" if self.failures else "not run"

    @property
    def known(self) -> Figures:
        """Of a measured point."""
        assert self.figures is not None
        return self.figures

    @property
    def speed(self) -> float:
        """Tokens a second of a measured point."""
        return self.known.tokens_per_second.median

    @property
    def error(self) -> float | None:
        """Of the predicted step: 0.1 is ten per cent too long."""
        if self.figures is None or self.predicted is None:
            return None
        return self.predicted.step.seconds / self.figures.seconds.median - 1

    @property
    def memory_error(self) -> float | None:
        """Of the predicted peak: 0.1 is ten per cent too much."""
        if self.figures is None or self.predicted is None:
            return None
        return self.predicted.memory.peak / self.figures.peak_bytes - 1


@dataclass(frozen=True)
class Curve:
    """Points of one setting. `best`: the fastest measured ones, one for each number of ranks, by ranks."""

    rows: tuple[Row, ...]
    best: tuple[Row, ...]

    @property
    def setting(self) -> tuple[str, int, bool, int]:
        """Series, stage, offload and bucket."""
        return self.rows[0].point.setting

    @property
    def series(self) -> str:
        """ "strong" or "weak"."""
        return self.rows[0].point.series

    def speedup(self, row: Row) -> float:
        """Of a measured point, against the curve's first."""
        return row.speed / self.best[0].speed

    def efficiency(self, row: Row) -> float:
        """Of a measured point, against the curve's first."""
        return self.speedup(row) * self.best[0].point.ranks / row.point.ranks

    @property
    def knee(self) -> Row | None:
        """The first that does not pay."""
        return next((row for row in self.best if self.efficiency(row) < PAYS), None)

    @property
    def judged(self) -> Row:
        """Where it is asked what limits: the knee, or the most ranks."""
        return self.knee or self.best[-1]

    @property
    def paying(self) -> Row:
        """The last before the knee."""
        knee = self.knee
        return self.best[-1] if knee is None else self.best[self.best.index(knee) - 1]

    @property
    def foretold(self) -> tuple[Row, ...]:
        """The points of the predicted curve: the measured ones; where there is none, the fastest that would fit."""
        chosen = {row.point.ranks: row for row in self.best if row.predicted}
        others = [row for row in self.rows if row.predicted and row.predicted.fits and row.point.ranks not in chosen]
        for row in sorted(others, key=lambda row: -_foretold_speed(row)):
            chosen.setdefault(row.point.ranks, row)
        return tuple(chosen[ranks] for ranks in sorted(chosen))

    def foretold_efficiency(self, row: Row) -> float:
        """Of a predicted point, against the first of `foretold`."""
        first = self.foretold[0]
        return _foretold_speed(row) / _foretold_speed(first) * first.point.ranks / row.point.ranks

    @property
    def foretold_knee(self) -> Row | None:
        """The first that is predicted not to pay."""
        return next((row for row in self.foretold if self.foretold_efficiency(row) < PAYS), None)


@dataclass(frozen=True)
class Prediction:
    """What points are predicted with.

    Attributes:
        hardware: as given; the ranks of a node are those of each point.
        works: by precision.
        points: those that can be predicted.
        why_not: of the others, in words.
    """

    hardware: Hardware
    works: dict[str, Workload]
    points: dict[Point, step_time.Point]
    why_not: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """All that a report says.

    Attributes:
        recipe: of all points.
        tokens_per_row: on the average of the measured points.
        curves: in the order of the study; those without a measured point have no `best`.
        prediction: None without hardware.
        remarks: what the reader must know of the figures.
    """

    recipe: Recipe
    tokens_per_row: float
    curves: tuple[Curve, ...]
    prediction: Prediction | None
    remarks: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """Of all curves."""
        return [row for curve in self.curves for row in curve.rows]

    @property
    def measured(self) -> list[tuple[Row, Measured, Figures]]:
        """Rows of measured points with what was measured."""
        return [(row, row.measured, row.figures) for row in self.rows if row.measured and row.figures]

    def leading(self, series: str) -> Curve | None:
        """The curve of a series that has the fastest measured point."""
        curves = [curve for curve in self.curves if curve.series == series and curve.best]
        return max(curves, key=lambda curve: max(row.speed for row in curve.best), default=None)

    def hours(self, row: Row) -> float:
        """That the recipe's whole training takes at a measured point, without evaluations, saves and failures."""
        tokens = self.recipe.training.steps * self.recipe.training.rows * self.tokens_per_row
        return tokens / row.speed / 3600


def figures_of(point: Point, measured: Measured) -> Figures:
    """Figures of a point. Raises ScalerError where what was measured cannot be that of the point."""
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


def predict(study: Path, entries: Sequence[Entry], recipe: Recipe, on: Hardware) -> Prediction:
    """Predict all points whose precision the hardware has a figure for; points without measurement take most points'.

    Raises: ScalerError for a DeepSpeed configuration that cannot be read.
    """
    known = [entry.measured for entry in entries if entry.measured]
    works: dict[str, Workload] = {}
    points: dict[Point, step_time.Point] = {}
    missing: set[str] = set()
    for entry in entries:
        point = entry.point
        precision = entry.measured.precision if entry.measured else _most(known, "precision")
        if precision not in on.flops:
            missing.add(precision)
            continue
        on_cpu = (entry.measured.device if entry.measured else _most(known, "device")) == "cpu"
        if precision not in works:
            works[precision] = workload(recipe, 2 if precision == "bf16" else 4, on_cpu)
        said = settings_of(read_json(study_folder.folder_of(study, point) / study_folder.DS_CONFIG), precision)
        asked = dataclasses.replace(
            said,
            stage=point.stage,
            offload=point.offload,
            bucket=point.bucket,
            on_cpu=on_cpu,
        )
        batch = SolvedBatch(point.rows, point.micro_rows, point.accumulation, point.ranks)
        points[point] = step_time.point(works[precision], asked, batch, point.nodes, of_node(on, point))
    figures = ", ".join(on.flops) or "none"
    why = [f"hardware {on.name} has no figure for {name}, only {figures}" for name in sorted(missing)]
    return Prediction(on, works, points, tuple(why))


def analyse(study: Path, given: Hardware | None = None) -> Study:
    """Read a study's folder and say what it shows.

    Args:
        given: nodes to predict with; None: those of the folder's hardware.yaml, if there is one.

    Raises: ScalerError where nothing was measured, or a file is damaged.
    """
    entries = study_folder.read(study)
    recipe = load(str(study / study_folder.RECIPE))
    figures: dict[Point, Figures] = {}
    for entry in entries:
        if entry.measured is not None:
            try:
                figures[entry.point] = figures_of(entry.point, entry.measured)
            except ScalerError as error:
                path = study_folder.folder_of(study, entry.point) / study_folder.MEASURED
                raise ScalerError(f"{path}: {error}; delete it, and measure the point again") from error
    if not figures:
        failed = sum(bool(entry.failures) for entry in entries)
        raise ScalerError(
            f"{study}: none of its {len(entries)} points is measured, {failed} failed; run python -m scaler.study first"
        )
    if given is None and (study / HARDWARE).is_file():
        given = hardware.load(str(study / HARDWARE))
    prediction = None if given is None else predict(study, entries, recipe, given)
    foretold = {} if prediction is None else prediction.points
    by_setting: dict[tuple[str, int, bool, int], list[Row]] = {}
    for entry in entries:
        point = entry.point
        row = Row(point, entry.measured, figures.get(point), foretold.get(point), entry.failures)
        by_setting.setdefault(point.setting, []).append(row)
    measured = [entry.measured for entry in entries if entry.measured]
    curves = tuple(Curve(tuple(rows), _fastest(rows)) for rows in by_setting.values())
    return Study(
        recipe,
        statistics.fmean(some.tokens_per_row for some in measured),
        curves,
        prediction,
        (*_remarks([row for curve in curves for row in curve.rows]), *_too_good(curves)),
    )


def errors(study: Study) -> tuple[float, Row] | None:
    """Of the predicted steps: the median of their absolute errors, and the row with the worst."""
    found = [(abs(row.error), row) for row in study.rows if row.error is not None]
    if not found:
        return None
    return statistics.median(error for error, _ in found), max(found, key=lambda pair: pair[0])[1]


def _remarks(rows: Sequence[Row]) -> Iterable[str]:
    """Points that are not like the others, and what is odd about them."""
    measured = [(row.point, row.measured) for row in rows if row.measured]
    known = [some for _, some in measured]
    for name, what in (("commit", "commit"), ("precision", "precision"), ("versions", "versions of packages")):
        usual = _most(known, name)
        for point, some in measured:
            if (value := getattr(some, name)) != usual:
                yield f"{point.name}: another {what} than most points ({_difference(value, usual)})"
    widest = max(measured, key=lambda pair: len(set(pair[1].hosts)))[1]
    for point, some in measured:
        hosts = sorted(set(some.hosts))
        if others := sorted(set(hosts) - set(widest.hosts)):
            yield f"{point.name}: on hosts that the largest point did not have ({', '.join(others)})"
        if len(hosts) != point.nodes:
            yield f"{point.name}: asked for {point.nodes} nodes, and ran on {len(hosts)} ({', '.join(hosts)})"
    for row in rows:
        if row.measured and row.failures:
            yield f"{row.point.name}: measured after {len(row.failures)} failed attempts (the last: {row.failures[-1]})"


def _too_good(curves: Sequence[Curve]) -> Iterable[str]:
    for curve in curves:
        best = max(curve.best, key=curve.efficiency, default=None)
        if best is not None and curve.efficiency(best) > TOO_GOOD:
            first = curve.best[0].point.name
            yield (
                f"{best.point.name}: {curve.efficiency(best):.0%} efficient, more than can be: was {first} slowed by "
                "others on its cores? Delete its measured.json and measure it again, or compare the larger points alone"
            )


def _difference(value: object, usual: object) -> str:
    if isinstance(value, dict) and isinstance(usual, dict):
        names = [name for name in {**usual, **value} if value.get(name) != usual.get(name)]
        return ", ".join(f"{name} {value.get(name)} for {usual.get(name)}" for name in names)
    short = [str(some)[:12] for some in (value, usual)]  # commits are long
    return f"{short[0]} for {short[1]}"


def _fastest(rows: Iterable[Row]) -> tuple[Row, ...]:
    found: dict[int, Row] = {}
    for row in rows:
        if row.figures and (row.point.ranks not in found or row.speed > found[row.point.ranks].speed):
            found[row.point.ranks] = row
    return tuple(found[ranks] for ranks in sorted(found))


def _foretold_speed(row: Row) -> float:
    assert row.predicted is not None
    return row.predicted.rows_per_second


def of_node(on: Hardware, point: Point) -> Hardware:
    """The same nodes with as many devices as the point has ranks on each."""
    return dataclasses.replace(on, devices=point.ranks_per_node)


def _most(known: Sequence[Measured], name: str) -> Any:
    """The value that most of them have."""
    values = [getattr(some, name) for some in known]
    return max(values, key=values.count)

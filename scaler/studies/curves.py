"""Compute the curves of a scaling study over ranks from its folder: speed-up and efficiency, measured and predicted.

Throughput is rows x tokens of a row, divided by the median step. Speed-up is relative to the curve's point on the
fewest ranks. Efficiency is speed-up divided by the ratio of ranks. A curve has its fastest micro-batch at each number
of ranks. Its knee is the first number of ranks with an efficiency below `MIN_EFFICIENCY`.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaler.config.recipe import Recipe, load
from scaler.core.errors import ScalerError
from scaler.core.text import quantity
from scaler.planning import hardware, step_time
from scaler.planning.hardware import Hardware
from scaler.planning.step_time import MIN_EFFICIENCY
from scaler.studies import folder as study_folder
from scaler.studies.figures import Figures, figures_of
from scaler.studies.folder import Entry, Measured, Point
from scaler.studies.prediction import Prediction, most_common, predict

TOO_GOOD = 1.1  # efficiency above which the first point is in doubt, and not this one
HARDWARE = "hardware.yaml"  # in the folder of a study


@dataclass(frozen=True)
class Row(Entry):
    """A point of the study with all that is known of it."""

    figures: Figures | None
    predicted: step_time.PredictedPoint | None

    @property
    def state(self) -> str:
        """Return "measured", "failed" or "not run"."""
        return "measured" if self.figures else "failed" if self.failures else "not run"

    @property
    def known(self) -> Figures:
        """Return the figures of a measured point."""
        assert self.figures is not None
        return self.figures

    @property
    def speed(self) -> float:
        """Return the median throughput of a measured point in tokens per second."""
        return self.known.tokens_per_second.median

    @property
    def predicted_speed(self) -> float:
        """Return the throughput of a predicted point in rows per second."""
        assert self.predicted is not None
        return self.predicted.rows_per_second

    @property
    def error(self) -> float | None:
        """Return the relative error of the predicted step: 0.1 means that it is ten per cent too long."""
        if self.figures is None or self.predicted is None:
            return None
        return self.predicted.step.seconds / self.figures.seconds.median - 1

    @property
    def memory_error(self) -> float | None:
        """Return the relative error of the predicted peak memory: 0.1 means that it is ten per cent too large."""
        if self.figures is None or self.predicted is None:
            return None
        return self.predicted.memory.peak / self.figures.peak_bytes - 1


@dataclass(frozen=True)
class Curve:
    """The points of one setting. `best`: the fastest measured point for each number of ranks, by ranks."""

    rows: tuple[Row, ...]
    best: tuple[Row, ...]

    @property
    def setting(self) -> tuple[str, int, bool, int]:
        """Return series, stage, offload and bucket."""
        return self.rows[0].point.setting

    @property
    def series(self) -> str:
        """Return "strong" or "weak"."""
        return self.rows[0].point.series

    def speedup(self, row: Row) -> float:
        """Return the speed-up of a measured point relative to the curve's first."""
        return row.speed / self.best[0].speed

    def efficiency(self, row: Row) -> float:
        """Return the efficiency of a measured point relative to the curve's first."""
        return self.speedup(row) * self.best[0].point.ranks / row.point.ranks

    @property
    def knee(self) -> Row | None:
        """Return the first point with an efficiency below `MIN_EFFICIENCY`."""
        return next((row for row in self.best if self.efficiency(row) < MIN_EFFICIENCY), None)

    @property
    def judged(self) -> Row:
        """Return the point whose limits are examined: the knee, or the one on the most ranks."""
        return self.knee or self.best[-1]

    @property
    def last_efficient(self) -> Row:
        """Return the last point before the knee."""
        knee = self.knee
        return self.best[-1] if knee is None else self.best[self.best.index(knee) - 1]

    @property
    def predicted(self) -> tuple[Row, ...]:
        """Return the points of the predicted curve, by ranks.

        They are the curve's measured points; for other numbers of ranks the fastest that is predicted to fit.
        """
        chosen = {row.point.ranks: row for row in self.best if row.predicted}
        others = [row for row in self.rows if row.predicted and row.predicted.fits and row.point.ranks not in chosen]
        for row in sorted(others, key=lambda row: -row.predicted_speed):
            chosen.setdefault(row.point.ranks, row)
        return tuple(chosen[ranks] for ranks in sorted(chosen))

    def predicted_efficiency(self, row: Row) -> float:
        """Return the efficiency of a predicted point relative to the first of `predicted`."""
        first = self.predicted[0]
        return row.predicted_speed / first.predicted_speed * first.point.ranks / row.point.ranks

    @property
    def predicted_knee(self) -> Row | None:
        """Return the first point with a predicted efficiency below `MIN_EFFICIENCY`."""
        return next((row for row in self.predicted if self.predicted_efficiency(row) < MIN_EFFICIENCY), None)


@dataclass(frozen=True)
class Study:
    """The content of a report.

    Attributes:
        recipe: of all points.
        tokens_per_row: mean of the measured points.
        curves: in the order of the study; those without a measured point have no `best`.
        prediction: None without hardware.
        remarks: sentences that a reader of the figures needs.
    """

    recipe: Recipe
    tokens_per_row: float
    curves: tuple[Curve, ...]
    prediction: Prediction | None
    remarks: tuple[str, ...]

    @property
    def rows(self) -> list[Row]:
        """Return the points of all curves."""
        return [row for curve in self.curves for row in curve.rows]

    @property
    def measured(self) -> list[tuple[Row, Measured, Figures]]:
        """Return the measured points with their measurements and figures."""
        return [(row, row.measured, row.figures) for row in self.rows if row.measured and row.figures]

    def leading(self, series: str) -> Curve | None:
        """Return the curve of a series that has the fastest measured point."""
        curves = [curve for curve in self.curves if curve.series == series and curve.best]
        return max(curves, key=lambda curve: max(row.speed for row in curve.best), default=None)

    def hours(self, row: Row) -> float:
        """Return the hours of the recipe's whole training at a measured point, without evaluations, saves, failures."""
        tokens = self.recipe.training.steps * self.recipe.training.rows * self.tokens_per_row
        return tokens / row.speed / 3600

    def errors(self) -> tuple[float, Row] | None:
        """Return the median absolute error of the predicted steps, and the point with the largest; None without any."""
        found = [(abs(row.error), row) for row in self.rows if row.error is not None]
        if not found:
            return None
        return statistics.median(error for error, _ in found), max(found, key=lambda pair: pair[0])[1]


def analyse(study: Path, given: Hardware | None = None) -> Study:
    """Read a study's folder and compute its curves.

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
            f"{study}: none of its {len(entries)} points is measured, {failed} failed; run scaler study first"
        )
    if given is None and (study / HARDWARE).is_file():
        given = hardware.load(str(study / HARDWARE))
    prediction = None if given is None else predict(study, entries, recipe, given)
    predicted = {} if prediction is None else prediction.points
    by_setting: dict[tuple[str, int, bool, int], list[Row]] = {}
    for entry in entries:
        point = entry.point
        row = Row(point, entry.measured, entry.failures, figures.get(point), predicted.get(point))
        by_setting.setdefault(point.setting, []).append(row)
    curves = []
    for rows in by_setting.values():
        fastest: dict[int, Row] = {}
        for row in rows:
            if row.figures and (row.point.ranks not in fastest or row.speed > fastest[row.point.ranks].speed):
                fastest[row.point.ranks] = row
        curves.append(Curve(tuple(rows), tuple(fastest[ranks] for ranks in sorted(fastest))))
    tokens = statistics.fmean(entry.measured.tokens_per_row for entry in entries if entry.measured)
    remarks = (*_odd_points([row for curve in curves for row in curve.rows]), *_too_efficient(curves))
    return Study(recipe, tokens, tuple(curves), prediction, remarks)


def _odd_points(rows: Sequence[Row]) -> Iterable[str]:
    """Name points that are not like the others, and how they differ."""
    measured = [(row.point, row.measured) for row in rows if row.measured]
    known = [of_point for _, of_point in measured]
    for name, what in (("commit", "commit"), ("precision", "precision"), ("versions", "versions of packages")):
        usual = most_common(known, name)
        for point, of_point in measured:
            if (value := getattr(of_point, name)) != usual:
                yield f"{point.name}: another {what} than most points ({_difference(value, usual)})"
    widest = max(measured, key=lambda pair: len(set(pair[1].hosts)))[1]
    for point, of_point in measured:
        hosts = sorted(set(of_point.hosts))
        if others := sorted(set(hosts) - set(widest.hosts)):
            yield f"{point.name}: on hosts that the largest point did not have ({', '.join(others)})"
        if len(hosts) != point.nodes:
            asked = quantity(point.nodes, "node")
            yield f"{point.name}: asked for {asked}, and ran on {len(hosts)} ({', '.join(hosts)})"
    for row in rows:
        if row.measured and row.failures:
            attempts = quantity(len(row.failures), "failed attempt")
            yield f"{row.point.name}: measured after {attempts} (the last: {row.failures[-1]})"


def _too_efficient(curves: Sequence[Curve]) -> Iterable[str]:
    for curve in curves:
        best = max(curve.best, key=curve.efficiency, default=None)
        if best is not None and curve.efficiency(best) > TOO_GOOD:
            first = curve.best[0].point.name
            yield (
                f"{best.point.name}: {curve.efficiency(best):.0%} efficient, which is more than is possible: was "
                f"{first} slowed by other processes on its cores? Delete its measured.json and measure it again, or "
                "compare the larger points alone"
            )


def _difference(value: object, usual: object) -> str:
    if isinstance(value, dict) and isinstance(usual, dict):
        names = [name for name in {**usual, **value} if value.get(name) != usual.get(name)]
        return ", ".join(f"{name} {value.get(name)} instead of {usual.get(name)}" for name in names)
    short = [str(one)[:12] for one in (value, usual)]  # commits are long
    return f"{short[0]} instead of {short[1]}"

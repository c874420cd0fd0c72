"""Read the folder of a scaling study, compute its curves, and note what a reader of its figures must know."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.planning import hardware
from scaler.planning.hardware import Hardware
from scaler.studies import folder as study_folder
from scaler.studies.curves import Curve, Row, Study, curve_of
from scaler.studies.figures import Figures, figures_of
from scaler.studies.folder import Point
from scaler.studies.prediction import most_common, predict

TOO_GOOD = 1.1  # efficiency above which the first point is in doubt, and not this one
HARDWARE = "hardware.yaml"  # in the folder of a study


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
        row = Row(point, entry.measured, figures.get(point), predicted.get(point), entry.failures)
        by_setting.setdefault(point.setting, []).append(row)
    tokens = statistics.fmean(entry.measured.tokens_per_row for entry in entries if entry.measured)
    curves = tuple(map(curve_of, by_setting.values()))
    remarks = (*_odd_points([row for curve in curves for row in curve.rows]), *_too_efficient(curves))
    return Study(recipe, tokens, curves, prediction, remarks)


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
            yield f"{point.name}: asked for {point.nodes} nodes, and ran on {len(hosts)} ({', '.join(hosts)})"
    for row in rows:
        if row.measured and row.failures:
            yield f"{row.point.name}: measured after {len(row.failures)} failed attempts (the last: {row.failures[-1]})"


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

"""Draw the charts of a scaling study."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from scaler.core import charts
from scaler.core.charts import COLOURS, MARKERS, Axes, Figure, FuncFormatter, Line2D, LogLocator, MaxNLocator, Patch
from scaler.core.errors import dispensable
from scaler.core.text import percent, quantity, three_digits
from scaler.planning.step_time import MIN_EFFICIENCY
from scaler.studies import text
from scaler.studies.curves import Curve, Row, Study

OF_PART = {
    "own work": "#0072B2",
    "micro-batches": "#56B4E9",
    "optimizer": "#009E73",
    "stragglers": "#E69F00",
    "communication": "#D55E00",
    "other": "#999999",
}
QUIET = "0.45"
SCALING = {series: f"{series}.png" for series in text.SERIES}
STEP, MEMORY, RANKS = "step.png", "memory.png", "ranks.png"
PICTURES = (*SCALING.values(), STEP, MEMORY, RANKS)


@dataclass(frozen=True)
class Picture:
    """A PNG file beside the page. `text`: the caption, which also serves those who cannot see the chart."""

    name: str
    title: str
    text: str


def draw(study: Study, folder: Path) -> list[Picture]:
    """Draw all charts of a study as PNG files; one that fails costs a warning, and is left out."""
    leading = [curve for curve in map(study.leading, text.SERIES) if curve is not None]
    predicted = " The dashed line is the prediction." if study.prediction else ""
    pictures = []

    def keep(make: Callable[[], Figure], name: str, title: str, caption: str) -> None:
        with dispensable(f"no picture {name}"):
            charts.save(make(), folder / name, dpi=144)
            pictures.append(Picture(name, title, caption))

    for curve in leading:
        keep(
            partial(_scaling, study, curve.series),
            SCALING[curve.series],
            f"{curve.series.capitalize()} scaling: speed and efficiency",
            "Throughput and efficiency over ranks, at the fastest micro-batch of each. Points: medians, with the "
            f"quartiles of the steps as bars.{predicted} Dotted: ideal scaling from the fastest curve's fewest ranks. "
            f"A ring: efficiency falls below {percent(MIN_EFFICIENCY)}. A cross: a point failed; a circle: one was not "
            "run.",
        )
    keep(
        lambda: _step(leading, study.prediction is not None),
        STEP,
        "Where a step's time goes",
        "The median step by part, of the fastest curve of each series, multiplied by ranks / rows. At equal heights "
        "scaling is ideal; what comes on top is lost. Above the bars: ms of the step."
        + (" Hatched: the predicted step." if study.prediction else ""),
    )
    keep(
        lambda: _beside(leading, lambda axes, curve: _memory(axes, study, curve.series)),
        MEMORY,
        "Memory of a rank",
        "The rank with the most, at the fastest micro-batch. On CPUs it is what training adds to the process."
        f"{predicted}",
    )
    several = [curve for curve in leading if curve.judged.point.ranks > 1]
    if several:
        keep(
            lambda: _beside(several, _ranks),
            RANKS,
            "Own work of each rank",
            "Own work without waiting for others: medians and quartiles of the steps. In every step all ranks wait for "
            "the slowest.",
        )
    return pictures


def _beside(curves: Sequence[Curve], drawn: Callable[[Axes, Curve], None]) -> Figure:
    """Draw a panel for each curve, side by side."""
    figure, panels = charts.panels(len(curves), 10, 4.4, layout="constrained")
    for axes, curve in zip(panels, curves, strict=True):
        drawn(axes, curve)
        axes.set_title(f"{curve.series} scaling", fontsize=10)
    return figure


def _styles(study: Study, series: str) -> list[tuple[Curve, dict[str, Any]]]:
    """Return the curves of a series with colour and marker."""
    curves = [curve for curve in study.curves if curve.series == series]
    return [
        (curve, {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]})
        for number, curve in enumerate(curves)
    ]


def _scaling(study: Study, series: str) -> Figure:
    figure, (speed, efficiency) = charts.panels(2, 10, 4.8, layout="constrained")
    styled = _styles(study, series)
    for curve, style in styled:
        if curve.best:
            _throughput(speed, study, curve, style)
            _efficiency(efficiency, curve, style)
    speeds = [row.speed for curve, _ in styled for row in curve.best]
    speed.set_yscale("log")
    speed.set_ylim(bottom=min(speeds) / 2.5)  # leaves room for the marks of points that failed
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: three_digits(value)))
    speed.set(ylabel="tokens/s", title="speed")
    efficiency.axhline(1, color=QUIET, linestyle=":", linewidth=1)
    efficiency.axhline(MIN_EFFICIENCY, color="black", linestyle="-", linewidth=0.8)
    top = 1.05 * max(1.0, efficiency.dataLim.ymax)
    efficiency.set(ylabel="efficiency", title=f"efficiency (line: {percent(MIN_EFFICIENCY)})", ylim=(0, top))
    efficiency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(round(value, 3)).replace(".0", "")))
    for axes in (speed, efficiency):
        _over_ranks(axes, [row for curve, _ in styled for row in curve.rows])
    gaps = _gaps(speed, styled)
    handles = [
        Line2D([], [], linestyle="", markersize=6, label=text.setting(curve.rows[0].point), **style)
        for curve, style in styled
    ]
    handles.append(Line2D([], [], color=QUIET, linestyle=":", label="ideal"))
    if any(curve.predicted for curve, _ in styled):
        handles.append(Line2D([], [], color=QUIET, linestyle="--", label="predicted"))
    figure.legend(handles=handles + gaps, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _throughput(axes: Axes, study: Study, curve: Curve, style: dict[str, Any]) -> None:
    if curve is study.leading(curve.series):
        first = curve.best[0]
        ranks = np.array(sorted({row.point.ranks for row in study.rows if row.point.ranks >= first.point.ranks}))
        per_rank = first.speed / first.point.ranks
        axes.plot(ranks, per_rank * ranks, color=QUIET, linestyle=":", linewidth=1)
    speeds = np.array([list(vars(row.known.tokens_per_second).values()) for row in curve.best]).T  # low, median, high
    predicted = [(row.point.ranks, study.tokens_per_row * row.predicted_speed) for row in curve.predicted]
    measured = [(row.point.ranks, row.speed) for row in curve.best]
    _line(axes, style, predicted, measured)
    spread = speeds[1] - speeds[0], speeds[2] - speeds[1]
    at = [row.point.ranks for row in curve.best]
    axes.errorbar(at, speeds[1], spread, linestyle="none", elinewidth=1, capsize=4, color=style["color"])


def _efficiency(axes: Axes, curve: Curve, style: dict[str, Any]) -> None:
    predicted = [(row.point.ranks, curve.predicted_efficiency(row)) for row in curve.predicted]
    _line(axes, style, predicted, [(row.point.ranks, curve.efficiency(row)) for row in curve.best])
    if curve.knee is not None:
        at = curve.knee.point.ranks, curve.efficiency(curve.knee)
        axes.plot(*at, marker="o", markersize=14, markerfacecolor="none", color=style["color"], linestyle="none")


Line = Sequence[tuple[int, float]]  # a value for each number of ranks


def _line(axes: Axes, style: dict[str, Any], predicted: Line, measured: Line, label: str | None = None) -> None:
    """Draw the prediction as a dashed line and measured points as marks, joined where there is no prediction."""
    axes.plot(*np.reshape(predicted, (-1, 2)).T, color=style["color"], linestyle="--", linewidth=1)
    joined = "none" if predicted else "-"
    axes.plot(*np.reshape(measured, (-1, 2)).T, linestyle=joined, linewidth=1, markersize=6, label=label, **style)


def _gaps(axes: Axes, styled: Sequence[tuple[Curve, dict[str, Any]]]) -> list[Line2D]:
    """Mark points without figures at the bottom, a line of marks per curve; return the legend's entries for them."""
    marks: dict[str, dict[str, Any]] = {
        "failed": {"marker": "x", "markersize": 8, "markeredgewidth": 2},
        "not run": {"marker": "o", "markersize": 7},
    }
    seen = []
    for number, (curve, style) in enumerate(styled):
        for state, mark in marks.items():
            ranks = sorted({row.point.ranks for row in curve.rows if row.state == state})
            if ranks:
                at = [0.03 + 0.045 * number] * len(ranks)
                look = {**mark, "markerfacecolor": "none", "markeredgecolor": style["color"], "linestyle": "none"}
                axes.plot(ranks, at, transform=axes.get_xaxis_transform(), clip_on=False, **look)
                seen.append(state)
    return [
        Line2D([], [], linestyle="none", markerfacecolor="none", markeredgecolor=QUIET, label=state, **marks[state])
        for state in marks
        if state in seen
    ]


def _over_ranks(axes: Axes, rows: Iterable[Row]) -> None:
    ranks = sorted({row.point.ranks for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xlim(ranks[0] / 1.3, ranks[-1] * 1.3)
    axes.set_xticks(ranks, [f"{count:,}" for count in ranks])
    axes.minorticks_off()
    axes.set_xlabel("ranks")
    axes.grid(alpha=0.3)


def _step(curves: Sequence[Curve], predicted: bool) -> Figure:
    figure = _beside(curves, _parts)
    parts = [part for part in OF_PART if predicted or part not in ("micro-batches", "optimizer")]
    handles = [Patch(color=OF_PART[part], label=part) for part in parts]
    if predicted:
        handles.append(Patch(facecolor="white", edgecolor=QUIET, hatch="//", label="predicted"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _parts(axes: Axes, curve: Curve) -> None:
    both = any(row.predicted for row in curve.best)
    width = 0.38 if both else 0.6

    def stack(row: Row, at: float, parts: dict[str, float], hatch: str | None) -> None:
        scale = 1e3 * row.point.ranks / row.point.rows
        bottom = 0.0
        for part, seconds in parts.items():
            axes.bar(at, scale * seconds, width, bottom, color=OF_PART[part], hatch=hatch, edgecolor="white")
            bottom += scale * seconds
        axes.text(at, bottom, three_digits(1e3 * sum(parts.values())), ha="center", va="bottom", fontsize=8)

    for number, row in enumerate(curve.best):
        stack(row, number - width / 2 * both, row.known.parts, None)
        if row.predicted is not None:
            stack(row, number + width / 2, row.predicted.step.as_measured(), "//")
    axes.set_xticks(range(len(curve.best)), [f"{row.point.ranks:,}" for row in curve.best])
    axes.set(xlabel="ranks", ylabel="ms of a step x ranks / rows")
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)


def _memory(axes: Axes, study: Study, series: str) -> None:
    for curve, style in _styles(study, series):
        predicted = [(row.point.ranks, row.predicted.memory.peak / 1e9) for row in curve.predicted if row.predicted]
        peaks = [(row.point.ranks, row.known.peak_bytes / 1e9) for row in curve.best]
        _line(axes, style, predicted, peaks, text.setting(curve.rows[0].point) if peaks else None)
    _over_ranks(axes, [row for curve, _ in _styles(study, series) for row in curve.rows])
    axes.set(ylabel="GB of the rank with the most", ylim=(0, 1.1 * axes.dataLim.ymax))
    axes.legend(fontsize=8)


def _ranks(axes: Axes, curve: Curve) -> None:
    row = curve.judged
    assert row.measured is not None
    low, own, high = 1e3 * np.percentile(row.measured.own_seconds, (25, 50, 75), axis=1)  # (ranks,) each
    hosts = list(dict.fromkeys(row.measured.hosts))
    for number, host in enumerate(hosts):
        at = [rank for rank, name in enumerate(row.measured.hosts) if name == host]
        spread = own[at] - low[at], high[at] - own[at]
        label = host if len(hosts) <= 8 else None
        colour = COLOURS[number % len(COLOURS)]
        marker = MARKERS[number % len(MARKERS)]
        axes.errorbar(at, own[at], spread, color=colour, marker=marker, linestyle="none", capsize=3, label=label)
    axes.axhline(1e3 * row.known.own, color="black", linewidth=0.8)
    axes.annotate(
        f"rank {row.known.slowest_rank} on {row.known.host}: {row.known.slowest_to_median:.2f} x the median",
        (row.known.slowest_rank, 1e3 * row.known.slowest),
        xytext=(0.5, 0.97),
        textcoords="axes fraction",
        ha="center",
        va="top",
        fontsize=8,
        arrowprops={"arrowstyle": "->", "color": QUIET},
    )
    ranks = f"{row.point.ranks:,} on {quantity(row.point.nodes, 'node')}"
    axes.set(xlabel=f"rank, of {ranks}", ylabel="ms of own work in a step")
    axes.set_ylim(0, 1.35 * float(high.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(hosts) <= 8:
        axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3, axis="y")

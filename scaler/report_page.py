"""The pictures of a scaling study, and a page that has them inside: no other file, no network, no script."""

from __future__ import annotations

import base64
import html
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

from scaler import scaling_words
from scaler.forecast import PAYS
from scaler.scaling import Curve, Row, Study
from scaler.scaling_words import SERIES, counted, rounded, share

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

# Okabe and Ito 2008, "Color Universal Design": told apart by the colour-blind. Markers tell curves apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vPX"
OF_PART = {
    "own work": "#0072B2",
    "micro-batches": "#56B4E9",
    "optimizer": "#009E73",
    "stragglers": "#E69F00",
    "communication": "#D55E00",
    "other": "#999999",
}
QUIET = "0.45"
SCALING, STEP, MEMORY, RANKS = {series: f"{series}.png" for series in SERIES}, "step.png", "memory.png", "ranks.png"
PICTURES = (*SCALING.values(), STEP, MEMORY, RANKS)


@dataclass(frozen=True)
class Picture:
    """A file beside the page. `text`: what it shows, for those who cannot see it, too."""

    name: str
    title: str
    text: str


def draw(study: Study, folder: Path) -> list[Picture]:
    """Draw all pictures of a study as PNGs."""
    led = [curve for curve in map(study.leading, SERIES) if curve is not None]
    predicted = " The dashed line is the prediction." if study.prediction else ""
    pictures = []

    def keep(figure: Figure, name: str, title: str, text: str) -> None:
        figure.savefig(folder / name, dpi=144)
        plt.close(figure)
        pictures.append(Picture(name, title, text))

    for curve in led:
        keep(
            _scaling(study, curve.series),
            SCALING[curve.series],
            f"{curve.series.capitalize()} scaling: speed and efficiency",
            "Tokens a second and efficiency over ranks, at the fastest micro-batch of each. Points: medians, with the "
            f"quartiles of the steps as bars.{predicted} Dotted: ideal, every rank does as much as on the fewest of "
            "the fastest curve. A ring: here a curve stops paying. A cross: a point failed; a circle: one was not run.",
        )
    keep(
        _step(led, study.prediction is not None),
        STEP,
        "Where a step's time goes",
        "The median step by part, of the fastest curve of each series, times ranks by rows: at equal heights more "
        "ranks cost nothing, and what comes on top is lost. Above the bars: ms of the step."
        + (" Hatched: the predicted step." if study.prediction else ""),
    )
    keep(
        _beside(led, lambda axes, curve: _memory(axes, study, curve.series)),
        MEMORY,
        "Memory of a rank",
        "The rank with the most, at the fastest micro-batch. On CPUs it is resident memory with the process itself, "
        f"which a prediction leaves out.{predicted}",
    )
    several = [curve for curve in led if curve.judged.point.ranks > 1]
    if several:
        keep(
            _beside(several, _ranks),
            RANKS,
            "Own work of each rank",
            "Without waiting for others: medians and quartiles of the steps. In every step all wait for the slowest.",
        )
    return pictures


def _beside(curves: Sequence[Curve], drawn: Callable[[Axes, Curve], None]) -> Figure:
    """A panel for each curve."""
    figure, panels = plt.subplots(1, len(curves), figsize=(10, 4.4), squeeze=False, layout="constrained")
    for axes, curve in zip(panels[0], curves, strict=True):
        drawn(axes, curve)
        axes.set_title(f"{curve.series} scaling", fontsize=10)
    return figure


def _styles(study: Study, series: str) -> list[tuple[Curve, dict[str, Any]]]:
    """Curves of a series with colour and marker."""
    curves = [curve for curve in study.curves if curve.series == series]
    return [
        (curve, {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]})
        for number, curve in enumerate(curves)
    ]


def _scaling(study: Study, series: str) -> Figure:
    figure, (speed, efficiency) = plt.subplots(1, 2, figsize=(10, 4.8), layout="constrained")
    styled = _styles(study, series)
    for curve, style in styled:
        if curve.best:
            _throughput(speed, study, curve, style)
            _efficiency(efficiency, curve, style)
    speeds = [row.speed for curve, _ in styled for row in curve.best]
    speed.set_yscale("log")
    speed.set_ylim(bottom=min(speeds) / 2.5)  # below that, the marks of points that failed
    speed.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    speed.yaxis.set_minor_locator(NullLocator())
    speed.yaxis.set_major_formatter(FuncFormatter(lambda value, _: rounded(value)))
    speed.set(ylabel="tokens/s", title="speed")
    efficiency.axhline(1, color=QUIET, linestyle=":", linewidth=1)
    efficiency.axhline(PAYS, color="black", linestyle="-", linewidth=0.8)
    top = 1.05 * max(1.0, efficiency.dataLim.ymax)
    efficiency.set(ylabel="efficiency", title="efficiency (line: what still pays)", ylim=(0, top))
    efficiency.yaxis.set_major_formatter(FuncFormatter(lambda value, _: share(round(value, 3)).replace(".0", "")))
    for axes in (speed, efficiency):
        _over_ranks(axes, [row for curve, _ in styled for row in curve.rows])
    gaps = _gaps(speed, styled)
    handles = [
        Line2D([], [], linestyle="", markersize=6, label=scaling_words.setting(curve.rows[0].point), **style)
        for curve, style in styled
    ]
    handles.append(Line2D([], [], color=QUIET, linestyle=":", label="ideal"))
    if any(curve.foretold for curve, _ in styled):
        handles.append(Line2D([], [], color=QUIET, linestyle="--", label="predicted"))
    figure.legend(handles=handles + gaps, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _throughput(axes: Axes, study: Study, curve: Curve, style: dict[str, Any]) -> None:
    if curve is study.leading(curve.series):
        first = curve.best[0]
        ranks = np.array(sorted({row.point.ranks for row in study.rows if row.point.ranks >= first.point.ranks}))
        per_rank = first.speed / first.point.ranks
        axes.plot(ranks, per_rank * ranks, color=QUIET, linestyle=":", linewidth=1)
    if curve.foretold:
        speeds = [study.tokens_per_row * row.predicted.rows_per_second for row in curve.foretold if row.predicted]
        axes.plot(
            [row.point.ranks for row in curve.foretold], speeds, color=style["color"], linestyle="--", linewidth=1
        )
    medians, below, above = [], [], []
    for row in curve.best:
        speed = row.known.tokens_per_second
        medians.append(speed.median)
        below.append(speed.median - speed.low)
        above.append(speed.high - speed.median)
    measured = [row.point.ranks for row in curve.best]
    line = "none" if curve.foretold else "-"
    axes.errorbar(measured, medians, (below, above), linestyle=line, linewidth=1, markersize=6, capsize=4, **style)


def _efficiency(axes: Axes, curve: Curve, style: dict[str, Any]) -> None:
    foretold = curve.foretold
    values = [curve.foretold_efficiency(row) for row in foretold]
    axes.plot([row.point.ranks for row in foretold], values, color=style["color"], linestyle="--", linewidth=1)
    line = "none" if foretold else "-"
    ranks = [row.point.ranks for row in curve.best]
    axes.plot(ranks, [curve.efficiency(row) for row in curve.best], linestyle=line, linewidth=1, markersize=6, **style)
    if curve.knee is not None:
        at = curve.knee.point.ranks, curve.efficiency(curve.knee)
        axes.plot(*at, marker="o", markersize=14, markerfacecolor="none", color=style["color"], linestyle="none")


def _gaps(axes: Axes, styled: Sequence[tuple[Curve, dict[str, Any]]]) -> list[Line2D]:
    """Mark points without figures at the bottom, a line of marks for each curve; return what the legend has of them."""
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
    axes.set_xticks(ranks, [f"{some:,}" for some in ranks])
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
        axes.text(at, bottom, rounded(1e3 * sum(parts.values())), ha="center", va="bottom", fontsize=8)

    for number, row in enumerate(curve.best):
        stack(row, number - width / 2 * both, row.known.parts, None)
        if row.predicted is not None:
            stack(row, number + width / 2, scaling_words.foretold_parts(row.predicted), "//")
    axes.set_xticks(range(len(curve.best)), [f"{row.point.ranks:,}" for row in curve.best])
    axes.set(xlabel="ranks", ylabel="ms of a step x ranks / rows")
    axes.set_ylim(0, 1.1 * axes.dataLim.ymax)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)


def _memory(axes: Axes, study: Study, series: str) -> None:
    for curve, style in _styles(study, series):
        foretold = [(row.point.ranks, row.predicted.memory.peak / 1e9) for row in curve.foretold if row.predicted]
        axes.plot(
            *zip(*foretold, strict=True) if foretold else ((), ()), color=style["color"], linestyle="--", linewidth=1
        )
        peaks = [(row.point.ranks, row.known.peak_bytes / 1e9) for row in curve.best]
        if peaks:
            line = "none" if foretold else "-"
            label = scaling_words.setting(curve.rows[0].point)
            axes.plot(*zip(*peaks, strict=True), linestyle=line, linewidth=1, markersize=6, label=label, **style)
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
    ranks = f"{row.point.ranks:,} on {counted(row.point.nodes, 'node')}"
    axes.set(xlabel=f"rank, of {ranks}", ylabel="ms of own work in a step")
    axes.set_ylim(0, 1.35 * float(high.max()))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(hosts) <= 8:
        axes.legend(fontsize=8, loc="lower right")
    axes.grid(alpha=0.3, axis="y")


STYLE = """
body { font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: #1a1a1a; background: #fff;
  max-width: 68rem; margin: 0 auto; padding: 1.5rem; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .2rem; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ccc; padding-bottom: .2rem; }
h3 { font-size: 1.05rem; margin: 1.4rem 0 .3rem; }
.about, figcaption, .quiet { color: #555; font-size: .9rem; }
.series { border: 1px solid #ccc; border-left: 5px solid #0072B2; border-radius: 4px; padding: .8rem 1.1rem;
  margin: 1rem 0; }
.series h2 { border: 0; margin: 0; font-size: 1rem; color: #555; padding: 0; }
.series p.lead { font-size: 1.2rem; font-weight: 600; margin: .2rem 0 .8rem; line-height: 1.35; }
dl { display: grid; grid-template-columns: 11rem 1fr; gap: .3rem 1rem; margin: 0; }
dt { font-weight: 600; } dd { margin: 0; }
figure { margin: 1.2rem 0; } figure img { width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .76rem; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: .3rem .35rem; border-bottom: 1px solid #ddd; text-align: right; }
th { vertical-align: bottom; border-bottom: 2px solid #888; }
th:first-child, td:first-child, td.note { text-align: left; }
tr.chosen { background: #e3effa; } tr.chosen td:first-child { font-weight: 600; }
td.note { font-style: italic; } tr.failed td.note { color: #a33a00; }
.facts { font-size: .85rem; }
.facts td, .facts th { text-align: left; vertical-align: top; border-bottom: 1px solid #ddd; }
.points td { white-space: nowrap; } .points td.note { white-space: normal; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .5rem; } }
@media print { body { max-width: none; padding: 0; font-size: 11px; } figure, .series, tr { break-inside: avoid; }
  .wide { overflow: visible; } table { font-size: 8px; } }
"""


def page(study: Study, title: str, pictures: Sequence[Picture], folder: Path) -> str:
    """The page as HTML; `folder` has the pictures."""
    rows = study.rows
    states = [row.state for row in rows]
    counts = ", ".join(
        f"{states.count(state)} {state}" for state in ("measured", "failed", "not run") if state in states
    )
    days = sorted({some.started[:10] for _, some, _ in study.measured})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    body = [
        f"<h1>{_text(title)}</h1>",
        f'<p class="about">{_text(counted(len(rows), "point"))}: {_text(counts)}. {_text(when)}.</p>',
    ]
    for series, name in SERIES.items():
        curve = study.leading(series)
        if curve is not None:
            body.append(f'<section class="series"><h2>{_text(name)}</h2>')
            body.append(f'<p class="lead">{_text(scaling_words.headline(study, curve))}</p><dl>')
            body += [
                f"<dt>{_text(what)}</dt><dd>{_text(sentence)}</dd>"
                for what, sentence in scaling_words.conclusions(study, curve)
            ]
            body.append("</dl></section>")
    more = scaling_words.others(study)
    if foretold := scaling_words.prediction(study):
        body.append(f"<h3>How far the prediction was right</h3><p>{_text(foretold)}</p>")
    if more:
        body.append(f"<h3>Other settings</h3>{_list(more)}")
    if study.remarks:
        body.append(f"<h3>To know of these figures</h3>{_list(study.remarks)}")
    body.append("<h2>Pictures</h2>")
    for picture in pictures:
        data = base64.b64encode((folder / picture.name).read_bytes()).decode("ascii")
        body.append(
            f'<figure><h3>{_text(picture.title)}</h3><img alt="{_text(picture.title)}" '
            f'src="data:image/png;base64,{data}"><figcaption>{_text(picture.text)}</figcaption></figure>'
        )
    body += ["<h2>All points</h2>", *_table(study), "<h2>How it was measured</h2>", _facts(_how(study))]
    if study.prediction is not None:
        body += ["<h3>The hardware of the prediction</h3>", _facts(_hardware(study))]
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{_text(title)}</title><style>{STYLE}</style></head>\n<body>\n" + "\n".join(body) + "\n</body></html>\n"
    )


def _text(text: str) -> str:
    return html.escape(text)


def _list(texts: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{_text(text)}</li>" for text in texts) + "</ul>"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<tr><th>{_text(name)}</th><td>{_text(value)}</td></tr>" for name, value in facts)
    return f'<table class="facts">{lines}</table>'


def _table(study: Study) -> list[str]:
    columns = scaling_words.head(study)
    found = []
    for curve in study.curves:
        found.append(f"<h3>{_text(curve.series)} scaling, {_text(scaling_words.setting(curve.rows[0].point))}</h3>")
        found.append('<div class="wide"><table class="points"><thead><tr>')
        found.append("".join(f"<th>{_text(name)}</th>" for name in columns[1:]) + "</tr></thead><tbody>")
        for row, line in zip(curve.rows, scaling_words.lines(study, curve), strict=True):
            cells = [f"<td>{_text(cell)}</td>" for cell in line.cells[1:]]
            if line.note:
                end = len(scaling_words.HEAD) - 1
                cells[3:end] = [f'<td class="note" colspan="{end - 3}">{_text(line.note)}</td>']
            kind = "chosen" if line.chosen else row.state.replace(" ", "-")
            found.append(f'<tr class="{kind}">{"".join(cells)}</tr>')
        found.append("</tbody></table></div>")
    found.append(
        '<p class="quiet">Marked: the fastest micro-batch on so many ranks, which is on the curve. Speed-up and '
        "efficiency are against the curve's first point; communication is waited for in steps of its own; node-hours "
        "are those of the recipe's whole training, without evaluations, saves and failures; memory is a device's, or "
        "on CPUs what comes on top of the process.</p>"
    )
    return found


def _how(study: Study) -> list[tuple[str, str]]:
    """What the figures hang on."""
    measured = [some for _, some, _ in study.measured]
    hosts = sorted({host for some in measured for host in some.hosts})
    versions = sorted({f"{name} {version}" for some in measured for name, version in some.versions.items() if version})
    return [
        ("recipe", study.recipe.name),
        ("hosts", f"{len(hosts)}: {', '.join(hosts)}"),
        ("ranks are on", _either({"CPUs" if some.device == "cpu" else "GPUs" for some in measured})),
        ("precision", _either({some.precision for some in measured})),
        ("commit", _either({some.commit or "unknown" for some in measured})),
        ("versions", ", ".join(versions)),
        ("steps of warm-up", _either({some.warmup for some in measured})),
        ("steps measured", _either({figures.steps for _, _, figures in study.measured})),
        ("tokens of a row", f"{study.tokens_per_row:,.1f} on average, padding left out"),
        ("begun", f"{min(some.started for some in measured)} to {max(some.started for some in measured)}"),
        ("a step", "takes as long as its slowest rank; medians and quartiles are those of the measured steps"),
        ("communication", "of the rank with the least, as the others also wait for the last to come"),
        ("slowest rank", "by the median of its own work, as a multiple of the median rank's"),
    ]


def _hardware(study: Study) -> list[tuple[str, str]]:
    assert study.prediction is not None
    on = study.prediction.hardware
    facts = []
    for name, value in vars(on).items():
        if name in ("name", "measured", "devices"):
            continue
        source = "measured" if name in on.measured else "the maker's, or assumed"
        if isinstance(value, dict):
            said = ", ".join(f"{key} {number:.4g}" for key, number in value.items())
        else:
            said = "none" if value is None else f"{value:.4g}"
        facts.append((name, f"{said} ({source})"))
    return [("name", on.name), ("devices", "of each point, its ranks on a node"), *facts]


def _either(values: set[Any]) -> str:
    return " or ".join(str(value) for value in sorted(values))

"""Tabulate the points of a scaling study, and write its report as Markdown."""

from __future__ import annotations

from collections.abc import Iterable

from scaler.core.text import percent, signed_percent, three_digits
from scaler.studies import text
from scaler.studies.curves import Curve, Row, Study

MEASURED_COLUMNS = (
    *("setting", "nodes x ranks", "rows", "micro x acc.", "ms/step (quartiles)", "tokens/s", "speed-up", "efficiency"),
    *("comm.", "slowest rank", "GB/rank", "node-hours"),
)
NOTE = 4  # the column in which a point without figures has why
PREDICTED_COLUMNS = ("predicted ms (error)", "predicted GB")


def columns(study: Study) -> tuple[str, ...]:
    """Return the names of the table's columns."""
    return MEASURED_COLUMNS + (PREDICTED_COLUMNS if study.prediction else ())


def lines(study: Study, curve: Curve) -> Iterable[tuple[str, tuple[str, ...]]]:
    """Yield kind and cells of each point: "chosen" (it is on the curve), or how it stands.

    A point without figures has why in the cell `NOTE`, and the others up to the prediction are empty.
    """
    for row in curve.rows:
        point = row.point
        begin = (
            text.setting(point),
            f"{point.nodes} x {point.ranks_per_node}",
            f"{point.rows:,}",
            f"{point.micro_rows} x {point.accumulation}",
        )
        predicted = _predicted(row) if study.prediction else ()
        figures = row.figures
        if figures is None:
            empty = [""] * (len(MEASURED_COLUMNS) - NOTE - 1)
            yield row.state, (*begin, text.why_not(row), *empty, *predicted)
            continue
        low, median, high = (1e3 * value for value in vars(figures.seconds).values())
        middle = (
            f"{three_digits(median)} ({three_digits(low)} to {three_digits(high)})",
            three_digits(figures.tokens_per_second.median),
            f"{curve.speedup(row):.2f}",
            percent(curve.efficiency(row)),
            percent(figures.communication_fraction),
            f"{figures.slowest_to_median:.2f} (rank {figures.slowest_rank}, {figures.host})",
            f"{figures.peak_bytes / 1e9:.2f}",
            three_digits(study.hours(row) * point.nodes),
        )
        yield "chosen" if row in curve.best else row.state, (*begin, *middle, *predicted)


def _predicted(row: Row) -> tuple[str, str]:
    if row.predicted is None:
        return "", ""
    error = "" if row.error is None else f" ({signed_percent(row.error)})"
    return f"{three_digits(1e3 * row.predicted.step.seconds)}{error}", f"{row.predicted.memory.peak / 1e9:.2f}"


def markdown(study: Study) -> str:
    """Return conclusions and table as Markdown, to paste."""
    found = []
    for series, title in text.SERIES.items():
        curve = study.leading(series)
        if curve is not None:
            found += [f"**{title}.** {text.headline(curve)}", ""]
            found += [f"- {topic}: {sentence}" for topic, sentence in text.conclusions(study, curve)] + [""]
    found += [f"- {line}" for line in text.other_settings(study)]
    if prediction := text.prediction(study):
        found.append(f"- Prediction: {prediction}")
    names = columns(study)
    found += ["", _cells(("series", *names)), "|" + "---|" * (len(names) + 1)]
    for curve in study.curves:
        for kind, cells in lines(study, curve):
            bold = (*cells[:5], f"**{cells[5]}**", *cells[6:]) if kind == "chosen" else cells
            found.append(_cells((curve.series, *bold)))
    found += ["", "Bold: the fastest micro-batch at this number of ranks; it is the one on the curve."]
    return "\n".join([*found, *(f"- {remark}" for remark in study.remarks)])


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"

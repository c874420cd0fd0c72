"""Render the report of a scaling study as one HTML page that loads nothing from elsewhere and has no script."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scaler.core.text import quantity
from scaler.studies import table, text
from scaler.studies.curves import Study
from scaler.studies.pictures import Picture

TEMPLATE = "report.html.j2"  # beside this file


def page(study: Study, title: str, pictures: Sequence[Picture], folder: Path) -> str:
    """Return the page as HTML; `folder` has the pictures. All text is escaped."""
    loader = PackageLoader("scaler.studies", "")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    leading = [(name, study.leading(series)) for series, name in text.SERIES.items()]
    return environment.get_template(TEMPLATE).render(
        title=title,
        about=_about(study),
        series=[(name, text.headline(curve), text.conclusions(study, curve)) for name, curve in leading if curve],
        prediction=text.prediction(study),
        other_settings=text.other_settings(study),
        remarks=study.remarks,
        pictures=[(picture, base64.b64encode((folder / picture.name).read_bytes()).decode()) for picture in pictures],
        columns=table.columns(study),
        measured_columns=len(table.MEASURED_COLUMNS),
        tables=_tables(study),
        how=_how(study),
        hardware=_hardware(study),
    )


def _about(study: Study) -> str:
    states = [row.state for row in study.rows]
    counts = [f"{states.count(state)} {state}" for state in ("measured", "failed", "not run") if state in states]
    days = sorted({measured.started[:10] for _, measured, _ in study.measured})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{quantity(len(states), 'point')}: {', '.join(counts)}. {when}."


def _tables(study: Study) -> list[tuple[str, list[tuple[str, table.Line]]]]:
    """Return for each curve its heading, and its lines with the CSS class of each."""
    return [
        (
            f"{curve.series} scaling, {text.setting(curve.rows[0].point)}",
            [
                ("chosen" if line.chosen else row.state.replace(" ", "-"), line)
                for row, line in zip(curve.rows, table.lines(study, curve), strict=True)
            ],
        )
        for curve in study.curves
    ]


def _how(study: Study) -> list[tuple[str, str]]:
    """Return what the figures depend on: a name and a value each."""
    measured = [of_point for _, of_point, _ in study.measured]
    hosts = sorted({host for of_point in measured for host in of_point.hosts})
    versions = {f"{name} {version}" for of_point in measured for name, version in of_point.versions.items() if version}
    return [
        ("recipe", study.recipe.name),
        ("hosts", f"{len(hosts)}: {', '.join(hosts)}"),
        ("ranks run on", _either({"CPUs" if of_point.device == "cpu" else "GPUs" for of_point in measured})),
        ("precision", _either({of_point.precision for of_point in measured})),
        ("commit", _either({of_point.commit or "unknown" for of_point in measured})),
        ("versions", ", ".join(sorted(versions))),
        ("warm-up steps", _either({of_point.warmup for of_point in measured})),
        ("measured steps", _either({figures.steps for _, _, figures in study.measured})),
        ("tokens per row", f"{study.tokens_per_row:,.1f} on average, without padding"),
        ("started", " to ".join(bound(of_point.started for of_point in measured) for bound in (min, max))),
        ("a step", "takes as long as its slowest rank; medians and quartiles are those of the measured steps"),
        ("communication", "of the rank with the least, because the others also wait for the last to come"),
        ("slowest rank", "by the median of its own work, as a multiple of the median rank's"),
    ]


def _hardware(study: Study) -> list[tuple[str, str]]:
    """Return the figures of the hardware that predictions are made with; none without predictions."""
    if study.prediction is None:
        return []
    hardware = study.prediction.hardware
    facts = [("name", hardware.name), ("devices", "of each point, its ranks on a node")]
    for name, value in vars(hardware).items():
        if name not in ("name", "measured", "devices"):
            source = "measured" if name in hardware.measured else "the maker's, or assumed"
            facts.append((name, f"{_number(value)} ({source})"))
    return facts


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {number:.4g}" for key, number in value.items())
    return "none" if value is None else f"{value:.4g}"


def _either(values: set[Any]) -> str:
    return " or ".join(str(value) for value in sorted(values))

"""Write the report of a scaling study: page, charts, JSON, Markdown, TensorBoard."""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from scaler.core.board import Board
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import write_json, write_whole
from scaler.core.text import quantity
from scaler.planning import hardware
from scaler.studies import bottlenecks, pictures, table, text
from scaler.studies.curves import Curve, Row, Study, analyse

TEMPLATE = "report.html.j2"  # beside this file
BOARD, PAGE, JSON, MARKDOWN = "tensorboard", "index.html", "report.json", "report.md"
OURS = {BOARD, PAGE, JSON, MARKDOWN, *pictures.PICTURES}


def point_as_json(study: Study, curve: Curve, row: Row) -> dict[str, Any]:
    """Return a point for report.json. Its keys are a format that others read: they do not follow renames."""
    figures, predicted, measured = row.figures, row.predicted, row.measured
    content: dict[str, Any] = {
        **dataclasses.asdict(row.point),
        "ranks": row.point.ranks,
        "accumulation": row.point.accumulation,
        "state": row.state,
        "failures": list(row.failures),
    }
    if figures is not None and measured is not None:
        content["measured"] = {
            **dataclasses.asdict(figures),
            "parts": figures.parts,
            "communication_share": figures.communication_fraction,
            "slowest_to_median": figures.slowest_to_median,
            "speedup": curve.speedup(row),
            "efficiency": curve.efficiency(row),
            "hours": study.hours(row),
            "node_hours": study.hours(row) * row.point.nodes,
            "precision": measured.precision,
            "commit": measured.commit,
            "versions": measured.versions,
            "hosts": list(measured.hosts),
            "started": measured.started,
        }
    if predicted is not None:
        content["predicted"] = {
            "seconds": predicted.step.seconds,
            "parts": dataclasses.asdict(predicted.step),
            "peak_bytes": predicted.memory.peak,
            "fits": predicted.fits,
            "error": row.error,
            "memory_error": row.memory_error,
        }
    return content


def content_of(study: Study) -> dict[str, Any]:
    """Return the whole report for report.json."""
    curves = []
    for curve in study.curves:
        content: dict[str, Any] = dict(zip(("series", "stage", "offload", "bucket"), curve.setting, strict=True))
        content["points"] = [point_as_json(study, curve, row) for row in curve.rows]
        if curve.best:
            limits = bottlenecks.limits(curve)
            content |= {
                "best": [row.point.name for row in curve.best],
                "knee_ranks": curve.knee.point.ranks if curve.knee else None,
                "predicted_knee_ranks": curve.predicted_knee.point.ranks if curve.predicted_knee else None,
                "judged_ranks": curve.judged.point.ranks,
                "limits": [
                    {"part": limit.part, "share": limit.fraction, "predicted": limit.predicted} for limit in limits
                ],
                "remedies": [remedy.text for remedy in bottlenecks.remedies(study, curve)],
            }
        curves.append(content)
    errors = study.errors()
    return {
        "recipe": study.recipe.name,
        "tokens_per_row": study.tokens_per_row,
        "curves": curves,
        "hardware": dataclasses.asdict(study.prediction.hardware) if study.prediction else None,
        "prediction": None
        if errors is None
        else {"median_error": errors[0], "worst_error": errors[1].error, "worst_point": errors[1].point.name},
        "remarks": list(study.remarks),
    }


def write_scalars(study: Study, folder: Path) -> None:
    """Write TensorBoard's scalars: a run for each curve, with ranks in place of steps."""
    for curve in study.curves:
        series, stage, offload, bucket = curve.setting
        with closing(Board(folder / f"{series}-zero{stage}{'-offload' * offload}-bucket{bucket}")) as board:
            for row in curve.best:
                figures = row.known
                values = {
                    "tokens_per_second": figures.tokens_per_second.median,
                    "step_seconds": figures.seconds.median,
                    "speedup": curve.speedup(row),
                    "efficiency": curve.efficiency(row),
                    "communication_share": figures.communication_fraction,
                    "slowest_rank_to_median": figures.slowest_to_median,
                    "peak_gigabytes": figures.peak_bytes / 1e9,
                    "node_hours": study.hours(row) * row.point.nodes,
                }
                for name, value in values.items():
                    board.add_scalar(f"scaling/{name}", value, row.point.ranks)
            for row in curve.predicted:
                assert row.predicted is not None
                tokens = study.tokens_per_row * row.predicted_speed
                board.add_scalar("predicted/tokens_per_second", tokens, row.point.ranks)
                board.add_scalar("predicted/step_seconds", row.predicted.step.seconds, row.point.ranks)
                board.add_scalar("predicted/efficiency", curve.predicted_efficiency(row), row.point.ranks)


def page(study: Study, title: str, drawn: Sequence[pictures.Picture], folder: Path) -> str:
    """Return one HTML page that loads nothing from elsewhere and has no script; `folder` has the pictures."""
    loader = PackageLoader("scaler.studies", "")  # with autoescape, because names of hosts and runs are text
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    leading = [(name, study.leading(series)) for series, name in text.SERIES.items()]
    return environment.get_template(TEMPLATE).render(
        title=title,
        about=_about(study),
        series=[(name, text.headline(curve), text.conclusions(study, curve)) for name, curve in leading if curve],
        prediction=text.prediction(study),
        other_settings=text.other_settings(study),
        remarks=study.remarks,
        pictures=[(picture, base64.b64encode((folder / picture.name).read_bytes()).decode()) for picture in drawn],
        columns=table.columns(study),
        measured_columns=len(table.MEASURED_COLUMNS),
        note=table.NOTE,
        tables=[
            (f"{curve.series} scaling, {text.setting(curve.rows[0].point)}", table.lines(study, curve))
            for curve in study.curves
        ],
        how=_how(study),
        hardware=_hardware(study),
    )


def _about(study: Study) -> str:
    states = [row.state for row in study.rows]
    counts = [f"{states.count(state)} {state}" for state in ("measured", "failed", "not run") if state in states]
    days = sorted({measured.started[:10] for _, measured, _ in study.measured})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{quantity(len(states), 'point')}: {', '.join(counts)}. {when}."


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


def write(study: Study, out: Path) -> None:
    """Write the whole report; it replaces an older one once it is complete.

    Raises: ScalerError where the folder has something else in it.
    """
    if out.is_symlink():
        raise ScalerError(f"--out {out}: is a link, which is not replaced; remove the link, or choose another folder")
    out = out.resolve()  # because "." has no name
    if out.is_dir():
        names = {path.name for path in out.iterdir()}
        foreign = sorted(names - OURS if JSON in names else names)
        if foreign:
            raise ScalerError(f"--out {out}: has {foreign[0]} in it, which is not of a report; choose another folder")
    beside = out.with_name(f".{out.name}-{os.getpid()}.partial")  # a name that is nobody's
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        beside.mkdir()
        try:
            _write_into(beside, study)
            if out.is_dir():
                shutil.rmtree(out)
            beside.replace(out)
        except BaseException:
            shutil.rmtree(beside, ignore_errors=True)
            raise


def _write_into(folder: Path, study: Study) -> None:
    drawn = pictures.draw(study, folder)
    ranks = sorted({row.point.ranks for row in study.rows})
    span = f"{ranks[0]:,} to {ranks[-1]:,}" if len(ranks) > 1 else f"{ranks[0]:,}"
    title = f"Scaling of {study.recipe.name} on {span} rank{'s' * (ranks[-1] > 1)}"
    write_whole(folder / PAGE, page(study, title, drawn, folder))
    write_whole(folder / MARKDOWN, table.markdown(study) + "\n")
    write_json(folder / JSON, content_of(study))
    write_scalars(study, folder / BOARD)


def run(arguments: argparse.Namespace) -> None:
    """Write the report of a command line, and print what it says."""
    given = None if arguments.hardware is None else hardware.load(arguments.hardware)
    study = analyse(arguments.study, given)
    out = arguments.out or arguments.study / "report"
    write(study, out)
    if arguments.json:
        print(json.dumps(content_of(study), indent=2))
    else:
        print(f"{table.markdown(study)}\n\n{out / PAGE}\ntensorboard --logdir {out / BOARD}")

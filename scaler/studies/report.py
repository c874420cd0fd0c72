"""Write the report of a scaling study: page, charts, JSON, Markdown, TensorBoard."""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import write_json, write_whole
from scaler.planning import hardware
from scaler.studies import analysis, bottlenecks, page, pictures, table, text
from scaler.studies.curves import Curve, Row, Study

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
                "remedies": [text.describe_remedy(remedy, curve) for remedy in bottlenecks.remedies(study, curve)],
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
    from torch.utils.tensorboard import SummaryWriter  # seconds for torch; only the end of a report needs it

    for curve in study.curves:
        series, stage, offload, bucket = curve.setting
        with SummaryWriter(str(folder / f"{series}-zero{stage}{'-offload' * offload}-bucket{bucket}")) as board:
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


def write(study: Study, out: Path) -> None:
    """Write the whole report; it replaces an older one once it is complete.

    Raises: ScalerError where the folder has something else in it.
    """
    out = out.resolve()  # because "." has no name
    if out.is_dir():
        foreign = sorted({path.name for path in out.iterdir()} - OURS)
        if foreign:
            raise ScalerError(f"--out {out}: has {foreign[0]} in it, which is not of a report; choose another folder")
    beside = out.with_name(out.name + ".partial")
    with explain_disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir()
        drawn = pictures.draw(study, beside)
        ranks = sorted({row.point.ranks for row in study.rows})
        span = f"{ranks[0]:,} to {ranks[-1]:,}" if len(ranks) > 1 else f"{ranks[0]:,}"
        title = f"Scaling of {study.recipe.name} on {span} rank{'s' * (ranks[-1] > 1)}"
        write_whole(beside / PAGE, page.page(study, title, drawn, beside))
        write_whole(beside / MARKDOWN, table.markdown(study) + "\n")
        write_json(beside / JSON, content_of(study))
        write_scalars(study, beside / BOARD)
        if out.is_dir():
            shutil.rmtree(out)
        beside.replace(out)


def run(arguments: argparse.Namespace) -> None:
    """Write the report of a command line, and print what it says."""
    given = None if arguments.hardware is None else hardware.load(arguments.hardware)
    study = analysis.analyse(arguments.study, given)
    out = arguments.out or arguments.study / "report"
    write(study, out)
    if arguments.json:
        print(json.dumps(content_of(study), indent=2))
    else:
        print(f"{table.markdown(study)}\n\n{out / PAGE}\ntensorboard --logdir {out / BOARD}")

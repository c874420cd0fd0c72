"""What a scaling study shows, in words and as a table: for the page, for Markdown and for a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from scaler.core.text import counted, duration, rounded, share, signed
from scaler.planning import step_time
from scaler.planning.step_time import PAYS
from scaler.studies import bottlenecks, curves
from scaler.studies.bottlenecks import Limit, Remedy
from scaler.studies.curves import Curve, Row, Study
from scaler.studies.folder import Point

PARTS = {
    "stragglers": "waiting for the slowest rank",
    "communication": "communication between ranks",
    "micro_batches": "what each micro-batch costs however small it is",
    "memory": "memory, which allows no larger micro-batch",
    "work": "each rank's own work, which takes longer for a row than on the fewest ranks",
    "other": "time that steps with timed collectives do not show",
}
SERIES = {
    "strong": "Strong scaling: the batch stays the same",
    "weak": "Weak scaling: the batch grows with the ranks",
}
HEAD = (
    *("setting", "nodes x ranks", "rows", "micro x acc.", "ms/step (quartiles)", "tokens/s", "speed-up", "efficiency"),
    *("comm.", "slowest rank", "GB/rank", "node-hours"),
)
HEAD_PREDICTED = ("predicted ms (error)", "predicted GB")


@dataclass(frozen=True)
class Line:
    """A line of the table. `chosen`: it is on the curve; `note`: instead of figures, why there are none."""

    cells: tuple[str, ...]
    chosen: bool
    note: str


def place(point: Point) -> str:
    """On what a point runs."""
    ranks = counted(point.ranks, "rank")
    return f"{ranks} on 1 node" if point.nodes == 1 else f"{point.nodes:,} nodes ({ranks})"


def setting(point: Point) -> str:
    """What the points of a curve have in common, without the series."""
    return f"ZeRO-{point.stage}{' with offload' * point.offload}, bucket {point.bucket / 1e6:g} M"


def headline(study: Study, curve: Curve) -> str:
    """The one sentence on a curve."""
    first, last = curve.best[0], curve.best[-1]
    if first is last:
        return f"Measured on {place(first.point)} alone: {tokens(first)} tokens/s; how it scales, nobody knows yet."
    if curve.speedup(last) < 1:
        fastest = max(curve.best, key=curve.speedup)
        return f"{place(last.point)} are slower than {place(first.point)}. Fastest: {place(fastest.point)}."
    so_far = f"{place(last.point)} train {curve.speedup(last):.2f} times as fast as {place(first.point)}"
    if curve.knee is None:
        return f"{so_far}, and pay: efficiency is {share(curve.efficiency(last))}."
    if curve.paying is first:
        return f"{so_far}: an efficiency of {share(curve.efficiency(last))}. More than {place(first.point)} do not pay."
    return f"{so_far}, but it pays up to {place(curve.paying.point)} only."


def tokens(row: Row) -> str:
    """Tokens a second of a measured point."""
    return rounded(row.speed)


def conclusions(study: Study, curve: Curve) -> list[tuple[str, str]]:
    """How fast, how efficient, where it stops paying and why, what to change: a name and a text each."""
    first, last = curve.best[0], curve.best[-1]
    found = [
        (
            "How fast",
            f"{tokens(last)} tokens/s on {place(last.point)} with {setting(last.point)} and micro-batches of "
            f"{counted(last.point.micro_rows, 'row')}"
            + (
                f", {curve.speedup(last):.2f} times the {tokens(first)} of {place(first.point)}."
                if last is not first
                else "."
            ),
        ),
    ]
    if last is not first:
        hours = "node-hours" if last.point.nodes > first.point.nodes else "rank-hours"
        lost = max(0, round(100 * (1 - curve.efficiency(last))))
        text = f"{share(curve.efficiency(last))} on {place(last.point)}, against {place(first.point)}"
        found.append(("How efficient", f"{text}: of 100 {hours} {lost} are lost."))
        found.append(("Where it stops paying", _knee(curve)))
    held_up = bottlenecks.limits(curve)
    where = f"on {place(curve.judged.point)}"
    found.append(("What limits", f"O{where[1:]}: {_limits(curve, held_up)}."))
    changes = [said(remedy, curve) for remedy in bottlenecks.remedies(study, curve)]
    known = "measured or predicted" if curve.judged.predicted else "measured"
    nothing = f"Nothing {known} is faster {where}."
    found.append(("What to change", " ".join(changes) if changes else nothing))
    found.append(("What it takes", _cost(study, curve)))
    return found


def _cost(study: Study, curve: Curve) -> str:
    """Hours of the whole training, on the fewest ranks, on the last that pay, and on the most."""
    rows = list(dict.fromkeys([curve.best[0].point, curve.paying.point, curve.best[-1].point]))
    by_point = {row.point: row for row in curve.best}
    price = study.prediction.hardware.price if study.prediction else None
    texts = []
    for point in rows:
        hours = study.hours(by_point[point])
        money = "" if price is None else f", {rounded(hours * point.nodes * price)} in money"
        text = f"{duration(3600 * hours)} on {place(point)}, {rounded(hours * point.nodes)} node-hours{money}"
        texts.append(text)
    return f"The recipe's {counted(study.recipe.training.steps, 'step')}: {'; '.join(texts)}."


def _knee(curve: Curve) -> str:
    knee, last = curve.knee, curve.best[-1]
    if knee is None:
        text = f"Not on up to {place(last.point)}: efficiency stays at {share(PAYS)} or more."
    else:
        text = (
            f"From {place(knee.point)} on, where efficiency is {share(curve.efficiency(knee))}, below {share(PAYS)}. "
            f"The last that pay are {place(curve.paying.point)}, at {share(curve.efficiency(curve.paying))}."
        )
    if len(curve.foretold) > 1:
        foretold = curve.foretold_knee
        at = f"from {place(foretold.point)} on" if foretold else f"not on up to {place(curve.foretold[-1].point)}"
        text += f" Predicted: {at}."
    return text


def _limits(curve: Curve, held_up: Sequence[Limit]) -> str:
    if not held_up:
        return f"nothing; no part takes {share(bottlenecks.NOTICED)} of a step beside the ranks' own work"
    grown = [limit for limit in held_up if limit.grown >= bottlenecks.NOTICED]
    text = "; then ".join(map(_limit, grown))
    if steady := [limit for limit in held_up if limit not in grown]:
        text += (". On any number of ranks: " if grown else "") + "; then ".join(map(_limit, steady))
    if held_up[0].part == "stragglers":
        figures = curve.judged.known
        text += (
            f". Rank {figures.slowest_rank} on {figures.host} takes {figures.slowest_to_median:.2f} times the median"
        )
    return text


def _limit(limit: Limit) -> str:
    text = f"{PARTS[limit.part]}, {share(limit.share)} of a step"
    if limit.grown >= bottlenecks.NOTICED and limit.share - limit.grown >= 0.005:
        text += f", of which {share(limit.grown)} came with the ranks"
    if limit.row is not None:
        text += f" (micro-batches of {counted(limit.row.point.micro_rows, 'row')} {_how_it_went(limit.row)})"
    return text + " (predicted)" * limit.predicted


def _how_it_went(row: Row) -> str:
    return "failed for want of memory" if row.state == "failed" else "are predicted not to fit"


def said(remedy: Remedy, curve: Curve) -> str:
    """A remedy as a sentence."""
    here = curve.judged.point
    if remedy.kind == "host":
        return f"Take another node for {remedy.host}: without its delay steps would be {share(remedy.gain)} faster."
    if remedy.kind == "predicted":
        assert remedy.forecast is not None
        better = remedy.forecast
        return (
            f"Try ZeRO-{better.settings.stage} with micro-batches of {counted(better.batch.micro_rows, 'row')} on "
            f"{place(here)}: {share(remedy.gain)} faster, which is predicted, not measured."
        )
    assert remedy.row is not None
    there = remedy.row.point
    if remedy.kind == "fewer":
        what = "rank" if there.nodes == here.nodes else "node"
        count = there.ranks if what == "rank" else there.nodes
        return f"Take {counted(count, what)} instead: {share(remedy.gain)} fewer {what}-hours for the same training."
    changed = {
        f"ZeRO-{there.stage}{' without offload' * (here.offload and not there.offload)}": (there.stage, there.offload)
        != (here.stage, here.offload),
        f"a bucket of {there.bucket / 1e6:g} M": there.bucket != here.bucket,
        f"micro-batches of {counted(there.micro_rows, 'row')}": there.micro_rows != here.micro_rows,
    }
    what = " and ".join(text for text, differs in changed.items() if differs) or "the other layout of nodes"
    return f"Take {what}: measured {share(remedy.gain)} faster on {place(there)}."


def others(study: Study) -> list[str]:
    """A line on each curve that leads no series."""
    found = []
    for curve in study.curves:
        if curve is study.leading(curve.series):
            continue
        what = f"{curve.series}, {setting(curve.rows[0].point)}"
        if not curve.best:
            reasons = dict.fromkeys(_why_not(row) for row in curve.rows)
            found.append(f"{what}: nothing measured ({'; '.join(reasons)})")
            continue
        last, held_up = curve.best[-1], bottlenecks.limits(curve)
        limited = f"; what limits: {PARTS[held_up[0].part]}, {share(held_up[0].share)}" if held_up else ""
        text = f"{what}: {tokens(last)} tokens/s on {place(last.point)}"
        if len(curve.best) > 1:
            knee = f"pays up to {place(curve.paying.point)}" if curve.knee else "pays throughout"
            text += f", efficiency {share(curve.efficiency(last))}, {knee}"
        found.append(text + limited)
    return found


def prediction(study: Study) -> str | None:
    """How far the prediction was right; None without hardware."""
    if study.prediction is None:
        return None
    found, on = curves.errors(study), study.prediction.hardware
    missing = "".join(f" No prediction of some points: {why}." for why in study.prediction.why_not)
    if found is None:
        return f"None.{missing}"
    median, worst = found
    assert worst.error is not None
    calibrated = f"measured: {', '.join(on.measured)}" if on.measured else "nothing of it measured"
    return (
        f"Steps predicted with hardware {on.name} ({calibrated}) are off by {share(median)} (median), at worst by "
        f"{signed(worst.error)} ({worst.point.name}). {_memory(study)}{missing}"
    )


def _memory(study: Study) -> str:
    worst = max((row.memory_error for row in study.rows if row.memory_error is not None), key=abs)
    return f"Peak memory of a rank is off by {signed(worst)} at worst."


def head(study: Study) -> tuple[str, ...]:
    """Names of the table's columns."""
    return HEAD + (HEAD_PREDICTED if study.prediction else ())


def lines(study: Study, curve: Curve) -> Iterable[Line]:
    """The table's lines of a curve: all points, measured or not."""
    for row in curve.rows:
        point = row.point
        begin = (
            setting(point),
            f"{point.nodes} x {point.ranks_per_node}",
            f"{point.rows:,}",
            f"{point.micro_rows} x {point.accumulation}",
        )
        foretold = _foretold(row) if study.prediction else ()
        figures = row.figures
        if figures is None:
            yield Line((*begin, *[""] * (len(HEAD) - len(begin)), *foretold), False, _why_not(row))
            continue
        low, median, high = (1e3 * value for value in vars(figures.seconds).values())
        middle = (
            f"{rounded(median)} ({rounded(low)} to {rounded(high)})",
            rounded(figures.tokens_per_second.median),
            f"{curve.speedup(row):.2f}",
            share(curve.efficiency(row)),
            share(figures.communication_share),
            f"{figures.slowest_to_median:.2f} (rank {figures.slowest_rank}, {figures.host})",
            f"{figures.peak_bytes / 1e9:.2f}",
            rounded(study.hours(row) * point.nodes),
        )
        yield Line((*begin, *middle, *foretold), row in curve.best, "")


def _why_not(row: Row) -> str:
    return f"failed: {row.failures[-1]}" if row.failures else "not run"


def _foretold(row: Row) -> tuple[str, str]:
    if row.predicted is None:
        return "", ""
    error = "" if row.error is None else f" ({signed(row.error)})"
    return f"{rounded(1e3 * row.predicted.step.seconds)}{error}", f"{row.predicted.memory.peak / 1e9:.2f}"


def markdown(study: Study) -> str:
    """Conclusions and table, to paste."""
    text = []
    for series, title in SERIES.items():
        curve = study.leading(series)
        if curve is not None:
            text += [f"**{title}.** {headline(study, curve)}", ""]
            text += [f"- {name}: {sentence}" for name, sentence in conclusions(study, curve)] + [""]
    text += [f"- {line}" for line in others(study)]
    if foretold := prediction(study):
        text.append(f"- Prediction: {foretold}")
    columns = head(study)
    text += ["", _cells(("series", *columns)), "|" + "---|" * (len(columns) + 1)]
    for curve in study.curves:
        for line in lines(study, curve):
            cells = [*line.cells]
            if line.note:
                cells[4] = line.note
            marked = [
                f"**{cell}**" if line.chosen and cell and number == 5 else cell for number, cell in enumerate(cells)
            ]
            text.append(_cells((curve.series, *marked)))
    text += ["", "Bold: the fastest micro-batch on so many ranks, which is on the curve."]
    text += [f"- {remark}" for remark in study.remarks]
    return "\n".join(text)


def _cells(cells: Iterable[str]) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def foretold_parts(predicted: step_time.Point) -> dict[str, float]:
    """Seconds of a predicted step by part, in the words of the measured one's."""
    step = predicted.step
    return {
        "own work": step.compute,
        "micro-batches": step.micro_batches,
        "optimizer": step.optimizer,
        "stragglers": step.stragglers,
        "communication": step.network,
    }

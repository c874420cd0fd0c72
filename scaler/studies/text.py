"""Describe in sentences what a scaling study shows."""

from __future__ import annotations

from collections.abc import Sequence

from scaler.core.text import duration, percent, quantity, signed_percent, three_digits
from scaler.planning import step_time
from scaler.planning.step_time import MIN_EFFICIENCY
from scaler.studies import bottlenecks
from scaler.studies.bottlenecks import Limit
from scaler.studies.curves import Curve, Row, Study
from scaler.studies.folder import Point

PARTS = {
    "stragglers": step_time.PARTS["stragglers"],
    "communication": step_time.PARTS["network"],
    "micro_batches": step_time.PARTS["micro_batches"],
    "memory": "memory, which allows no larger micro-batch",
    "work": "each rank's own work, which takes longer per row than on the fewest ranks",
    "other": "time that steps with timed collectives do not show",
}
SERIES = {
    "strong": "Strong scaling: the batch stays the same",
    "weak": "Weak scaling: the batch grows with the ranks",
}


def setting(point: Point) -> str:
    """Format what the points of a curve have in common, without the series."""
    return f"ZeRO-{point.stage}{' with offload' * point.offload}, bucket {point.bucket / 1e6:g} M"


def tokens(row: Row) -> str:
    """Format the throughput of a measured point in tokens per second."""
    return three_digits(row.speed)


def why_not(row: Row) -> str:
    """Format why a point has no figures."""
    return f"failed: {row.failures[-1]}" if row.failures else "not run"


def headline(curve: Curve) -> str:
    """Summarise a curve in one sentence."""
    first, last = curve.best[0], curve.best[-1]
    if first is last:
        return f"Measured on {first.point.place} alone: {tokens(first)} tokens/s; scaling is not known yet."
    if curve.speedup(last) < 1:
        fastest = max(curve.best, key=curve.speedup)
        return f"{last.point.place} are slower than {first.point.place}. Fastest: {fastest.point.place}."
    speedup = f"{last.point.place} train {curve.speedup(last):.2f} times as fast as {first.point.place}"
    efficiency = percent(curve.efficiency(last))
    if curve.knee is None:
        return f"{speedup}, at an efficiency of {efficiency}."
    if curve.last_efficient is first:
        return f"{speedup}, at an efficiency of only {efficiency}: {first.point.place} are enough."
    return (
        f"{speedup}, but efficiency is above {percent(MIN_EFFICIENCY)} only up to {curve.last_efficient.point.place}."
    )


def conclusions(study: Study, curve: Curve) -> list[tuple[str, str]]:
    """Describe speed, efficiency, the knee and its cause, what to change, and the cost: a topic and a text each."""
    first, last = curve.best[0], curve.best[-1]
    speed = (
        f"{tokens(last)} tokens/s on {last.point.place} with {setting(last.point)} and micro-batches of "
        f"{quantity(last.point.micro_rows, 'row')}"
    )
    if last is not first:
        speed += f", {curve.speedup(last):.2f} times the {tokens(first)} of {first.point.place}"
    found = [("Speed", f"{speed}.")]
    if last is not first:
        hours = "node-hours" if last.point.nodes > first.point.nodes else "rank-hours"
        lost = max(0, round(100 * (1 - curve.efficiency(last))))
        efficiency = f"{percent(curve.efficiency(last))} on {last.point.place}, relative to {first.point.place}"
        found.append(("Efficiency", f"{efficiency}: of 100 {hours} {lost} are lost."))
        found.append((f"Below {percent(MIN_EFFICIENCY)}", _knee(curve)))
    where = curve.judged.point.place
    found.append(("What limits", f"On {where}: {_limits(curve, bottlenecks.limits(curve))}."))
    changes = [remedy.text for remedy in bottlenecks.remedies(study, curve)]
    known = "measured or predicted" if curve.judged.predicted else "measured"
    found.append(("What to change", " ".join(changes) or f"Nothing {known} is faster on {where}."))
    found.append(("Cost", _cost(study, curve)))
    return found


def _cost(study: Study, curve: Curve) -> str:
    """Describe the hours of the whole training on the fewest ranks, on the last efficient ones, and on the most."""
    price = study.prediction.hardware.price if study.prediction else None
    texts = []
    for row in {row.point.ranks: row for row in (curve.best[0], curve.last_efficient, curve.best[-1])}.values():
        hours, nodes = study.hours(row), row.point.nodes
        money = "" if price is None else f", {three_digits(hours * nodes * price)} in money"
        texts.append(f"{duration(3600 * hours)} on {row.point.place}, {three_digits(hours * nodes)} node-hours{money}")
    return f"The recipe's {quantity(study.recipe.training.steps, 'step')}: {'; '.join(texts)}."


def _knee(curve: Curve) -> str:
    knee, last = curve.knee, curve.best[-1]
    if knee is None:
        text = f"Not on up to {last.point.place}: efficiency stays at {percent(MIN_EFFICIENCY)} or more."
    else:
        before = curve.last_efficient
        text = (
            f"From {knee.point.place} on, where efficiency is {percent(curve.efficiency(knee))}. It is "
            f"{percent(curve.efficiency(before))} on {before.point.place}."
        )
    if len(curve.predicted) > 1:
        predicted = curve.predicted_knee
        at = f"from {predicted.point.place} on" if predicted else f"not on up to {curve.predicted[-1].point.place}"
        text += f" Predicted: {at}."
    return text


def _limits(curve: Curve, limits: Sequence[Limit]) -> str:
    if not limits:
        return f"nothing; no part takes {percent(bottlenecks.NOTICED)} of a step beside the ranks' own work"
    grown = [limit for limit in limits if limit.grown >= bottlenecks.NOTICED]
    text = "; then ".join(map(_limit, grown))
    if steady := [limit for limit in limits if limit not in grown]:
        text += (". On any number of ranks: " if grown else "") + "; then ".join(map(_limit, steady))
    if limits[0].part == "stragglers":
        figures = curve.judged.known
        text += (
            f". Rank {figures.slowest_rank} on {figures.host} takes {figures.slowest_to_median:.2f} times the median"
        )
    return text


def _limit(limit: Limit) -> str:
    text = f"{PARTS[limit.part]}, {percent(limit.fraction)} of a step"
    if limit.grown >= bottlenecks.NOTICED and limit.fraction - limit.grown >= 0.005:
        text += f", of which {percent(limit.grown)} came with the ranks"
    if limit.row is not None:
        outcome = "ran out of memory" if limit.row.state == "failed" else "are predicted not to fit"
        text += f" (micro-batches of {quantity(limit.row.point.micro_rows, 'row')} {outcome})"
    return text + " (predicted)" * limit.predicted


def other_settings(study: Study) -> list[str]:
    """Describe each curve that leads no series in a line."""
    found = []
    for curve in study.curves:
        if curve is study.leading(curve.series):
            continue
        name = f"{curve.series}, {setting(curve.rows[0].point)}"
        if not curve.best:
            reasons = dict.fromkeys(map(why_not, curve.rows))
            found.append(f"{name}: nothing measured ({'; '.join(reasons)})")
            continue
        last, limits = curve.best[-1], bottlenecks.limits(curve)
        limited = f"; limited by {PARTS[limits[0].part]}, {percent(limits[0].fraction)}" if limits else ""
        line = f"{name}: {tokens(last)} tokens/s on {last.point.place}"
        if len(curve.best) > 1:
            line += f", efficiency {percent(curve.efficiency(last))}"
            if curve.knee:
                line += f", above {percent(MIN_EFFICIENCY)} up to {curve.last_efficient.point.place}"
        found.append(line + limited)
    return found


def prediction(study: Study) -> str | None:
    """Describe the accuracy of the prediction; None without hardware."""
    if study.prediction is None:
        return None
    errors, hardware = study.errors(), study.prediction.hardware
    missing = "".join(f" Some points are not predicted: {problem}." for problem in study.prediction.problems)
    if errors is None:
        return f"None.{missing}"
    median, worst = errors
    assert worst.error is not None
    measured = f"measured: {', '.join(hardware.measured)}" if hardware.measured else "nothing of it measured"
    memory = max((row.memory_error for row in study.rows if row.memory_error is not None), key=abs)
    return (
        f"Steps predicted with hardware {hardware.name} ({measured}) are off by {percent(median)} (median), at worst "
        f"by {signed_percent(worst.error)} ({worst.point.name}). Peak memory of a rank is off by "
        f"{signed_percent(memory)} at worst.{missing}"
    )

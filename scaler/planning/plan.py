"""Predict time, cost and memory of a recipe on any number of nodes."""

from __future__ import annotations

import argparse
import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from scaler.config import deepspeed as ds_config
from scaler.config.batch import batches
from scaler.config.deepspeed import precision_of
from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.core.text import quantity, table
from scaler.planning import critical_batch, failures, hardware, step_time
from scaler.planning.hardware import Hardware
from scaler.planning.memory import Sharding
from scaler.planning.step_time import MIN_EFFICIENCY, PARTS, PredictedPoint, Workload

TO_OWNERS = ", use_multi_rank_bucket_allreduce false,"
RESTART_SECONDS = 300  # to notice a failure, start all ranks again and load: our guess, for a job that need not queue
SAVE_BYTES_PER_SECOND = 1e9  # of a node, to a shared disk: our guess


def alternatives(sharding: Sharding, to_owners: tuple[bool, ...] = (False, True)) -> list[Sharding]:
    """Return the same sharding at every ZeRO stage.

    Args:
        to_owners: values of `Sharding.to_owners` to try at stages 1 and 2; the first one is that of the other stages.
    """
    return [
        dataclasses.replace(
            sharding,
            stage=stage,
            offload=sharding.offload and stage > 0,
            to_owners=owners,
            reduce_scatter=sharding.reduce_scatter or owners,
        )
        for stage in range(4)
        for owners in (to_owners if stage in (1, 2) else to_owners[:1])
    ]


def candidates(
    work: Workload, shardings: Sequence[Sharding], rows: int, nodes: int, on: Hardware
) -> list[PredictedPoint]:
    """Predict all micro-batches of all shardings for a global batch; none where the ranks cannot share it."""
    ranks = nodes * on.devices
    return [step_time.predict(work, way, batch, nodes, on) for way in shardings for batch in batches(rows, ranks)]


def describe(
    point: PredictedPoint, work: Workload, on: Hardware, first: PredictedPoint, critical: float | None
) -> dict[str, Any]:
    """Return a point as a line of the table and as JSON.

    Args:
        first: the point to which efficiency is relative.
        critical: the critical batch in rows; None where it is unknown.
    """
    save = work.layout.checkpoint_bytes(work.states) / (SAVE_BYTES_PER_SECOND * point.nodes)
    mtbf = on.mtbf_node_hours * 3600 / point.nodes
    every = failures.daly(save, mtbf)
    fraction = failures.expected_fraction(every, save, RESTART_SECONDS, mtbf)
    if not fraction:
        raise ScalerError(
            f"hardware {on.name}: mtbf_node_hours={on.mtbf_node_hours:g}, but nodes that fail so often keep no step; "
            "give a longer time"
        )
    steps = critical_batch.steps(work.steps, work.rows, point.batch.rows, critical)
    hours = steps * point.step.seconds / fraction / 3600
    return {
        "nodes": point.nodes,
        "ranks": point.batch.ranks,
        "stage": point.sharding.stage,
        "offload": point.sharding.offload,
        "to_owners": point.sharding.to_owners,
        "rows": point.batch.rows,
        "micro_rows": point.batch.micro_rows,
        "accumulation": point.batch.accumulation,
        "steps": steps,
        "past_critical": critical is not None and point.batch.rows > critical,
        "memory_bytes": {**point.memory.kept, "backward": point.memory.backward, "step": point.memory.step},
        "host_bytes": point.memory.host,
        "peak_bytes": point.memory.peak,
        "fits": point.fits,
        "seconds": dataclasses.asdict(point.step),
        "step_seconds": point.step.seconds,
        "tokens_per_second": point.rows_per_second * work.seq_len,
        "efficiency": point.rows_per_second / point.nodes / (first.rows_per_second / first.nodes),
        "goodput": fraction,
        "checkpoint_seconds": every,
        "hours": hours,
        "node_hours": hours * point.nodes,
        "cost": None if on.price is None else hours * point.nodes * on.price,
    }


def within(lines: Sequence[dict[str, Any]], budget: dict[str, float | None]) -> dict[str, Any] | None:
    """Return the cheapest line within the hours, or the fastest within the cost; with both limits the cheapest.

    None if no line is within the limits.
    """
    least = "hours" if budget["hours"] is None else "node_hours" if budget["cost"] is None else "cost"
    allowed = [line for line in lines if all(limit is None or line[key] <= limit for key, limit in budget.items())]
    return min(allowed, key=lambda line: line[least], default=None)


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the whole plan, ready for JSON.

    Raises: ScalerError for bad input, and for a training that fits nowhere.
    """
    from scaler.planning.workload import workload  # takes seconds, because it loads torch and Transformers

    on, recipe = hardware.load(arguments.hardware), load(arguments.recipe, arguments.overrides)
    content = ds_config.read(arguments.deepspeed_config)
    ds_config.check(content, arguments.deepspeed_config, recipe, arguments.allow_untested_ds_keys)
    precision = precision_of(content, "bf16" in on.flops)
    if precision not in on.flops:
        known = ", ".join(on.flops)
        raise ScalerError(f"hardware {on.name}: no figure for {precision}, only {known}; set bf16.enabled otherwise")
    if arguments.max_cost is not None and on.price is None:
        missing = f"hardware {on.name} has no price; put one in its file"
        raise ScalerError(f"--max_cost {arguments.max_cost:g}, but {missing}")
    budget = {"hours": arguments.max_hours, "cost": arguments.max_cost}
    for name, limit in budget.items():
        if limit is not None and not 0 <= limit < math.inf:
            raise ScalerError(f"--max_{name} {limit:g}: give a limit from 0 on")
    critical = critical_batch.chosen(arguments.critical_rows, arguments.noise_scale, recipe)
    sharding = dataclasses.replace(Sharding.from_ds_config(content, precision), on_cpu=on.on_cpu)
    work = workload(recipe, sharding.width, on.on_cpu)
    found: list[PredictedPoint] = []
    other_stages: list[dict[str, Any]] = []
    left_out: dict[int, str] = {}
    for nodes in arguments.nodes:
        rows = work.rows * nodes if arguments.weak else work.rows
        points = candidates(work, [sharding], rows, nodes, on)
        best = step_time.fastest(points)
        if best is None:
            left_out[nodes] = _why_not(points, work, on, nodes)
            continue
        found.append(best)
        other = step_time.fastest(candidates(work, alternatives(sharding), rows, nodes, on))
        if other is not None and other.step.seconds < 0.99 * best.step.seconds:
            other_stages.append(describe(other, work, on, other, critical))
    if not found:
        raise ScalerError(f"recipe {recipe.name} on {on.name}: {next(iter(left_out.values()))}")
    lines = [describe(point, work, on, found[0], critical) for point in found]
    knee = step_time.knee(found)
    return {
        "recipe": recipe.name,
        "hardware": dataclasses.asdict(on),
        "deepspeed_config": str(arguments.deepspeed_config),
        "precision": precision,
        "weak": arguments.weak,
        "critical_rows": critical,
        "parameters": work.layout.all,
        "trained": work.layout.trained,
        "points": lines,
        "left_out": left_out,
        "other_stages": other_stages,
        "stops_paying": None if knee is None else {"nodes": knee[0].nodes, "part": knee[1]},
        "budget": budget,
        "within": within(lines, budget),
    }


def _why_not(points: Sequence[PredictedPoint], work: Workload, on: Hardware, nodes: int) -> str:
    ranks = nodes * on.devices
    if not points:
        return f"training.rows={work.rows} cannot be shared by {ranks} ranks; use a multiple of {ranks}, or --weak"
    least = min(points, key=lambda p: p.memory.peak)
    remedy = "ZeRO-3, optimizer offload or more nodes" if least.sharding.stage < 3 else "a smaller model or more memory"
    if least.batch.micro_rows == 1 and least.memory.backward > 2 * sum(least.memory.kept.values()):
        remedy = "a smaller data.seq_len"
    return (
        f"even {least.batch.micro_rows} row a micro-batch at ZeRO-{least.sharding.stage} takes "
        f"{least.memory.peak / 1e9:.1f} GB of {on.memory_bytes / 1e9:.0f} GB a rank on {quantity(nodes, 'node')}; "
        f"try {remedy}"
    )


def render(content: dict[str, Any]) -> str:
    """Format the plan for people."""
    on, lines = content["hardware"], content["points"]
    how = "the batch grows with the nodes" if content["weak"] else f"{lines[0]['rows']} rows a step"
    text = [
        f"{content['recipe']}: {content['parameters']:,} parameters, {content['precision']}, {how}, "
        f"{content['deepspeed_config']}, nodes of {on['devices']} on {on['name']}"
    ]
    header = ["nodes", "ranks", "ZeRO", "micro x acc.", "GB/rank", "ms/step", "network", "tokens/s", "efficiency"]
    header += ["goodput", "hours", "node-hours", *([] if on["price"] is None else ["cost"])]
    cells = [
        [
            str(line["nodes"]),
            str(line["ranks"]),
            str(line["stage"]),
            f"{line['micro_rows']} x {line['accumulation']}",
            f"{line['peak_bytes'] / 1e9:.2f}",
            f"{1e3 * line['step_seconds']:.1f}",
            f"{line['seconds']['network'] / line['step_seconds']:.0%}",
            f"{line['tokens_per_second']:,.3g}",
            f"{line['efficiency']:.0%}",
            f"{line['goodput']:.1%}",
            f"{line['hours']:,.3g}",
            f"{line['node_hours']:,.3g}",
            *([] if line["cost"] is None else [f"{line['cost']:,.2f}"]),
        ]
        for line in lines
    ]
    first, *rows = table(cells, header, align=">")
    text += [first, *(row + " *" * line["past_critical"] for row, line in zip(rows, lines, strict=True))]
    text += [f"{quantity(nodes, 'node')}: {why}" for nodes, why in content["left_out"].items()]
    text += _batch_lines(content)
    knee = content["stops_paying"]
    text.append(
        f"efficiency stays at {MIN_EFFICIENCY:.0%} or more up to the end of this table"
        if knee is None
        else f"from {quantity(knee['nodes'], 'node')} on efficiency is below {MIN_EFFICIENCY:.0%}, mainly because of "
        f"{PARTS[knee['part']]}"
    )
    text += [
        f"on {quantity(other['nodes'], 'node')} ZeRO-{other['stage']}{TO_OWNERS * other['to_owners']} with "
        f"{other['micro_rows']} x {other['accumulation']} "
        f"would take {1e3 * other['step_seconds']:.1f} ms a step"
        for other in content["other_stages"]
    ]
    chosen, asked = content["within"], content["budget"] != {"hours": None, "cost": None}
    if asked and chosen is None:
        fastest, cheapest = (min(lines, key=lambda line: line[key]) for key in ("hours", "node_hours"))
        text.append(
            f"nothing is within the budget: the fastest takes {fastest['hours']:.3g} hours on "
            f"{quantity(fastest['nodes'], 'node')}, the cheapest {cheapest['node_hours']:.3g} node-hours "
            f"on {cheapest['nodes']}"
        )
    elif asked:
        cost = "" if chosen["cost"] is None else f", {chosen['cost']:,.2f} in money"
        text.append(
            f"within the budget: {quantity(chosen['nodes'], 'node')}, {chosen['hours']:.3g} hours, "
            f"{chosen['node_hours']:.3g} node-hours{cost}"
        )
    measured = ", ".join(on["measured"]) or "nothing"
    text.append(
        f"measured of the hardware: {measured}; the rest are makers' figures times the fraction that is usually reached"
    )
    return "\n".join(text)


def _batch_lines(content: dict[str, Any]) -> list[str]:
    lines, critical = content["points"], content["critical_rows"]
    if critical is None:
        assumed = "hours assume that twice the batch needs half of the steps; --noise_scale measures how far that holds"
        return [assumed] * (content["weak"] and len(lines) > 1)
    first, last = lines[0], lines[-1]
    past = next((f"passed from {line['nodes']} nodes on (*)" for line in lines if line["past_critical"]), "not reached")
    more = last["rows"] * last["steps"] / (first["rows"] * first["steps"])
    grown = f"; to learn as much, {last['nodes']} nodes need {more:.3g} times the rows of {first['nodes']}"
    return [f"critical batch {critical:,.0f} rows, {past}" + grown * content["weak"]]

"""Predict time, cost and memory of a recipe on any number of nodes."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from scaler.config import deepspeed as ds_config
from scaler.config.batch import batches
from scaler.config.deepspeed import precision_of
from scaler.config.recipe import Recipe, load
from scaler.core.errors import ScalerError
from scaler.planning import critical_batch, failures, hardware, step_time
from scaler.planning.step_time import Point, Settings, Workload
from scaler.planning.workload import settings_of, workload

TO_OWNERS = ", use_multi_rank_bucket_allreduce false,"
RESTART_SECONDS = 300  # to notice a failure, start all ranks again and load: ours, of a job that need not queue
SAVE_BYTES_PER_SECOND = 1e9  # of a node, to a shared disk: ours


def choices(
    work: Workload, ways: Sequence[Settings], nodes: int, on: hardware.Hardware, weak: bool = False
) -> list[Point]:
    """All micro-batches of all ways to train on so many nodes; none where ranks cannot share the batch."""
    ranks = nodes * on.devices
    rows = work.rows * nodes if weak else work.rows
    return [step_time.point(work, way, batch, nodes, on) for way in ways for batch in batches(rows, ranks)]


def other_ways(asked: Settings) -> list[Settings]:
    """The same at every stage, and at stages 1 and 2 with gradients summed for their owners alone."""
    return [
        dataclasses.replace(
            asked,
            stage=stage,
            offload=asked.offload and stage > 0,
            to_owners=to_owners,
            reduce_scatter=asked.reduce_scatter or to_owners,
        )
        for stage in range(4)
        for to_owners in (False, True)
        if stage in (1, 2) or not to_owners
    ]


def goodput(point: Point, work: Workload, on: hardware.Hardware) -> tuple[float, float]:
    """The share of time that trains, with the best interval between checkpoints; and its seconds."""
    bytes_each = ds_config.FP32_BYTES * (work.layout.all + work.states * work.layout.trained)
    save = bytes_each / (SAVE_BYTES_PER_SECOND * point.nodes)
    mtbf = on.mtbf_node_hours * 3600 / point.nodes
    every = failures.daly(save, mtbf)
    return failures.expected_share(every, save, RESTART_SECONDS, mtbf), every


def described(
    point: Point, work: Workload, on: hardware.Hardware, first: Point, critical: float | None
) -> dict[str, Any]:
    """A point as a line of the table and as JSON. `critical` is the critical batch in rows, where it is known."""
    share, every = goodput(point, work, on)
    steps = critical_batch.steps(work.steps, work.rows, point.batch.rows, critical)
    hours = steps * point.step.seconds / share / 3600
    return {
        "nodes": point.nodes,
        "ranks": point.batch.ranks,
        "stage": point.settings.stage,
        "offload": point.settings.offload,
        "to_owners": point.settings.to_owners,
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
        "goodput": share,
        "checkpoint_seconds": every,
        "hours": hours,
        "node_hours": hours * point.nodes,
        "cost": None if on.price is None else hours * point.nodes * on.price,
    }


def within(lines: Sequence[dict[str, Any]], hours: float | None, cost: float | None) -> dict[str, Any] | None:
    """The cheapest that is done in time, or the fastest that is cheap enough; with both the cheapest, if any is."""
    price = "node_hours" if cost is None else "cost"
    able = [
        line for line in lines if (hours is None or line["hours"] <= hours) and (cost is None or line["cost"] <= cost)
    ]
    return min(able, key=lambda line: line[price if hours is not None else "hours"], default=None)


def plan(arguments: argparse.Namespace) -> dict[str, Any]:
    """The whole plan. Raises ScalerError for what cannot be planned, and for a training that fits nowhere."""
    on, recipe = hardware.load(arguments.hardware), load(arguments.recipe, arguments.overrides)
    content = ds_config.read(arguments.deepspeed_config)
    precision = precision_of(content, "bf16" in on.flops)
    if precision not in on.flops:
        known = ", ".join(on.flops)
        raise ScalerError(f"hardware {on.name}: no figure for {precision}, only {known}; set bf16.enabled otherwise")
    if arguments.max_cost is not None and on.price is None:
        raise ScalerError(
            f"--max_cost {arguments.max_cost:g}, but hardware {on.name} has no price; put one in its file"
        )
    critical = critical_batch.chosen(arguments.critical_rows, arguments.noise_scale, recipe)
    asked = dataclasses.replace(settings_of(content, precision), on_cpu=on.on_cpu)
    work = workload(recipe, ds_config.WEIGHT_BYTES[precision], on.on_cpu)
    found: list[Point] = []
    others: list[Point] = []
    left_out: dict[int, str] = {}
    for nodes in arguments.nodes:
        points = choices(work, [asked], nodes, on, arguments.weak)
        best = step_time.best(points)
        if best is None:
            left_out[nodes] = _why_not(points, work, on, nodes, recipe)
            continue
        found.append(best)
        overall = step_time.best([best, *choices(work, other_ways(asked), nodes, on, arguments.weak)])
        assert overall is not None
        others.append(overall)
    if not found:
        raise ScalerError(f"recipe {recipe.name} on {on.name}: {next(iter(left_out.values()))}")
    lines = [described(point, work, on, found[0], critical) for point in found]
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
        "other_stages": [
            described(other, work, on, other, critical)
            for point, other in zip(found, others, strict=True)
            if other.step.seconds < 0.99 * point.step.seconds
        ],
        "stops_paying": None if knee is None else {"nodes": knee[0].nodes, "part": knee[1]},
        "budget": {"hours": arguments.max_hours, "cost": arguments.max_cost},
        "within": within(lines, arguments.max_hours, arguments.max_cost),
    }


def _why_not(points: Sequence[Point], work: Workload, on: hardware.Hardware, nodes: int, recipe: Recipe) -> str:
    ranks = nodes * on.devices
    if not points:
        return f"training.rows={work.rows} cannot be shared by {ranks} ranks; use a multiple of {ranks}, or --weak"
    least = min(points, key=lambda p: p.memory.peak)
    remedy = "ZeRO-3, optimizer offload or more nodes" if least.settings.stage < 3 else "a smaller model or more memory"
    if least.batch.micro_rows == 1 and least.memory.backward > 2 * sum(least.memory.kept.values()):
        remedy = "a smaller data.seq_len"
    return (
        f"even {least.batch.micro_rows} row a micro-batch at ZeRO-{least.settings.stage} takes "
        f"{least.memory.peak / 1e9:.1f} GB of {on.memory_bytes / 1e9:.0f} GB a rank on {nodes} nodes; try {remedy}"
    )


def render(content: dict[str, Any]) -> str:
    """The plan as text for people."""
    on, lines = content["hardware"], content["points"]
    how = "the batch grows with the nodes" if content["weak"] else f"{lines[0]['rows']} rows a step"
    text = [
        f"{content['recipe']}: {content['parameters']:,} parameters, {content['precision']}, {how}, "
        f"{content['deepspeed_config']}, nodes of {on['devices']} on {on['name']}",
        "nodes  ranks ZeRO  micro x acc.  GB/rank   ms/step network  tokens/s efficiency goodput   hours node-hours"
        + ("" if on["price"] is None else "      cost"),
    ]
    for line in lines:
        network = line["seconds"]["network"] / line["step_seconds"]
        text.append(
            f"{line['nodes']:>5} {line['ranks']:>6} {line['stage']:>4} {line['micro_rows']:>6} x "
            f"{line['accumulation']:<4} {line['peak_bytes'] / 1e9:>8.2f} {1e3 * line['step_seconds']:>9.1f}"
            f" {network:>7.0%} {line['tokens_per_second']:>9,.3g} {line['efficiency']:>10.0%} {line['goodput']:>7.1%}"
            f" {line['hours']:>7,.3g} {line['node_hours']:>10,.3g}"
            + ("" if line["cost"] is None else f" {line['cost']:>9,.2f}")
            + " *" * line["past_critical"]
        )
    text += [f"{nodes:>5} nodes: {why}" for nodes, why in content["left_out"].items()]
    text += _of_the_batch(content)
    stops = content["stops_paying"]
    text.append(
        f"more nodes pay up to the end of this table (efficiency from {step_time.PAYS:.0%})"
        if stops is None
        else f"from {stops['nodes']} nodes on it does not pay (efficiency below {step_time.PAYS:.0%}), "
        f"because of {PARTS[stops['part']]}"
    )
    text += [
        f"on {other['nodes']} nodes ZeRO-{other['stage']}{TO_OWNERS * other['to_owners']} with "
        f"{other['micro_rows']} x {other['accumulation']} "
        f"would take {1e3 * other['step_seconds']:.1f} ms a step"
        for other in content["other_stages"]
    ]
    chosen, asked = content["within"], content["budget"] != {"hours": None, "cost": None}
    if asked and chosen is None:
        fastest, cheapest = (min(lines, key=lambda line: line[key]) for key in ("hours", "node_hours"))
        text.append(
            f"nothing is within the budget: the fastest takes {fastest['hours']:.3g} hours on {fastest['nodes']} nodes,"
            f" the cheapest {cheapest['node_hours']:.3g} node-hours on {cheapest['nodes']}"
        )
    elif asked:
        cost = "" if chosen["cost"] is None else f", {chosen['cost']:,.2f} in money"
        text.append(
            f"within the budget: {chosen['nodes']} nodes, {chosen['hours']:.3g} hours, "
            f"{chosen['node_hours']:.3g} node-hours{cost}"
        )
    measured = ", ".join(on["measured"]) or "nothing"
    text.append(f"measured of the hardware: {measured}; the rest is the makers' figures times what is usually reached")
    return "\n".join(text)


def _of_the_batch(content: dict[str, Any]) -> list[str]:
    lines, critical = content["points"], content["critical_rows"]
    if critical is None:
        asks = "hours take it that twice the batch needs half of the steps; --noise_scale says how far that holds"
        return [asks] * (content["weak"] and len(lines) > 1)
    first, last = lines[0], lines[-1]
    past = next((f"passed from {line['nodes']} nodes on (*)" for line in lines if line["past_critical"]), "not reached")
    more = last["rows"] * last["steps"] / (first["rows"] * first["steps"])
    grown = f"; to learn as much, {last['nodes']} nodes need {more:.3g} times the rows of {first['nodes']}"
    return [f"critical batch {critical:,.0f} rows, {past}" + grown * content["weak"]]


PARTS = {
    "compute": "ranks with nothing to compute",
    "micro_batches": "micro-batches that are too small",
    "network": "the network",
    "optimizer": "the update of the weights, which does not get faster",
    "stragglers": "waiting for the slowest rank",
}

"""Simulate failures and stragglers of many nodes, and show what is left of their time."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from scaler.core.errors import ScalerError, dispensable, explain_disk_errors
from scaler.core.files import write_json
from scaler.core.text import table
from scaler.planning import failures
from scaler.planning.failures import SimulatedRun, SimulationResult, Spread

FEW = 100  # failures in all runs, under which the best interval found is that of a few accidents


def measured(every: int, outcome: SimulationResult) -> dict[str, Any]:
    """Return the figures of a simulation, ready for JSON."""
    low, median, high = np.percentile(outcome.wall_seconds, (5, 50, 95))
    return {
        "every": every,
        "shares": outcome.fractions,
        "failures": float(outcome.failures.mean()),
        "failures_in_all": int(outcome.failures.sum()),
        "wall_seconds": {"p5": float(low), "median": float(median), "p95": float(high)},
    }


def of_nodes(nodes: int, arguments: argparse.Namespace, spread: Spread) -> dict[str, Any]:
    """Simulate a run on `nodes` nodes, with the best interval between saves and with the given one.

    Raises: ScalerError where a run would hardly ever end.
    """
    plan = SimulatedRun(
        nodes=nodes,
        steps=arguments.steps,
        step_seconds=arguments.step_seconds,
        save_seconds=arguments.save_seconds,
        write_seconds=arguments.write_seconds,
        restart_seconds=arguments.restart_seconds,
        replacement_seconds=arguments.replacement_seconds,
        mtbf_seconds=arguments.mtbf_node_hours * 3600,
        elastic_rows=arguments.elastic,
    )
    slower = failures.slowest(spread, nodes, arguments.gpus_per_node, arguments.runs, arguments.seed)
    steps = plan.step_seconds * slower
    mean = float(steps.mean())
    return {
        "nodes": nodes,
        "gpus": nodes * arguments.gpus_per_node,
        "young": failures.young(plan.save_seconds, plan.job_mtbf_seconds) / mean,
        "daly": failures.daly(plan.save_seconds, plan.job_mtbf_seconds) / mean,
        "best": measured(*failures.best_interval(plan, steps, arguments.seed)),
        "given": measured(arguments.every, failures.simulate(plan, arguments.every, steps, arguments.seed)),
    }


def render(found: list[dict[str, Any]]) -> str:
    """Format a row for each number of nodes."""
    losses, given = failures.PARTS[1:], f"at {found[0]['given']['every']}"
    header = ["nodes", "GPUs", "best", "Young", "Daly", "goodput", given, *losses, "failures", "hours", "5-95 %"]
    lines = []
    for row in found:
        best, shares = row["best"], row["best"]["shares"]
        low, median, high = (seconds / 3600 for seconds in best["wall_seconds"].values())
        lines.append(
            [
                f"{row['nodes']:,}",
                f"{row['gpus']:,}",
                f"{'~' * (best['failures_in_all'] < FEW)}{best['every']:,}",
                f"{row['young']:,.0f}",
                f"{row['daly']:,.0f}",
                f"{shares['useful']:.2%}",
                f"{row['given']['shares']['useful']:.2%}",
                *(f"{shares[name]:.2%}" for name in losses),
                f"{best['failures']:.1f}",
                f"{median:,.1f}",
                f"{low:,.1f}-{high:,.1f}",
            ]
        )
    text = table(lines, header, align=">")
    text.append("best, Young, Daly: steps between two saves; goodput, losses, failures and hours are those of the best")
    if any("~" in line[2] for line in lines):
        text.append(f"~ fewer than {FEW} failures in all runs together: take Daly's")
    return "\n".join(text)


def draw(found: list[dict[str, Any]], path: Path) -> None:
    """Draw the parts at the best interval, a bar for each number of nodes."""
    from scaler.core import charts  # a second for matplotlib

    figure, axes = charts.one_panel(layout="tight")
    bottom = np.zeros(len(found))
    for part in failures.PARTS:
        shares = np.array([row["best"]["shares"][part] for row in found])
        bars = axes.bar(range(len(found)), shares, bottom=bottom, label=part)
        bottom += shares
        if part == "useful":
            axes.bar_label(bars, fmt="{:.1%}", label_type="center")
    axes.set_xticks(range(len(found)), [f"{row['gpus']:,}" for row in found])
    axes.set(xlabel="GPUs", ylabel="share of all node-seconds", ylim=(0, 1))
    axes.legend(loc="lower left")
    charts.save(figure, path)


def spread_of(text: str) -> Spread:
    """Return the spread that a relative standard deviation or a CSV file's name means.

    Raises: ScalerError for anything else.
    """
    try:
        deviation = float(text)
    except ValueError:
        return failures.read_spread(Path(text))
    if not 0 <= deviation <= 1:
        raise ScalerError(f"--step_deviation {text}: give a relative standard deviation from 0 to 1, or a CSV file")
    return failures.log_normal(deviation)


def run(arguments: argparse.Namespace) -> None:
    """Simulate all numbers of nodes, print the figures, and write them and the picture where a folder is given."""
    spread = spread_of(arguments.step_deviation)
    found = [of_nodes(some, arguments, spread) for some in arguments.nodes]
    print(json.dumps(found, indent=2) if arguments.json else render(found))
    if arguments.out:
        with explain_disk_errors(arguments.out):
            arguments.out.mkdir(parents=True, exist_ok=True)
            write_json(arguments.out / "goodput.json", found)
        with dispensable(f"{arguments.out}: no picture"):
            draw(found, arguments.out / "goodput.png")

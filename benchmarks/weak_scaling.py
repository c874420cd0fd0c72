"""Weak scaling of a training step from one rank to as many as there are cores: `python benchmarks/weak_scaling.py`.

    python benchmarks/weak_scaling.py --recipe aws_roberta --rows 16          # after `make data RECIPE=aws_roberta`

Each rank has one thread and as many rows in one micro-batch, at ZeRO-2, alone and beside the others; they take turns.
Efficiency is the speed of all ranks by that of as many as the one alone.
"""

from __future__ import annotations

import argparse
import os
import statistics

import measurements
import training_step


def main() -> None:
    """Take turns, print a table, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="aws_roberta")
    parser.add_argument("--rows", type=int, default=16, help="of a rank")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--steps", type=int, default=3, help="that are measured in a turn")
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    most = os.cpu_count() or 1
    rates: dict[int, list[float]] = {1: [], most: []}
    for _ in range(arguments.turns):
        for ranks, found in rates.items():
            overrides = [f"training.rows={arguments.rows * ranks}", f"training.max_micro_rows={arguments.rows}"]
            asked = argparse.Namespace(**{**vars(arguments), "ranks": ranks, "threads": 1})
            asked.overrides = [*overrides, *arguments.overrides]
            found.extend(training_step.measured("ours, no dropout", asked)["rates"])
            print(f"{ranks} ranks: {statistics.median(found[-arguments.steps :]):,.0f} tokens/s", flush=True)
    alone, together = (statistics.median(found) for found in rates.values())
    measure = f"weak scaling, {arguments.recipe}, {arguments.rows} rows a rank, {most} ranks / as many alone"
    line = measurements.Measurement(measure, together, most * alone, "tokens/s", len(rates[1]))
    spans = "; ".join(f"{ranks} ranks {min(found):,.0f} - {max(found):,.0f}" for ranks, found in rates.items())
    print(f"{measurements.machine()}\n{measure}: {line.ratio:.1%} ({spans} tokens/s)")
    print(measurements.write("weak_scaling", [line]))


if __name__ == "__main__":
    main()

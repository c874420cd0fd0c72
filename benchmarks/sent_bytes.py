"""Bytes that a training step sends, counted by the kernel: `python benchmarks/sent_bytes.py`, after `make data`.

Two ranks of this machine train a few steps at ZeRO-2 and ZeRO-1, with and without accumulation, once as our engine does
and once with DeepSpeed's and gloo's own collectives. All that passes the loopback device between two barriers counts
(`/proc/net/dev`: with TCP's headers and whatever else runs). Given in P, the bytes of all weights that train: sent by a
rank, by (n - 1) / n, so that an all-reduce is 2 P and its halves are 1 P each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import measurements

from scaler.core import switches
from scaler.distributed import collectives
from scaler.distributed.world import detect_world
from scaler.engine import engine, process_group
from scaler.model.masked_lm import MaskedLM
from scaler.training import job, loop
from scaler.training.progress import Progress

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
RANKS, MICRO_ROWS = 2, 4
CASES = ((2, 1), (2, 4), (1, 4))  # stage, accumulation


def loopback() -> int:
    """Bytes that have passed it."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    return int(next(line for line in lines if line.strip().startswith("lo:")).split(":")[1].split()[0])


def one(own: bool, stage: int, recipe: str, overrides: list[str], steps: int, out: Path) -> None:
    """On one rank: train, and count between the steps; the first rank writes."""
    if not own:
        os.environ[switches.VARIABLE] = ",".join(set(switches.NAMES) - {"direct_collectives"})
    world = detect_world()
    process_group.join(world)
    config = CONFIGS / f"zero{stage}.json"
    asked = {"recipe": recipe, "overrides": overrides, "deepspeed_config": config}
    this = job.resolve(
        argparse.Namespace(**asked, run_dir=None, ranks=None, allow_changes=False, allow_untested_ds_keys=False), world
    )
    network = job.starting_point(this, this.data.manifest.unigram_counts())
    running = engine.Engine(MaskedLM(network), this.recipe.optimizer, this.ds_config)
    running.train(True)
    weights = sum(weight.numel() * weight.element_size() for weight in running.module.parameters())
    progress, counts, losses = Progress(), [], []
    for _ in range(steps + 1):
        summed, _ = loop.train_batch(running, this, progress, world)
        losses.append(sum(collectives.all_gather(float(summed), world)) / this.batch.accumulation / world.size)
        progress.step += 1
        progress.consumed_rows += this.batch.rows
        counts.append(loopback())
        collectives.all_gather(None, world)  # nobody goes on before all have counted
    sent = (counts[-1] - counts[0]) / steps / world.size
    if world.is_first:
        out.write_text(json.dumps({"sent": sent * world.size / (world.size - 1), "weights": weights, "losses": losses}))
    process_group.leave()


def counted(own: bool, stage: int, accumulation: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case, on ranks of its own."""
    rows = [f"training.rows={MICRO_ROWS * RANKS * accumulation}", f"training.max_micro_rows={MICRO_ROWS}"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        words = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}", "--standalone", __file__]
        words += ["--one", str(int(own)), str(stage), str(out), "--recipe", arguments.recipe]
        words += ["--steps", str(arguments.steps), *rows, *arguments.overrides]
        environ = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(words, env=environ, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr[-3000:])
        found: dict[str, Any] = json.loads(out.read_text())
        return found


def main() -> None:
    """Count, print, keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    if arguments.one:
        own, stage, out = arguments.one
        one(own == "1", int(stage), arguments.recipe, arguments.overrides, arguments.steps, Path(out))
        return
    lines = []
    for stage, accumulation in CASES:
        ours, theirs = (counted(own, stage, accumulation, arguments) for own in (True, False))
        measure = f"bytes a step in P, {arguments.recipe}, ZeRO-{stage}, {accumulation} micro-batches, {RANKS} ranks"
        weights = ours["weights"]
        lines.append(
            measurements.Measurement(measure, ours["sent"] / weights, theirs["sent"] / weights, "P", arguments.steps)
        )
        apart = max(abs(a - b) for a, b in zip(ours["losses"], theirs["losses"], strict=True))
        print(f"{measure}: {lines[-1].ours:.3f}, as it is {lines[-1].peer:.3f}; losses within {apart:.1e}", flush=True)
    print(measurements.write("sent_bytes", lines))


if __name__ == "__main__":
    main()

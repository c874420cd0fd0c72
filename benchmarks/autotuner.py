"""DeepSpeed's autotuner beside `scaler.plan`: the ZeRO stage and micro-batch that each finds, and how long it takes.

    pip install 'deepspeed[autotuning]'                   # and pdsh, with which it cleans up
    python benchmarks/autotuner.py runs/autotuner --recipe quickstart training.rows=32

Both are given the recipe's batch, and choose among stages 0 to 3. The autotuner (its fast mode, which is its default)
starts this program for each experiment, with a configuration of its own; a step takes its micro-batches through the
project's engine. The plan is made from a calibration. Then both choices are run, in turn. The autotuner needs a batch
that the configuration sets, so it cannot start scaler/train.py, where the recipe does.
"""

from __future__ import annotations

import argparse
import base64
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from scaler.config import deepspeed as ds_config
from scaler.config.batch import SolvedBatch
from scaler.config.recipe import Recipe, load
from scaler.distributed import devices
from scaler.planning import hardware, plan, step_time, workload
from scaler.planning.memory import Sharding

FIRST_STEP, LAST_STEP = 3, 8  # of an experiment, that are timed
WALL = "wall.json"
NATIVE_BF16 = devices.bf16_is_native(torch.device("cpu"))
ROOT = Path(__file__).resolve().parent.parent


def experiment(arguments: argparse.Namespace) -> None:
    """Train as the configuration says until DeepSpeed ends the process; note a step's seconds beside its figures."""
    from scaler.distributed.world import detect_world
    from scaler.engine import engine, process_group
    from scaler.model import build
    from scaler.model.masked_lm import MaskedLM
    from scaler.planning import calibrate

    content = json.loads(base64.urlsafe_b64decode(arguments.deepspeed_config))
    recipe, world = load(arguments.recipe), detect_world()
    process_group.join(world)
    config = workload.configuration(recipe)
    network = MaskedLM(build.build(config, recipe.seed).train())
    running = engine.Engine(network, recipe.optimizer, content)
    batch = calibrate.random_batch(content["train_micro_batch_size_per_gpu"], config, recipe)
    times: list[float] = []
    try:
        while True:
            start = time.perf_counter()
            for _ in range(running.deepspeed.gradient_accumulation_steps()):
                loss, _ = running(batch)
                running.backward(loss)
                running.step(1e-6)
            times.append(time.perf_counter() - start)
    except SystemExit:
        path = content["autotuning"].get("metric_path")
        if world.is_first and path:
            Path(path).with_name(WALL).write_text(json.dumps(times[FIRST_STEP:]))
        raise
    finally:
        process_group.leave()


def launch(ranks: int, *words: object, log: Path) -> float:
    """Seconds that a command of the deepspeed launcher takes."""
    environ = {**os.environ, "LOCAL_SIZE": str(ranks), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ.pop("CUDA_VISIBLE_DEVICES", None)  # the launcher takes it for a choice of devices
    start = time.perf_counter()
    with log.open("a") as file:
        command = [str(Path(sys.executable).with_name("deepspeed")), *map(str, words)]
        subprocess.run(command, env=environ, stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, check=True)
    return time.perf_counter() - start


def configuration(recipe: Recipe, ranks: int, folder: Path) -> dict[str, Any]:
    """ds_configs/zero2.json, resolved, as the autotuner wants it: batch and stage left to it."""
    path = ROOT / "ds_configs" / "zero2.json"
    batch = SolvedBatch(recipe.training.rows, 1, recipe.training.rows // ranks, ranks)
    content = ds_config.resolve(ds_config.read(path), path, recipe, batch, NATIVE_BF16)
    for key in ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"):
        content.pop(key)
    content["zero_optimization"] = {"stage": "all"}  # of which it takes the stage alone, with defaults for the rest
    content["autotuning"] = {
        "enabled": True,
        "max_train_batch_size": recipe.training.rows,
        "start_profile_step": FIRST_STEP,
        "end_profile_step": LAST_STEP,
        "results_dir": str(folder / "results"),
        "exps_dir": str(folder / "experiments"),
    }
    return content


def experiments(folder: Path) -> list[dict[str, Any]]:
    """What the autotuner has tried and found, in order."""
    found = []
    for path in sorted((folder / "results").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime):
        config = json.loads(path.with_name("ds_config.json").read_text())
        wall = json.loads(path.with_name(WALL).read_text())
        found.append({"config": config, "told": json.loads(path.read_text())["throughput"], "wall": wall})
    return found


def batch_of(config: dict[str, Any], ranks: int) -> tuple[int, SolvedBatch]:
    """Stage and batch of an experiment."""
    micro, accumulation = config["train_micro_batch_size_per_gpu"], config["gradient_accumulation_steps"]
    stage = config["zero_optimization"]["stage"]
    return stage, SolvedBatch(micro * accumulation * ranks, micro, accumulation, ranks)


def timed(folder: Path, name: str, ranks: int, base: dict[str, Any], stage: int, batch: SolvedBatch) -> list[float]:
    """Seconds of the steps of one more run of this choice; `name` is that of its folder."""
    place = folder / name
    place.mkdir(parents=True)
    content = {
        **base,
        "zero_optimization": {"stage": stage},
        "train_batch_size": batch.rows,
        "train_micro_batch_size_per_gpu": batch.micro_rows,
        "gradient_accumulation_steps": batch.accumulation,
        "autotuning": {**base["autotuning"], "metric_path": str(place / "metrics.json")},
    }
    words = base64.urlsafe_b64encode(json.dumps(content).encode()).decode()
    program = (__file__, folder, "--recipe", folder / "recipe.yaml", "--deepspeed_config", words)
    launch(ranks, "--num_gpus", ranks, *program, log=folder / "choices.log")
    return list(json.loads((place / WALL).read_text()))


def main() -> None:
    """Calibrate and plan, let the autotuner find its own, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3, help="of each choice")
    parser.add_argument("--deepspeed_config", help=argparse.SUPPRESS)  # of an experiment
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    if arguments.deepspeed_config:
        experiment(arguments)
        return
    folder, ranks = arguments.folder.resolve(), arguments.ranks
    folder.mkdir(parents=True)
    recipe = load(arguments.recipe, arguments.overrides)
    (folder / "recipe.yaml").write_text(recipe.to_yaml())
    base = configuration(recipe, ranks, folder)
    (folder / "autotuning.json").write_text(json.dumps(base))

    start = time.perf_counter()
    asked = (folder / "node.yaml", "--recipe", folder / "recipe.yaml")
    launch(ranks, "--num_gpus", ranks, "--module", "scaler.calibrate", *asked, log=folder / "calibration.log")
    on = hardware.load(str(folder / "node.yaml"))
    precision = "bf16" if NATIVE_BF16 else "fp32"
    width = ds_config.WEIGHT_BYTES[precision]
    work = workload.workload(recipe, width, on_cpu=True)
    sharding = dataclasses.replace(Sharding.from_ds_config({}, precision), on_cpu=True)  # as the autotuner has it
    mine = step_time.fastest(plan.candidates(work, plan.alternatives(sharding), work.rows, 1, on))
    assert mine is not None
    print(f"plan: {time.perf_counter() - start:.0f} s, of which all but a few are the calibration", flush=True)

    words = (__file__, folder, "--recipe", folder / "recipe.yaml", "--deepspeed_config", folder / "autotuning.json")
    took = launch(ranks, "--autotuning", "tune", "--num_gpus", ranks, *words, log=folder / "autotuner.log")
    found = experiments(folder)
    print(f"autotuner: {took:.0f} s for {len(found)} experiments that ended well", flush=True)
    print("\nZeRO  micro x acc.  rows/s told  measured  predicted")
    for tried in found:
        stage, batch = batch_of(tried["config"], ranks)
        of_plan = step_time.time_of_step(work, dataclasses.replace(sharding, stage=stage), batch, 1, on)
        wall = batch.rows / statistics.median(tried["wall"])
        print(
            f"{stage:>4} {batch.micro_rows:>6} x {batch.accumulation:<4} {tried['told']:>12.2f} {wall:>9.2f} "
            f"{batch.rows / of_plan.seconds:>10.2f}",
            flush=True,
        )

    theirs = batch_of(json.loads((folder / "results" / "ds_config_optimal.json").read_text()), ranks)
    choices = {"autotuner": theirs, "plan": (mine.sharding.stage, mine.batch)}
    seconds: dict[str, list[float]] = {name: [] for name in choices}
    for number in range(arguments.runs):
        for name, (stage, batch) in choices.items():
            seconds[name] += timed(folder, f"{name}-{number}", ranks, base, stage, batch)
    print("\nchoice     ZeRO  micro x acc.  rows  rows/s")
    for name, (stage, batch) in choices.items():
        speed = batch.rows / statistics.median(seconds[name])
        print(f"{name:<10} {stage:>4} {batch.micro_rows:>6} x {batch.accumulation:<4} {batch.rows:>5} {speed:>7.2f}")


if __name__ == "__main__":
    main()

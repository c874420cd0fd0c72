"""Predicted against measured step time on virtual nodes with networks of known bandwidth: needs root and iproute2.

    python benchmarks/predicted_steps.py runs/predicted --recipe quickstart training.rows=32 training.max_micro_rows=8

Every node is a network namespace that is held to a share of a core by its cgroup and to a bandwidth by tc. One node is
calibrated, alone; the bandwidth is given. Then points of a study are predicted, and measured on 1, 2 and 4 nodes of one
rank. The folder keeps a study for each bandwidth, and the calibration: `python -m scaler.report` shows them, too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import torch
import yaml

from scaler.config import batch
from scaler.config import deepspeed as ds_config
from scaler.config.batch import SolvedBatch
from scaler.config.recipe import load
from scaler.distributed import devices
from scaler.planning import hardware, step_time, workload
from scaler.planning.memory import Sharding
from scaler.planning.step_time import PredictedPoint
from scaler.studies import folder as study_folder

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "support"))
from slurm_cluster import Cluster

CONFIGS = Path(__file__).resolve().parent.parent / "ds_configs"
CGROUPS = Path("/sys/fs/cgroup/cpu")
TICK = 4  # milliseconds of a kernel with 250 Hz
PERIOD = 5_000  # microseconds, over which a node has its share of a core
PAYLOAD = 1448 / 1514 - 0.5 * 66 / 1514  # of the bytes that tc counts: TCP's, less an answer to every second segment
BUCKET = 500_000_000
NATIVE_BF16 = devices.bf16_is_native(torch.device("cpu"))


class Nodes:
    """Virtual nodes, each with its share of a core."""

    def __init__(self, cluster: Cluster, share: float) -> None:
        self.cluster = cluster
        for node in cluster.nodes:
            group = CGROUPS / f"scaler-{node}"
            group.mkdir(exist_ok=True)
            (group / "cpu.cfs_period_us").write_text(str(PERIOD))
            (group / "cpu.cfs_quota_us").write_text(str(round(PERIOD * share)))

    def hold(self, megabits: float | None) -> None:
        """Let every node send no more than this."""
        for node in self.cluster.nodes:
            self.cluster.inside(node, "tc", "qdisc", "del", "dev", "eth0", "root")
            if megabits is not None:
                burst = max(256, TICK * megabits)  # kbit; with less the bucket is full before the next tick fills it
                rule = ("root", "tbf", "rate", f"{megabits:g}mbit", "burst", f"{burst:g}kbit", "latency", "50ms")
                self.cluster.change(node, "tc", "qdisc", "add", "dev", "eth0", *rule)

    def start(self, count: int, *command: object) -> None:
        """Run a command as one rank on each of the first nodes."""
        nodes, running = self.cluster.nodes[:count], []
        for rank, node in enumerate(nodes):
            facts = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "OMP_NUM_THREADS": 1}
            facts |= {"MASTER_ADDR": nodes[0], "MASTER_PORT": 29511, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": 1}
            # of one CPU: a quota is given out to CPUs, and what one took for a thread that moved on is lost
            enter = f"taskset --cpu-list {rank % (os.cpu_count() or 1)} {' '.join(self.cluster.entered(node))}"
            shell = f'echo $$ > {CGROUPS}/scaler-{node}/cgroup.procs; exec {enter} env --chdir={os.getcwd()} "$@"'
            environ = {**os.environ, **{name: str(value) for name, value in facts.items()}}
            words = ["bash", "-c", shell, "bash", sys.executable, *map(str, command)]
            running.append(
                subprocess.Popen(words, env=environ, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        ends = [(process.communicate(), process.returncode) for process in running]
        for (_, said), status in ends:
            if status:
                raise SystemExit(f"{' '.join(map(str, command))}: status {status}: {said[-2000:]}")


def points(rows: int, most: int, stages: list[int], ranks: list[int]) -> list[study_folder.Point]:
    """Strong scaling of one batch."""
    found = []
    for stage in stages:
        for size in ranks:
            solved = batch.solve_batch(rows, size, most)
            found.append(study_folder.Point("strong", size, 1, stage, False, BUCKET, rows, solved.micro_rows))
    return found


def predicted(
    work: step_time.Workload, content: dict, point: study_folder.Point, on: hardware.Hardware
) -> PredictedPoint:
    """What the plan says of a point."""
    precision = ds_config.precision_of(content, NATIVE_BF16)
    asked = dataclasses.replace(Sharding.from_ds_config(content, precision), on_cpu=True, bucket=point.bucket)
    batch = SolvedBatch(point.rows, point.micro_rows, point.accumulation, point.ranks)
    return step_time.predict(work, asked, batch, point.nodes, on)


def main() -> None:
    """Calibrate, predict, measure, compare."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--megabits", default="20,50,200,1000,free")
    parser.add_argument("--ranks", default="1,2,4")
    parser.add_argument("--stages", default="2")
    parser.add_argument("--share", type=float, default=0.5, help="of a core, for each node")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    recipe = load(arguments.recipe, arguments.overrides)
    arguments.folder.mkdir(parents=True, exist_ok=True)
    stages, ranks = ([int(part) for part in text.split(",")] for text in (arguments.stages, arguments.ranks))
    wanted = points(recipe.training.rows, recipe.training.max_micro_rows, stages, ranks)
    work, errors = workload.workload(recipe, 2 if NATIVE_BF16 else 4, on_cpu=True), []
    print("Mbit/s  ranks  ZeRO  predicted s  measured s   error", flush=True)
    with Cluster(Path("/tmp/scaler-slurm-predicted")) as cluster:
        nodes = Nodes(cluster, arguments.share)
        (arguments.folder / "recipe.yaml").write_text(recipe.to_yaml())
        calibrations = {}
        for stage in stages:
            file = arguments.folder / f"zero{stage}.yaml"
            if not file.is_file():
                asked = (
                    "--recipe",
                    arguments.folder / "recipe.yaml",
                    "--deepspeed_config",
                    CONFIGS / f"zero{stage}.json",
                )
                nodes.start(1, "-m", "scaler.calibrate", file, *asked)
            calibrations[stage] = hardware.load(str(file))
        for text in arguments.megabits.split(","):
            megabits = None if text == "free" else float(text)
            nodes.hold(megabits)
            study = arguments.folder / text
            study.mkdir(exist_ok=True)
            (study / study_folder.RECIPE).write_text(recipe.to_yaml())
            for point in wanted:
                if point.ranks == 1 and text != arguments.megabits.split(",")[0]:
                    continue
                content = json.loads((CONFIGS / f"zero{point.stage}.json").read_text())
                content.setdefault("zero_optimization", {})["reduce_bucket_size"] = point.bucket
                on = calibrations[point.stage]
                if megabits is not None:
                    on = dataclasses.replace(on, between=megabits * 1e6 / 8 * PAYLOAD)
                told = predicted(work, content, point, on).step
                study_folder.write_point(study, point, content)
                if study_folder.read_measured(study_folder.folder_of(study, point)) is None:
                    nodes.start(
                        point.nodes, "-m", "scaler.studies.point", study, point.name, "--steps", arguments.steps
                    )
                found = study_folder.read_measured(study_folder.folder_of(study, point))
                assert found is not None
                seconds = statistics.median(map(max, zip(*found.step_seconds, strict=True)))
                error = told.seconds / seconds - 1
                errors.append(abs(error))
                parts = ", ".join(f"{name} {value:.3f}" for name, value in vars(told).items())
                wire = max(found.communication_seconds)
                print(
                    f"{text:>6} {point.ranks:>6} {point.stage:>5} {told.seconds:>12.3f} {seconds:>11.3f} {error:>+7.1%}"
                    f"   ({parts}; measured in collectives {wire:.3f})",
                    flush=True,
                )
            (study / "hardware.yaml").write_text(
                yaml.safe_dump({**yaml.safe_load(file.read_text()), "between": on.between})
            )
    print(f"worst {max(errors):.1%}, median {statistics.median(errors):.1%}")


if __name__ == "__main__":
    main()

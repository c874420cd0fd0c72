"""Collect the reports of all nodes before a run, and judge them."""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch

from scaler.cluster import parity
from scaler.cluster.verdict import PHASES, TOGETHER, Report, judge, render
from scaler.config import deepspeed as ds_config
from scaler.core import limits, provenance, slurm
from scaler.core.errors import ScalerError, explain_disk_errors, one_line
from scaler.core.files import write_json
from scaler.core.text import quantity
from scaler.distributed import collectives, devices, links
from scaler.distributed.world import World, launch_id
from scaler.engine import process_group
from scaler.planning import dry_run, workload
from scaler.training import job, run_folder
from scaler.training.job import Job

RESULT, BAD_NODES = "result.json", "bad_nodes"  # the second for shell scripts: names with commas between
OTHERS = "other ranks have come no further"
POLL_SECONDS = (0.2, 2.0)  # the first pause, and the longest
GRACE_SECONDS = 5.0  # that the first rank waits for others' reports beyond the limit that all have


class Rank:
    """The phases of one rank, each of which ends within a set time. `folder` is that of all reports."""

    def __init__(self, arguments: argparse.Namespace, world: World, folder: Path) -> None:
        self.arguments, self.world, self.folder = arguments, world, folder
        self.report = Report(world.rank, slurm.node_name())
        self.job: Job  # from the first phase on

    def write(self) -> None:
        """Write the report where the first rank reads it."""
        write_json(self.folder / f"rank_{self.world.rank:05d}.json", asdict(self.report))

    def go(self, give_up: Callable[[], None]) -> None:
        """Go through all phases, or to the first problem. Where one takes too long, `give_up` ends the process."""
        for phase in PHASES[:-1]:
            self.report.phase = phase
            self.write()
            timer = threading.Timer(self.arguments.seconds, self._late, [phase, give_up])
            timer.daemon = True
            timer.start()
            try:
                self.report.facts |= getattr(self, phase)()
            except Exception as error:  # whatever it is, the first rank waits to hear of it
                self.report.problem = _reason(error)
                self.report.waited = phase in TOGETHER and _is_of_others(error)
                self.write()
                return
            finally:
                timer.cancel()
        self.report.phase = PHASES[-1]
        self.write()

    def _late(self, phase: str, give_up: Callable[[], None]) -> None:
        self.report.problem, self.report.waited = f"no end within {self.arguments.seconds:g} s", phase in TOGETHER
        try:
            self.write()
        finally:
            give_up()

    def settings(self) -> dict[str, Any]:
        """Check that recipe, configuration and data exist and agree, and that the run folder's disk has room."""
        self.job = job.resolve(self.arguments, self.world)
        manifest, empty = self.job.data.manifest, workload.empty_model(self.job.recipe, self.job.config)
        _write_to(self.folder)
        states = len(ds_config.optimizer_state(self.job.recipe.optimizer))
        checkpoint = workload.layout(empty, self.job.recipe).checkpoint_bytes(states)
        there = sum(path.stat().st_size for path in (self.arguments.run_dir / "checkpoints").glob("step_*/*"))
        needed = (self.job.recipe.checkpoint.keep_last + 2) * checkpoint - there
        free = psutil.disk_usage(str(self.folder)).free
        if free < needed:
            raise ScalerError(
                f"{self.folder}: {free / 1e9:.1f} GB are free, and the run's checkpoints take {needed / 1e9:.1f}; free "
                "some, or lower checkpoint.keep_last"
            )
        return {
            "memory_needed": sum(dry_run.memory_per_rank(self.job, empty).values()),
            **{"rows": manifest.xxh3("train"), "tokenizer": manifest.tokenizer_xxh3, "packages": provenance.versions()},
            **{"python": platform.python_version(), "commit": provenance.commit()},
        }

    def machine(self) -> dict[str, Any]:
        """Check device, memory and the node's own disk."""
        device = devices.device(self.world)
        wanted = self.arguments.gpu
        on_gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if on_gpu else f"CPU, {limits.cores()} cores"
        if wanted and wanted.lower() not in name.lower():
            raise ScalerError(f"the device is {name}, and not --gpu {wanted}")
        if on_gpu:
            free, total = torch.cuda.mem_get_info(device)
            if free < 0.9 * total:
                raise ScalerError(f"{name}: only {free / 2**30:.0f} of {total / 2**30:.0f} GiB are free; who uses it?")
        else:
            free = limits.available_memory() // self.world.local_size
        need = self.report.facts["memory_needed"]
        if need > free:
            raise ScalerError(f"{free / 2**30:.1f} GiB of memory are free, and a rank needs {need / 2**30:.1f}")
        _write_to(Path(tempfile.gettempdir()))
        return {
            **{"device": name, "gpus": torch.cuda.device_count(), "memory_bytes": free},
            "matmul": devices.measure_matmul_flops(device, torch.bfloat16 if on_gpu else torch.float32),
        }

    def meeting(self) -> dict[str, Any]:
        """Wait until all ranks are here, because each collective would wait for the missing ones."""
        go, stop = self.folder / "go", self.folder / "stop"
        while self.world.is_first and not go.exists() and not stop.exists():
            ready = PHASES.index("meeting")
            reports = read(self.folder)
            if any(report.problem for report in reports):
                stop.touch()
            elif sum(PHASES.index(report.phase) >= ready for report in reports) == self.world.size:
                go.touch()
            else:
                time.sleep(POLL_SECONDS[0])
        pause, most = POLL_SECONDS
        while not go.exists():
            if stop.exists():
                raise ScalerError(OTHERS)
            time.sleep(pause)
            pause = min(2 * pause, most)
            self.write()  # which also makes NFS look at the folder anew
        return {}

    def network(self) -> dict[str, Any]:
        """Join all ranks, and measure clocks and links."""
        # a rank that ends must not take the first one with it before that has spoken
        os.environ.setdefault("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")
        process_group.join(self.world, self.arguments.seconds)
        hosts = collectives.all_gather(self.report.host, self.world)
        found = links.measure(hosts, self.world.rank, devices.device(self.world))
        collectives.all_gather(None, self.world)  # from here all go on together
        now = time.time()
        return {
            # seconds by which this clock is ahead of the first rank's, accurate to a message's milliseconds
            "clock": now - float(collectives.all_gather(now, self.world)[0]),
            **found,
        }

    def parity(self) -> dict[str, Any]:
        """Check that the same rows give the same loss everywhere, and that the engine's step equals plain PyTorch's."""
        return parity.check(self.job, self.world)


def _write_to(folder: Path) -> None:
    with explain_disk_errors(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.write(bytes(1 << 20))
        file.flush()
        os.fsync(file.fileno())


def _reason(error: Exception) -> str:
    """Return an error in one line; of NCCL's message only the part after "Last error"."""
    text = one_line(error) or type(error).__name__
    return text[max(0, text.find("Last error:")) :][:300]


def _is_of_others(error: Exception) -> bool:
    """Return whether the error means that other ranks were missing or have gone."""
    text = str(error).lower()
    if "failed to connect" in text or "trying to connect" in text:  # to the first rank, which others have reached
        return False
    words = (OTHERS, "timed out", "timeout", "closed by", "connection reset", "broken pipe", "remote process exited")
    return any(word in text for word in words)


def _is_own(path: Path) -> bool:
    return path.name in ("go", "stop", RESULT, BAD_NODES) or re.fullmatch(r"rank_\d+\.json", path.name) is not None


def read(folder: Path) -> list[Report]:
    """Read the reports that exist."""
    reports = []
    for path in sorted(folder.glob("rank_?????.json")):
        try:
            reports.append(Report(**json.loads(path.read_text(encoding="utf-8"))))
        except (OSError, ValueError):  # just being written
            continue
    return reports


def conclude(rank: Rank, wait_seconds: float) -> int:
    """Wait for all reports, print the table, write the result and return the command's status, on the first rank.

    Others wait for that result, because a rank that exits may end those that are connected to it. They return 0, so
    that no launcher ends the first rank for another's status before that.
    """
    arguments, world = rank.arguments, rank.world
    if not world.is_first:
        end = time.monotonic() + arguments.seconds + 2 * GRACE_SECONDS
        while not (rank.folder / RESULT).exists() and time.monotonic() < end:
            time.sleep(POLL_SECONDS[0])
        return 0
    end = time.monotonic() + wait_seconds
    reports = read(rank.folder)
    while sum(report.over for report in reports) < world.size and time.monotonic() < end:
        time.sleep(POLL_SECONDS[0])
        reports = read(rank.folder)
    hosts = (slurm.step_hosts() if world.launcher == "srun" else []) or [""] * world.size
    ended = any(report.over for report in reports if report.rank)  # others have, so those that have not are silent
    for report in reports:
        hosts[report.rank] = report.host
        if not report.over:
            report.problem, report.waited = f"no word for {arguments.seconds:g} s", not ended
    verdict = judge(reports, hosts, arguments.slowest_share, arguments.seconds)
    result: dict[str, Any] = {"bad_nodes": verdict.bad, "setting": verdict.setting, "unclear": verdict.unclear}
    result["ranks"] = [asdict(report) for report in reports]
    print(json.dumps(result, indent=2) if arguments.json else render(reports, verdict), flush=True)
    problem = verdict.setting or verdict.unclear
    if verdict.bad and not problem:
        problem = f"bad nodes: {', '.join(verdict.bad)}; start again without them"
    if problem:
        print(f"error: preflight: {problem}", file=sys.stderr, flush=True)
    elif not arguments.json:
        where = f"{quantity(world.size, 'rank')} on {quantity(len(set(hosts)), 'node')}"
        print(f"preflight: {where}: all is well", flush=True)
    known = [host for host in verdict.bad if host in hosts] if not verdict.setting else []
    (rank.folder / BAD_NODES).write_text("".join(f"{','.join(known)}\n" for _ in known[:1]), encoding="utf-8")
    write_json(rank.folder / RESULT, result)  # others wait for it
    return verdict.status


def run(arguments: argparse.Namespace, world: World) -> int:
    """Check this rank, and conclude. Return the status of the command."""
    folder = arguments.run_dir / run_folder.PREFLIGHT / launch_id()
    with explain_disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if world.is_first and not slurm.job_facts():  # whose steps have folders of their own
            for path in filter(_is_own, folder.iterdir()):  # of a start by hand before
                if time.time() - path.stat().st_mtime > GRACE_SECONDS:
                    path.unlink(missing_ok=True)
    rank = Rank(arguments, world, folder)
    rank.go(lambda: os._exit(conclude(rank, GRACE_SECONDS)))
    return conclude(rank, arguments.seconds + GRACE_SECONDS)

"""Run a trial of a sweep: a training in its own process, whose held-out losses decide whether it goes on.

FOLDER/trial-0007/ is the run. FOLDER/trial-0007.json is the record of the trial, written by the process that holds its
lock.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from scaler.core import files, folders
from scaler.core.errors import explain_disk_errors
from scaler.core.files import read_json, write_json
from scaler.distributed import local_ranks
from scaler.model import folder as model_folder
from scaler.training import run_folder
from scaler.training.stop import STOP_FILE

HALVING = 3  # Li et al. 2018 (Hyperband), who find 3 and 4 to do equally well


def run_dir(folder: Path, number: int) -> Path:
    """Return the folder of a trial's run."""
    return folder / f"trial-{number:04d}"


def records(folder: Path) -> list[dict[str, Any]]:
    """Return the record of each trial that has begun, by number."""
    return [read_json(path) for path in sorted(folder.glob("trial-*.json"))]


def record_file(folder: Path, number: int) -> Path:
    """Return the file with the record of a trial."""
    return run_dir(folder, number).with_suffix(".json")


def is_over(folder: Path, number: int) -> bool:
    """Return whether this trial has ended for good."""
    path = record_file(folder, number)
    return path.is_file() and read_json(path)["state"] != "running"


def goes_on(evaluation: int, loss: float, others: Sequence[float]) -> bool:
    """Return whether a trial is good enough to go on, by asynchronous successive halving (Li et al. 2020).

    After evaluations 1, 3, 9 ... only the best third goes on; of fewer than six trials, only the best.

    Args:
        evaluation: its number, from 1.
        others: losses of all other trials at this evaluation.
    """
    while evaluation % HALVING == 0:
        evaluation //= HALVING
    better = sum(other < loss for other in others)
    return evaluation > 1 or better < max(1, (len(others) + 1) // HALVING)


def last_loss(record: Mapping[str, Any]) -> float:
    """Return the held-out loss of a trial's last evaluation that counts, in nats; infinite before the first."""
    losses = record["losses"]
    return float(losses[max(losses, key=int)]) if losses else math.inf


class Trial:
    """A trial that this process runs.

    Args:
        lock: of the trial; this object closes it.
        record: `trial`, `state`, `parameters`, `losses` by number of the evaluation, `seconds`; `rows`, `of_steps` and
            `evaluate_every` of its recipe.
        command, environ: start or continue its training.
    """

    def __init__(
        self, folder: Path, lock: IO[str], record: dict[str, Any], command: list[str], environ: Mapping[str, str]
    ) -> None:
        self.folder, self.record, self.run = folder, record, run_dir(folder, record["trial"])
        self._lock, self._command, self._environ = lock, command, environ
        self._log = self.run / run_folder.LOGS / "sweep.txt"
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = self._judged = 0
        self._poor, self._problem, self._asked_to_end = False, "", False
        self._clock = time.monotonic()

    def follow(self, asked_to_stop: bool) -> bool:
        """Check the trial. Return True once this process is done with it: it is over, or has stopped as requested."""
        # after its sweep was killed alone, its training runs on without being a child of this process
        ended = self._process.poll() is not None if self._process else not folders.is_held(self.run)
        self._judge(files.records(self.run / files.METRICS))  # after the check above, so that nothing is missed
        stopping = asked_to_stop or self._poor or self._problem
        if stopping and not self._asked_to_end and run_folder.is_run(self.run):  # before that, a start ignores the file
            (self.run / STOP_FILE).touch()
            self._asked_to_end = True
        finished = run_folder.state(self.run).get("state") == "finished"
        if not ended or self._process or stopping or finished:
            return ended and self._end(asked_to_stop, finished)
        self._start()
        return False

    def _start(self) -> None:
        (self.run / STOP_FILE).unlink(missing_ok=True)
        with self._log.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=self._environ
            )

    def _judge(self, measured: Sequence[Mapping[str, Any]]) -> None:
        """Record the new evaluations, and check whether the trial is among the best at each."""
        every, last = self.record["evaluate_every"], self.record["of_steps"] // self.record["evaluate_every"]
        self.record["steps"] = max((record["step"] for record in measured), default=0)
        losses = {
            record["step"] // every: record["heldout_loss"]
            for record in measured
            if "heldout_loss" in record and record["step"] and record["step"] % every == 0
        }
        for number in sorted(number for number in losses if number > self._judged):
            if self._poor or self._problem:
                break
            self._judged, loss = number, losses[number]
            if not math.isfinite(loss):
                self._problem = f"the held-out loss is {loss} after step {number * every}"
                break
            self.record["losses"][str(number)] = loss
            self.write()
            others = [
                other["losses"][str(number)]
                for other in records(self.folder)
                if str(number) in other["losses"] and other["trial"] != self.record["trial"]
            ]
            # trial 0, the recipe as it is, never stops: all others are compared with it
            self._poor = self.record["trial"] > 0 and number < last and not goes_on(number, loss, others)

    def _end(self, asked_to_stop: bool, finished: bool) -> bool:
        """Record how the trial ended; return False where it still runs and only another start of it was refused."""
        status = self._process.returncode if self._process else 0
        with contextlib.suppress(OSError):  # the next start removes it, if it can
            (self.run / STOP_FILE).unlink(missing_ok=True)
        whole = str(self.record["of_steps"] // self.record["evaluate_every"]) in self.record["losses"]
        if self._poor:
            self.record["state"] = "pruned"
        elif status == 0 and whole and finished:
            self.record["state"] = "finished"
        elif self._problem or not asked_to_stop:
            if not self._problem and status and folders.is_held(self.run):  # another start was quicker
                self._process = None
                return False
            how = f"killed by signal {-status}" if status < 0 else f"status {status}"
            reason = local_ranks.reason_of(self._log, status, self._log_start)
            error = self._problem or (reason if reason == how else f"{reason} ({how})")
            self.record |= {"state": "failed", "error": error}
        self.write()
        self._lock.close()
        if self.record["state"] != "running":
            shutil.rmtree(self.run / "checkpoints", ignore_errors=True)
            self._keep_best_export()
        return True

    def _keep_best_export(self) -> None:
        """Delete the exports of all trials that are over, except that of the best finished one."""
        over = [record for record in records(self.folder) if record["state"] != "running"]
        best = min((record for record in over if record["state"] == "finished"), key=last_loss, default=None)
        if best and model_folder.problem(self._export(best), {}):
            return  # which leaves the next best
        for record in over:
            if record is not best:
                shutil.rmtree(self._export(record), ignore_errors=True)

    def _export(self, record: Mapping[str, Any]) -> Path:
        return run_dir(self.folder, record["trial"]) / model_folder.EXPORT

    def write(self) -> None:
        """Write the record."""
        now = time.monotonic()
        self.record["seconds"], self._clock = self.record["seconds"] + now - self._clock, now
        with explain_disk_errors(self.folder):
            write_json(record_file(self.folder, self.record["trial"]), self.record)

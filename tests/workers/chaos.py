"""Interrupt a training at random moments, at another world size each time, and compare it with one left alone.

`make chaos` runs it at length; tests/end_to_end/test_chaos.py a short form.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from on_disk import metric, records
from ranks import ROOT, around, ended, forked, kill

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.training import loop

RANKS, CONFIGS = (2, 3, 4), ("zero1", "zero2", "zero3")
WAYS = ("kill one", "kill all", "power cut in a save", "SIGTERM", "SIGUSR1", "STOP file")
POLITE = ("SIGTERM", "SIGUSR1", "STOP file")  # the run saves, and loses nothing
HELDOUT_NATS = 0.01
MARGIN = 20  # steps before the end, in which nothing more happens
STEP_SECONDS, WRITE_SECONDS = 0.02, 0.15
START_SECONDS, END_SECONDS, TRAIN_SECONDS = 180.0, 120.0, 3600.0


@dataclass
class Interruption:
    """One of them: how, at which step, and where the run went on."""

    way: str
    ranks: int
    config: str
    reached: int
    saved: int  # step of the newest whole checkpoint
    resumed: int = -1

    @property
    def lost(self) -> int:
        """Steps that had to be done again."""
        return self.reached - self.resumed


class Job:
    """All ranks of one start."""

    def __init__(self, ranks: int, config: str, step_file: Path, arguments: list[object]) -> None:
        self.step_file, self.log = step_file, step_file.with_name("log.txt")
        step_file.unlink(missing_ok=True)
        arguments = [*arguments, "--deepspeed_config", ROOT / "ds_configs" / f"{config}.json"]
        self.ranks = forked(ranks, arguments, self.log, lambda: slow(step_file))

    def step(self) -> int:
        """Steps that are done, or -1 before the first."""
        return int(self.step_file.read_text()) if self.step_file.exists() else -1

    def wait_for(self, step: int) -> bool:
        """Wait until so many steps are done. False: the run ended before."""
        end = time.monotonic() + START_SECONDS
        while self.step() < step:
            if not any(rank.is_alive() for rank in self.ranks):
                return False
            assert time.monotonic() < end, f"step {step} not reached; see {self.log}"
            time.sleep(0.002)
        return True

    def wait(self, seconds: float) -> list[int | None]:
        """The exit statuses of all ranks; None for one that did not end in time."""
        return ended(self.ranks, seconds)

    def finish(self) -> None:
        """Wait for a training that nothing stops."""
        assert self.wait(TRAIN_SECONDS) == [0] * len(self.ranks), f"see {self.log}"


def slow(step_file: Path) -> None:
    """Have steps and writes take long enough for a kill to hit either, and the first rank tell its step."""

    def slow_write(inner, path: Path, content: dict) -> dict:
        path.write_bytes(b"half of a file")  # what a power cut would leave
        time.sleep(WRITE_SECONDS)
        return inner(path, content)

    def told_batch(inner, engine, this, progress, world):
        if world.is_first:
            beside = step_file.with_name("step.partial")
            beside.write_text(str(progress.step))
            beside.replace(step_file)
        time.sleep(STEP_SECONDS)
        return inner(engine, this, progress, world)

    around(checkpoint_format, "write_file", slow_write)()
    around(loop, "train_batch", told_batch)()
    loop.stop._FILE_SECONDS = 0.0


def interrupt(job: Job, way: str, run: Path, chance: random.Random) -> None:
    """Do it, at a moment within the step that is drawn."""
    time.sleep(chance.uniform(0, 0.05))
    if way == "kill one":
        chance.choice(job.ranks).kill()
    elif way == "kill all":
        kill(job.ranks)
    elif way == "power cut in a save":
        while not list((run / "checkpoints").glob("*.partial")) and any(rank.is_alive() for rank in job.ranks):
            time.sleep(0.002)
        kill(job.ranks)
    elif way == "STOP file":
        (run / "STOP").touch()
    else:
        os.kill(chance.choice(job.ranks).pid, getattr(signal, way))
    statuses = job.wait(END_SECONDS)
    if way in POLITE:
        assert statuses == [0] * len(job.ranks), f"{way}: {statuses}; see {job.log}"
    else:
        assert 0 not in statuses or way == "power cut in a save", f"{way}: {statuses}"


def chaos(recipe: str, folder: Path, interruptions: int, steps: int, every: int, asynchronous: bool, seed: int):
    """Run it. Returns: the interruptions, and a report on both runs. Asserts all that must hold whatever happens."""
    chance = random.Random(seed)
    settings = [f"training.steps={steps}", f"training.evaluate_every={steps // 2}", "training.log_every=1"]
    settings += [f"checkpoint.every={every}", f"checkpoint.asynchronous={str(asynchronous).lower()}"]
    # at a rate of 1e-2, rounding differences of 1e-7 grow to 0.3 in 600 steps of the tests' recipe, interrupted or not
    settings += ["faults.hang_seconds=60", "optimizer.learning_rate=2e-3", "training.rows=12"]
    runs = {name: folder / name for name in ("alone", "alone on three", "interrupted")}
    started = {name: ["--recipe", recipe, "--run_dir", run, *settings] for name, run in runs.items()}
    for name, ranks in (("alone", 2), ("alone on three", 3)):
        (folder / f"{name}-log").mkdir(parents=True)
        Job(ranks, "zero2", folder / f"{name}-log" / "step", started[name]).finish()

    done: list[Interruption] = []
    (folder / "interrupted-log").mkdir()
    ranks, reached, run = 0, 0, runs["interrupted"]
    while True:
        ranks = chance.choice([other for other in RANKS if other != ranks])
        config = chance.choice(CONFIGS)
        job = Job(ranks, config, folder / "interrupted-log" / "step", started["interrupted"])
        if not job.wait_for(0):
            job.finish()
            done.pop()  # the run came to its end before it could be stopped
            break
        resumed = job.step()
        if done:
            done[-1].resumed = resumed
            print(json.dumps({**asdict(done[-1]), "lost": done[-1].lost}), flush=True)
            assert resumed == done[-1].saved, "the newest whole checkpoint was not the one that was used"
        if len(done) >= interruptions:
            job.finish()
            break
        # so far that the run lasts for all of them
        target = resumed + chance.randint(1, max(2, 2 * (steps - resumed) // (interruptions - len(done) + 1)))
        if not job.wait_for(min(target, steps - MARGIN)):
            break
        way = chance.choice(WAYS)
        before = newest(run)
        interrupt(job, way, run, chance)
        reached = job.step() + (way in POLITE)  # the step that was on its way is finished, then saved
        assert newest(run) >= before, "a checkpoint was lost"
        done.append(Interruption(way, ranks, config, reached, newest(run)))
    return done, {name: outcome(run, steps) for name, run in runs.items()}


def newest(run: Path) -> int:
    """Step of the newest checkpoint."""
    return max(checkpoint_folder.step_of(path) for path in checkpoint_folder.found(run / "checkpoints"))


def outcome(run: Path, steps: int) -> dict[str, object]:
    """What a finished run came to."""
    manifest = checkpoint_folder.read_manifest(run / "checkpoints" / f"step_{steps:08d}")
    losses = {some["step"]: some["train_loss"] for some in records(run / "metrics.jsonl") if "train_loss" in some}
    return {
        "step": manifest["progress"]["step"],
        "rows": manifest["progress"]["consumed_rows"],
        "digest": f"{manifest['progress']['digest']:016x}",
        "heldout_loss": metric(run, "heldout_loss"),
        "learning_rate": metric(run, "train_learning_rate"),
        "train_loss": [losses[step] for step in sorted(losses)],
    }


def distance(one: dict, other: dict) -> float:
    """Root mean square of the differences of two runs' training losses, step by step."""
    pairs = list(zip(one["train_loss"], other["train_loss"], strict=True))
    return math.sqrt(sum((a - b) ** 2 for a, b in pairs) / len(pairs))


def judge(done: list[Interruption], outcomes: dict[str, dict], every: int, asynchronous: bool) -> dict[str, object]:
    """Compare both runs; raises AssertionError where the interrupted one is another. Returns: the figures."""
    alone, interrupted = outcomes["alone"], outcomes["interrupted"]
    for what in ("step", "rows", "digest", "learning_rate"):
        assert interrupted[what] == alone[what], what
    assert len(interrupted["train_loss"]) == len(alone["train_loss"])
    assert all(one.lost == 0 for one in done if one.way in POLITE)
    # while a checkpoint is written in the background, training does some steps more
    bound = every if not asynchronous else 2 * every
    worst = max((one.lost for one in done), default=0)
    assert worst <= bound, f"{worst} steps lost"
    # rounding differences grow, interrupted or not; the two runs that were left alone show how far
    apart, noise = distance(alone, interrupted), distance(alone, outcomes["alone on three"])
    assert apart <= max(1e-5, 3 * noise), f"training losses {apart} apart, where {noise} is noise"
    heldout = [outcome["heldout_loss"][-1] for outcome in outcomes.values()]
    assert max(heldout) - min(heldout) <= HELDOUT_NATS, f"held-out losses {heldout}"
    return {
        "interruptions": len(done),
        "ways": {way: sum(one.way == way for one in done) for way in WAYS},
        "most steps lost": worst,
        "steps lost in all": sum(one.lost for one in done),
        "checkpoints lost": 0,
        "final step": alone["step"],
        "digests of rows and masks": [outcome["digest"] for outcome in outcomes.values()],
        "held-out loss: alone on two ranks, on three, interrupted": heldout,
        "training losses, root mean square of the difference: interrupted, alone on three": [apart, noise],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--interruptions", type=int, default=32)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--synchronous", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recipe", default="quickstart", help="whose data are prepared")
    parser.add_argument("--folder", type=Path, required=True, help="new, for the runs")
    arguments = parser.parse_args()
    asynchronous = not arguments.synchronous
    del arguments.synchronous
    done, outcomes = chaos(**vars(arguments), asynchronous=asynchronous)
    print(json.dumps(judge(done, outcomes, arguments.every, asynchronous), indent=2))


if __name__ == "__main__":
    main()

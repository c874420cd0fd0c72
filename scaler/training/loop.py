"""The steps of a run: train on a batch, agree on what came of it, evaluate, save, meet faults and stops."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch

from scaler.config import schedule
from scaler.config.recipe import Recipe
from scaler.core import files
from scaler.data import batches, order
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.evaluation import heldout
from scaler.model.embeddings import TokenEmbeddings
from scaler.training import faults, metrics, resume, run_folder, stop, watchdog
from scaler.training.faults import Verdict
from scaler.training.job import Job
from scaler.training.progress import Progress


@dataclass
class Running:
    """A run between its steps, on this rank. The first rank has the log and the lock of the folder."""

    job: Job
    world: World
    engine: Any
    embeddings: TokenEmbeddings
    progress: Progress
    saves: resume.CheckpointPolicy
    log: metrics.RunLog | None
    say: Callable[..., None]
    meter: metrics.Meter
    unigram: float
    requests: stop.StopRequests
    dog: watchdog.Watchdog
    lock: IO[str] | None

    @property
    def goes_on(self) -> bool:
        """There are steps left, and the held-out loss has not stopped falling for too long."""
        training = self.job.recipe.training
        return self.progress.step < training.steps and not self.progress.waited(training.patience)

    @property
    def run_dir(self) -> Path:
        """Its folder."""
        return self.job.run_dir


def train_batch(engine: Any, this: Job, progress: Progress, world: World) -> tuple[torch.Tensor, float]:
    """Train on the next batch; return this rank's summed loss over micro-batches, and the gradient norm."""
    recipe, batch, reader = this.recipe, this.batch, this.rows["train"]
    device = devices.device(world)
    rate, masked = learning_rate(recipe, progress.step), recipe.masked_per_row(progress.step / recipe.training.steps)
    # dropout is another one on each rank and at each step, and the same again after a resume
    torch.manual_seed(int(order.key(recipe.seed, progress.consumed_rows, world.rank) >> 1))
    summed, norm = torch.zeros((), device=device, dtype=torch.float64), 0.0
    first = progress.consumed_rows + world.rank * batch.micro_rows * batch.accumulation
    for start in range(first, first + batch.micro_rows * batch.accumulation, batch.micro_rows):
        with engine.compute_clock:
            rows = reader.at(start, batch.micro_rows, masked)
            progress.digest = (progress.digest + batches.digest(rows, start)) % (1 << 64)
            loss, _ = engine(rows.to(device))
        engine.backward(loss)
        norm = engine.step(rate)
        summed += loss.detach()
    return summed, norm


def learning_rate(recipe: Recipe, step: int) -> float:
    """The rate of an optimizer step."""
    return schedule.learning_rate(
        step,
        peak=recipe.optimizer.learning_rate,
        warmup_steps=round(recipe.schedule.warmup_share * recipe.training.steps),
        total_steps=recipe.training.steps,
        shape=recipe.schedule.shape,
        floor=recipe.schedule.floor,
    )


def evaluated(running: Running) -> heldout.HeldOut:
    """The held-out rows' loss now."""
    running.engine.train(False)
    found = heldout.evaluate(running.engine, running.job.rows["heldout"], running.job.batch.micro_rows, running.world)
    running.engine.train(True)
    return found


def measure(running: Running) -> None:
    """Evaluate the held-out rows, show it, and note whether it is the best yet."""
    this, world, engine, log = running.job, running.world, running.engine, running.log
    progress, clock = running.progress, time.perf_counter()
    found = evaluated(running)
    engine.train(False)
    samples = heldout.filled_masks(engine, this.rows["heldout"], this.data.tokenizer, world)
    engine.train(True)
    if log:
        log.write(
            progress.step,
            **found.records("heldout"),
            heldout_unigram_entropy=running.unigram,
        )
        log.text(progress.step, "heldout/filled_masks", samples)
    running.say(
        f"step {progress.step:>6,}/{this.recipe.training.steps:,} | held-out loss {found.loss:.3f} (unigram entropy "
        f"{running.unigram:.3f}) | masked accuracy {found.masked_accuracy:.1%}"
    )
    progress.judge_evaluation(found.loss)
    running.meter.evaluations.append(time.perf_counter() - clock)


def report(running: Running, norm: float) -> None:
    """Log the steps since the last report."""
    recipe, step = running.job.recipe, running.progress.step
    values = running.meter.read(recipe.training.steps - step, recipe.training.evaluate_every)
    own = collectives.all_gather(running.engine.compute_clock.read(), running.world)
    values["speed_slowest_rank"] = own.index(max(own))
    values["speed_slowest_rank_to_median"] = max(own) / statistics.median(own)
    rate = learning_rate(recipe, step - 1)
    if running.log:
        values["speed_memory_bytes"] = devices.memory_bytes(devices.device(running.world))
        running.log.write(step, train_learning_rate=rate, train_gradient_norm=norm, **values)
    running.say(
        f"step {step:>6,}/{recipe.training.steps:,} | loss {values['train_loss']:.3f} | lr {rate:.1e} | "
        f"norm {norm:.2f} | {running.meter.said(values)}"
    )


def meet_fault(running: Running, judge: faults.Judge, verdict: Verdict, by_rank: list[float], norm: float) -> None:
    """Say and record a fault, and do what the verdict says: nothing more, go back, or stop."""
    progress, rows = running.progress, running.job.recipe.training.rows
    record, loss = running.run_dir / files.FAULTS, sum(by_rank) / len(by_rank)
    running.say(f"step {progress.step:,} | loss {loss:.3f} | norm {norm:.2f} | {verdict.value}; see {record}")
    if running.log:
        running.log.fault(
            step=progress.step,
            verdict=verdict.value,
            loss_by_rank=by_rank,
            gradient_norm=norm,
            rows=[progress.consumed_rows - rows, progress.consumed_rows],
        )
    if verdict is Verdict.STOP:
        problem = (
            f"step {progress.step}: the loss is {loss}, the gradient norm {norm}, and "
            f"{running.job.recipe.faults.rollbacks} returns to a checkpoint did not help; training stopped; {record} "
            "names rows and ranks; lower optimizer.learning_rate, or look at those"
        )
        collectives.agree_or_raise(problem, running.world)
    if verdict is Verdict.GO_BACK:
        rollbacks = judge.rollbacks  # which a checkpoint that is committed on the way back must not reset
        # each return but the first goes behind the one that the last went to
        running.progress = running.saves.go_back(progress, skip=min(1, rollbacks - 1))
        judge.went_back(running.progress.recent_losses, rollbacks)
        log, step = running.log, running.progress.step
        collectives.all_or_none(lambda: log.go_back(step) if log else None, running.world)


def agree(running: Running, summed: torch.Tensor, flags: list[float]) -> tuple[float, str | None, bool]:
    """Let all ranks know the same: the batch's mean loss, who asked to stop, and whether all have written a checkpoint.

    Args:
        summed: this rank's loss over its micro-batches.
        flags: of its StopRequests.
    """
    log_problem = running.log.problem if running.log else None
    ends = [float(log_problem is not None), float(running.saves.checkpoints.done)]
    signs = torch.tensor([0.0, *flags, *ends], dtype=torch.float64).to(summed.device)
    signs[0] = summed
    total, *asked, log_failed, written = collectives.total(signs).tolist()
    ranks = running.world.size
    if log_failed:
        collectives.agree_or_raise(log_problem, running.world)
    return total / (running.job.batch.accumulation * ranks), stop.reason(asked), written == ranks


def train(running: Running) -> str | None:
    """Train to the recipe's last step, or to an early stop; return who stopped it before that, or None."""
    this, world, saves = running.job, running.world, running.saves
    training, keep = this.recipe.training, this.recipe.checkpoint
    judge = faults.Judge(this.recipe.faults, running.progress.recent_losses)

    def saved(step: int, stall_seconds: float) -> None:
        judge.rollbacks = 0
        if running.log:
            running.log.write(step, checkpoint_stall_seconds=stall_seconds)
            with running.log.noting_problem():
                run_folder.set_state(running.run_dir, "running", step=step, steps=training.steps)

    saves.on_saved = saved
    stopped_by = None
    if saves.saved_at is None:
        measure(running)
        # so that a disk that cannot take one is found now, and there is always a way back
        saves.begin(running.progress, asynchronous=False)
    while running.goes_on and stopped_by is None:
        progress = running.progress
        clock = time.perf_counter()
        summed, norm = train_batch(running.engine, this, progress, world)
        loss, stopped_by, written = agree(running, summed, running.requests.flags())
        running.meter.add(loss, time.perf_counter() - clock)
        progress.step += 1
        progress.consumed_rows += training.rows
        progress.updates += math.isfinite(norm)
        verdict = judge.judge(loss, norm)
        if written:
            saves.commit()
        if verdict is not Verdict.FINE:
            meet_fault(
                running, judge, verdict, collectives.all_gather(float(summed) / this.batch.accumulation, world), norm
            )
        if verdict is Verdict.GO_BACK:
            continue

        best = progress.best_step
        last = progress.step == training.steps
        if progress.step % training.log_every == 0 or last or stopped_by:
            report(running, norm)
        if progress.step % training.evaluate_every == 0 or last:
            measure(running)
        # batches that had to be skipped leave it open whether the weights are good, unless they are the best yet
        if progress.best_step != best or (progress.step % keep.every == 0 and not judge.skipped):
            saves.begin(progress, keep.asynchronous)
    saves.commit()
    if saves.saved_at != running.progress.step:
        saves.begin(running.progress, asynchronous=False)
    if stopped_by:
        running.requests.honoured()
    if stopped_by and saves.saved_at is None:
        problem = (
            f"stopped by {stopped_by}, and could not save; --run_dir {running.run_dir} goes on from the one before"
        )
        collectives.agree_or_raise(problem, world)
    return stopped_by if running.goes_on else None

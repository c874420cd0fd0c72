"""Run the steps of a training: batch, loss, backward, step, log, evaluate, save; and react to faults and stops."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from scaler.core import files
from scaler.core.text import quantity
from scaler.data import batches, order
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.evaluation import heldout
from scaler.training import faults, stop
from scaler.training.faults import Verdict
from scaler.training.job import Job
from scaler.training.monitor import Monitor
from scaler.training.progress import Progress
from scaler.training.resume import CheckpointPolicy


def train(
    job: Job,
    world: World,
    engine: Any,
    progress: Progress,
    checkpoints: CheckpointPolicy,
    monitor: Monitor,
    requests: stop.StopRequests,
) -> str | None:
    """Train to the recipe's last step, or to an early stop; return who stopped it before that, or None."""
    training, keep = job.recipe.training, job.recipe.checkpoint
    judge = faults.Judge(job.recipe.faults, progress.recent_losses)

    def saved(step: int, stall_seconds: float) -> None:
        judge.rollbacks = 0
        monitor.add_checkpoint(step, stall_seconds)

    checkpoints.on_saved = saved
    if checkpoints.saved_at is None:
        evaluate(job, world, engine, progress, monitor)
        # so that a disk that cannot take one is found now, and there is always a way back
        checkpoints.begin(progress, asynchronous=False)
    stopped_by = None
    while not stopped_by and not is_over(job, progress):
        started = time.perf_counter()
        summed_loss, norm = train_batch(engine, job, progress, world)
        loss, stopped_by, written = agree(job, world, summed_loss, checkpoints, requests)
        progress.count_step(training.rows, norm)
        monitor.add_step(progress, loss, norm, time.perf_counter() - started)
        if written:
            checkpoints.commit()

        verdict = judge.judge(loss, norm)
        if verdict is not Verdict.FINE:
            loss_by_rank = collectives.all_gather(float(summed_loss) / job.batch.accumulation, world)
            monitor.add_fault(progress, verdict, loss_by_rank, norm)
        if verdict is Verdict.STOP:
            end_run(job, world, progress, sum(loss_by_rank) / world.size, norm)
        if verdict is Verdict.GO_BACK:
            go_back(progress, checkpoints, monitor, judge)
            continue

        is_last, is_best = progress.step == training.steps, False
        if progress.step % training.log_every == 0 or is_last or stopped_by:
            monitor.report(engine, progress, norm)
        if progress.step % training.evaluate_every == 0 or is_last:
            is_best = evaluate(job, world, engine, progress, monitor)
        # after batches that had to be skipped it is not clear whether the weights are good, unless they are the best
        if is_best or (progress.step % keep.every == 0 and not judge.skipped):
            checkpoints.begin(progress, keep.asynchronous)
    checkpoints.finish(progress)
    if stopped_by:
        requests.honoured()
    if stopped_by and checkpoints.saved_at is None:
        problem = f"stopped by {stopped_by}, and could not save; --run_dir {job.run_dir} goes on from the one before"
        collectives.agree_or_raise(problem, world)
    return None if is_over(job, progress) else stopped_by


def is_over(job: Job, progress: Progress) -> bool:
    """Return whether all steps are done, or the held-out loss has not fallen for too long."""
    training = job.recipe.training
    return progress.step >= training.steps or progress.out_of_patience(training.patience)


def train_batch(engine: Any, job: Job, progress: Progress, world: World) -> tuple[torch.Tensor, float]:
    """Train on the next batch; return this rank's summed loss over its micro-batches, and the gradient norm."""
    device, batch, reader = devices.device(world), job.batch, job.rows["train"]
    learning_rate, masked = job.learning_rate(progress.step), job.masked_per_row(progress.step)
    # dropout differs between ranks and between steps, and is the same again after a resume
    torch.manual_seed(int(order.key(job.recipe.seed, progress.consumed_rows, world.rank) >> 1))
    summed_loss, norm = torch.zeros((), device=device, dtype=torch.float64), 0.0
    first = progress.consumed_rows + world.rank * batch.micro_rows * batch.accumulation
    for start in range(first, first + batch.micro_rows * batch.accumulation, batch.micro_rows):
        with engine.compute_clock:
            micro_batch = reader.at(start, batch.micro_rows, masked)
            progress.digest = (progress.digest + batches.digest(micro_batch, start)) % (1 << 64)
            loss, _ = engine(micro_batch.to(device))
        engine.backward(loss)
        norm = engine.step(learning_rate)
        summed_loss += loss.detach()
    return summed_loss, norm


def agree(
    job: Job,
    world: World,
    summed_loss: torch.Tensor,
    checkpoints: CheckpointPolicy,
    requests: stop.StopRequests,
) -> tuple[float, str | None, bool]:
    """Let all ranks decide alike after a step, by one all-reduce.

    Returns: the batch's mean loss, who asked to stop, and whether all ranks have written their part of a checkpoint.
    """
    values = torch.tensor([0.0, *requests.flags(), float(checkpoints.written)], dtype=torch.float64)
    values = values.to(summed_loss.device)
    values[0] = summed_loss
    total, *asked, written = collectives.total(values).tolist()
    return total / (job.batch.accumulation * world.size), stop.reason(asked), written == world.size


def evaluate(job: Job, world: World, engine: Any, progress: Progress, monitor: Monitor) -> bool:
    """Evaluate the held-out rows and show the result; return whether it is the best of the run."""
    started = time.perf_counter()
    measured = heldout_loss(job, world, engine)
    with evaluating(engine):
        filled_masks = heldout.filled_masks(engine, job.rows["heldout"], job.data.tokenizer, world)
    monitor.add_evaluation(progress.step, measured, filled_masks, time.perf_counter() - started)
    return progress.judge_evaluation(measured.loss)


def heldout_loss(job: Job, world: World, engine: Any) -> heldout.HeldOut:
    """Return loss and accuracy on the held-out rows. Collective."""
    with evaluating(engine):
        return heldout.evaluate(engine, job.rows["heldout"], job.batch.micro_rows, world)


@contextmanager
def evaluating(engine: Any) -> Iterator[None]:
    """Switch dropout off, and on again afterwards."""
    engine.train(False)
    yield
    engine.train(True)


def go_back(progress: Progress, checkpoints: CheckpointPolicy, monitor: Monitor, judge: faults.Judge) -> None:
    """Return to a checkpoint, and step over the rows that were read since."""
    rollbacks = judge.rollbacks  # a checkpoint that is committed on the way back must not reset it
    # each return but the first goes to the checkpoint before the last return's
    checkpoints.go_back(progress, skip=min(1, rollbacks - 1))
    judge.went_back(progress.recent_losses, rollbacks)
    monitor.go_back(progress.step)


def end_run(job: Job, world: World, progress: Progress, loss: float, norm: float) -> None:
    """Raise ScalerError on rank 0 and end the others, because returning to a checkpoint did not help."""
    record = job.run_dir / files.FAULTS
    problem = (
        f"step {progress.step}: the loss is {loss}, the gradient norm {norm}, and "
        f"{quantity(job.recipe.faults.rollbacks, 'return')} to a checkpoint did not help; training stopped; {record} "
        "names rows and ranks; lower optimizer.learning_rate, or look at those"
    )
    collectives.agree_or_raise(problem, world)

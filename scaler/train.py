"""Pretrain a masked LM: `deepspeed scaler/train.py --deepspeed_config ds_configs/zero2.json [--recipe NAME]`."""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import IO, Any

if not __package__:  # run as a file: find the package beside it, and let no file here shadow a library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from scaler import (
    batches,
    checkpoint,
    evaluate,
    faults,
    job,
    metrics,
    model,
    order,
    plan,
    resume,
    run_folder,
    schedule,
    stop,
    token_rows,
    watchdog,
    world,
)
from scaler.errors import TryAgain, command, naming_full_disk
from scaler.export import export, model_card
from scaler.faults import Verdict
from scaler.job import Job
from scaler.manifests import write_json
from scaler.recipe import Recipe


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="scaler/train.py", description=__doc__)
    parser.add_argument("--deepspeed_config", type=Path, help="DeepSpeed's JSON (the run's, or ds_configs/zero2.json)")
    parser.add_argument("--recipe", help="name or YAML file (the run's, or quickstart)")
    parser.add_argument("--run_dir", type=Path, help="folder of the run; a run that is there goes on (a new runs/NAME)")
    parser.add_argument("--allow_changes", action="store_true", help="go on with another batch, seed, rate or data")
    parser.add_argument("--dry_run", action="store_true", help="say what the run would do, and touch nothing")
    parser.add_argument("--json", action="store_true", help="the dry run as JSON")
    parser.add_argument("--local_rank", type=int, help=argparse.SUPPRESS)  # the deepspeed launcher adds it
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.json and not parsed.dry_run:
        parser.error("--json goes with --dry_run")
    return parsed


def write_settings(this: Job, here: world.World, hosts: list[str]) -> None:
    """Write the settings of the run and this start of it into its folder."""
    with naming_full_disk(this.run_dir):
        beside = this.run_dir / f"{run_folder.RECIPE}.partial"
        beside.write_text(this.recipe.to_yaml(), encoding="utf-8")
        beside.replace(this.run_dir / run_folder.RECIPE)
        write_json(this.run_dir / run_folder.DS_CONFIG, this.asked)
        settings = {"seed": this.recipe.seed, "ds_config": this.resolved, "changes": this.changes}
        run_folder.add_attempt(this.run_dir, run_folder.facts(here, hosts) | settings)


def train_batch(engine: Any, this: Job, progress: checkpoint.Progress, here: world.World) -> tuple[torch.Tensor, float]:
    """Train on the next batch; return this rank's summed loss over micro-batches, and the gradient norm."""
    recipe, batch, reader = this.recipe, this.batch, this.rows["train"]
    device = world.device(here)
    rate = learning_rate(recipe, progress.step)
    # dropout is another one on each rank and at each step, and the same again after a resume
    torch.manual_seed(int(order.key(recipe.seed, progress.consumed_rows, here.rank) >> 1))
    summed, norm = torch.zeros((), device=device, dtype=torch.float64), 0.0
    first = progress.consumed_rows + here.rank * batch.micro_rows * batch.accumulation
    for start in range(first, first + batch.micro_rows * batch.accumulation, batch.micro_rows):
        rows = reader.at(start, batch.micro_rows)
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


@dataclass
class Running:
    """A run between its steps, on this rank. The first rank has the log and the lock of the folder."""

    job: Job
    here: world.World
    engine: Any
    progress: checkpoint.Progress
    saves: resume.Saves
    log: metrics.RunLog | None
    say: Callable[..., None]
    meter: metrics.Meter
    unigram: float
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


def start(arguments: argparse.Namespace, here: world.World, engines: ModuleType) -> Running | None:
    """All that comes before the first step; None where the run is finished."""
    # ---- the ranks meet; inputs are opened and verified, each rank its share
    started = time.perf_counter()
    engines.join(here)
    this = world.attempt(lambda: job.resolve(arguments, here), here)
    this = replace(this, run_dir=world.gathered(this.run_dir, here)[0])
    recipe, training, run_dir = this.recipe, this.recipe.training, this.run_dir
    say = functools.partial(print, flush=True) if here.is_first else lambda *_, **__: None
    if world.attempt(lambda: run_folder.state(run_dir), here).get("state") == "finished" and not this.changes:
        say(f"{run_dir}: this run is finished; its model is in {run_dir / 'export'}; name another --run_dir")
        return None
    world.attempt(lambda: engines.check(this.resolved, this.ds_config_file), here)
    world.attempt(lambda: token_rows.verify(this.data.manifest, here.rank, here.size), here)

    # ---- model and engine; the run folder, and where the run stands
    device = world.device(here)
    unigram_counts = world.attempt(this.data.manifest.unigram_counts, here)
    network = world.attempt(lambda: job.starting_point(this, unigram_counts), here)
    parameters, _ = model.count_parameters(network)
    flops_per_row = model.flops_per_row(network, recipe.data.seq_len, this.rows["train"].masked)
    engine = world.attempt(lambda: engines.Engine(model.MaskedLM(network), recipe.optimizer, this.resolved), here)
    lock = world.attempt(lambda: run_folder.lock(run_dir) if here.is_first else None, here)
    keep = recipe.checkpoint
    checkpoints = checkpoint.Checkpoints(run_dir / "checkpoints", here, keep.keep_last, keep.keep_every)
    checkpoints.clear_partial()
    newest = checkpoints.newest(say)
    progress = checkpoint.Progress()
    if newest is not None:
        progress = resume.restore(engine, this, newest, here, say, arguments.allow_changes)
        short = f"training.steps={training.steps}, but {run_dir} has done {progress.step}; name another --run_dir"
        world.agree_or_raise(short if progress.step > training.steps else None, here)
        if this.changes:
            progress.worse = 0  # the patience begins anew
    # only now, so that a start that is refused changes nothing
    hosts = world.gathered(platform.node(), here)
    world.attempt(lambda: write_settings(this, here, hosts) if here.is_first else None, here)
    for change in this.changes:
        say(f"changed, as asked for: {change}")
    begun_at = None if newest is None else progress.step
    log = world.attempt(lambda: metrics.RunLog(run_dir, begun_at) if here.is_first else None, here)
    saves = resume.Saves(engine, this, checkpoints, here, say, begun_at)

    # ---- the machine's ceiling, and the loss that needs no model
    ceiling = metrics.measure_matmul_flops(device, torch.bfloat16 if engine.bf16 else torch.float32)
    ceiling = float(world.total(torch.tensor(ceiling, device=device, dtype=torch.float64)))
    unigram = evaluate.unigram_entropy(this.rows["heldout"], unigram_counts)
    meter = metrics.Meter(training.rows, recipe.data.seq_len, flops_per_row / ceiling)
    say(
        f"{run_dir}: {parameters:,} parameters, {here.size} ranks, ZeRO-{engine.stage}, "
        f"{resume.precision(this.resolved)}, {training.steps:,} steps of {training.rows} x {recipe.data.seq_len} "
        f"tokens ({this.batch.micro_rows} rows x {this.batch.accumulation} accumulation a rank); "
        f"matrix-multiply ceiling {ceiling / 1e9:,.0f} GFLOP/s; started in {time.perf_counter() - started:.0f} s"
    )
    return Running(this, here, engine, progress, saves, log, say, meter, unigram, lock)


def evaluated(running: Running) -> evaluate.HeldOut:
    """The held-out rows' loss now."""
    running.engine.train(False)
    found = evaluate.heldout(running.engine, running.job.rows["heldout"], running.job.batch.micro_rows, running.here)
    running.engine.train(True)
    return found


def measure(running: Running) -> None:
    """Evaluate the held-out rows, show it, and note whether it is the best yet."""
    this, here, engine, log = running.job, running.here, running.engine, running.log
    progress, clock = running.progress, time.perf_counter()
    found = evaluated(running)
    engine.train(False)
    samples = evaluate.filled_masks(engine, this.rows["heldout"], this.data.tokenizer, here)
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
    rate = learning_rate(recipe, step - 1)
    if running.log:
        values["speed_memory_bytes"] = metrics.memory_bytes(world.device(running.here))
        running.log.write(step, train_learning_rate=rate, train_gradient_norm=norm, **values)
    running.say(
        f"step {step:>6,}/{recipe.training.steps:,} | loss {values['train_loss']:.3f} | lr {rate:.1e} | "
        f"norm {norm:.2f} | {running.meter.said(values)}"
    )


def meet_fault(running: Running, judge: faults.Judge, verdict: Verdict, by_rank: list[float], norm: float) -> None:
    """Say and record a fault, and do what the verdict says: nothing more, go back, or stop."""
    progress, rows = running.progress, running.job.recipe.training.rows
    record, loss = running.run_dir / metrics.FAULTS, sum(by_rank) / len(by_rank)
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
        world.agree_or_raise(problem, running.here)
    if verdict is Verdict.GO_BACK:
        rollbacks = judge.rollbacks  # which a checkpoint that is committed on the way back must not reset
        running.progress = running.saves.go_back(progress, skip=rollbacks - 1)
        judge.went_back(running.progress.recent_losses, rollbacks)
        if running.log:
            running.log.go_back(running.progress.step)


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
    total, *asked, log_failed, written = world.total(signs).tolist()
    ranks = running.here.size
    if log_failed:
        world.agree_or_raise(log_problem, running.here)
    return total / (running.job.batch.accumulation * ranks), stop.reason(asked), written == ranks


def loop(running: Running) -> str | None:
    """Train to the recipe's last step, or to an early stop; return who stopped it before that, or None."""
    this, here, saves = running.job, running.here, running.saves
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
    first = running.run_dir if here.is_first else None
    requests = stop.StopRequests(first)
    dog = watchdog.Watchdog(running.run_dir, here, this.recipe.faults.hang_seconds)
    running.engine.watch = saves.checkpoints.watch = dog.beat
    with run_folder.telling_failure(first), requests, dog:
        if saves.saved_at is None:
            measure(running)
            # so that a disk that cannot take one is found now, and there is always a way back
            saves.begin(running.progress, asynchronous=False)
        while running.goes_on and stopped_by is None:
            progress = running.progress
            clock = time.perf_counter()
            summed, norm = train_batch(running.engine, this, progress, here)
            loss, stopped_by, written = agree(running, summed, requests.flags())
            running.meter.add(loss, time.perf_counter() - clock)
            progress.step += 1
            progress.consumed_rows += training.rows
            progress.updates += math.isfinite(norm)
            verdict = judge.judge(loss, norm)
            if written:
                saves.commit()
            if verdict is not Verdict.FINE:
                meet_fault(running, judge, verdict, world.gathered(float(summed) / this.batch.accumulation, here), norm)
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
        if saves.saved_at != running.progress.step and not judge.skipped:
            saves.begin(running.progress, asynchronous=False)
        saves.commit()
        if stopped_by and here.is_first:
            requests.honoured()
        if stopped_by and saves.saved_at is None:
            problem = (
                f"stopped by {stopped_by}, and could not save; --run_dir {running.run_dir} goes on from the one before"
            )
            world.agree_or_raise(problem, here)
    return stopped_by if running.goes_on else None


def run(arguments: argparse.Namespace, here: world.World, engines: ModuleType) -> None:
    """The whole run, on this rank: train, evaluate, export. `engines` is the room of DeepSpeed."""
    started = time.perf_counter()
    running = start(arguments, here, engines)
    if running is None:
        return
    run_dir, steps = running.run_dir, running.job.recipe.training.steps
    stopped_by = loop(running)
    progress = running.progress
    if stopped_by:
        if running.log:
            run_folder.set_state(run_dir, "stopped", step=running.saves.saved_at, steps=steps, by=stopped_by)
            running.log.close()
        running.say(
            f"stopped by {stopped_by} after step {progress.step:,} of {steps:,}, saved at step "
            f"{running.saves.saved_at:,}; the same command with --run_dir {run_dir} goes on"
        )
    else:
        if progress.step < steps:
            running.say(f"stopped early: {progress.worse} evaluations, and none under {progress.best_loss}")
            running.progress = running.saves.best(progress)
        measured = evaluated(running)
        state = running.engine.full_state()
        if running.log:
            with naming_full_disk(run_dir):
                finish(running, running.log, state, measured, time.perf_counter() - started)
                run_folder.set_state(run_dir, "finished", step=progress.step, steps=steps)
    running.saves.checkpoints.close()
    running.engine.close()


def finish(
    running: Running,
    log: metrics.RunLog,
    state: dict[str, torch.Tensor],
    measured: evaluate.HeldOut,
    seconds: float,
) -> None:
    """Write the picture, the export and its card; the first rank's last act."""
    this, here, unigram, progress = running.job, running.here, running.unigram, running.progress
    recipe, manifest = this.recipe, this.data.manifest
    if not log.series("heldout_loss")[0]:  # somebody has removed the log
        log.write(progress.step, **measured.records("heldout"))
    picture = log.draw(unigram)
    log.close()
    sources = ", ".join(str(source["source"]) for source in manifest.sources)
    _, losses = log.series("train_loss")
    card = model_card(
        recipe,
        {
            "held-out loss": f"{measured.loss:.3f} nats over {measured.tokens:,} masked tokens",
            "unigram entropy of the same tokens": f"{unigram:.3f} nats",
            "held-out masked accuracy": f"{measured.masked_accuracy:.2%}",
            "training loss, last logged": f"{losses[-1]:.3f} nats" if losses else "not logged",
            "optimizer steps": f"{progress.step:,}",
            "tokens seen": f"{progress.consumed_rows * recipe.data.seq_len:,}",
            "time": f"{metrics.duration(seconds)} on {here.size} ranks, since the last start",
        },
        f"{sources}: {manifest.count('train', 'documents'):,} documents and {manifest.count('train', 'tokens'):,} "
        f"tokens for training, {manifest.count('heldout', 'documents'):,} documents held out.",
        "deepspeed scaler/train.py --recipe recipe.yaml --deepspeed_config ds_config.json",
    )
    folder = log.run_dir / "export"
    export(state, model.build(this.config, recipe.seed), this.data.tokenizer, card, folder)
    print(
        f"done in {metrics.duration(seconds)}: held-out loss {measured.loss:.3f}, "
        f"{unigram - measured.loss:.2f} nats under the unigram entropy\n"
        f"  {picture}\n  {folder}\n"
        f"  tensorboard --logdir {log.run_dir.parent}\n  python -m scaler.fill_mask {log.run_dir}"
    )


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    here = world.detect()
    if not arguments.dry_run:
        from scaler import engine  # not for the dry run, which needs no DeepSpeed

        try:
            run(arguments, here, engine)
        except RuntimeError as error:
            if not engine.is_lost_connection(error):
                raise
            raise TryAgain(
                f"rank {here.rank}: another rank has gone ({str(error).splitlines()[0][:200]}); "
                "the same command with --run_dir goes on from the last checkpoint"
            ) from error
        finally:
            engine.leave()
    elif here.is_first:
        this = job.resolve(arguments, here)
        content = plan.plan(this)
        print(json.dumps(content, indent=2) if arguments.json else plan.render(content))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

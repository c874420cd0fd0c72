"""Run a training on this rank: start, train, evaluate, export."""

from __future__ import annotations

import argparse
import os
import sys
import time
from dataclasses import replace

import torch

from scaler.checkpoint import store
from scaler.config import deepspeed as ds_config
from scaler.core import folders, slurm, text
from scaler.core.errors import explain_disk_errors
from scaler.core.files import write_json, write_whole
from scaler.data import token_rows
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.engine import engine, process_group
from scaler.evaluation import heldout
from scaler.model import build, masked_lm
from scaler.model import parameters as model
from scaler.training import environment, job, loop, metrics, resume, run_folder, stop, watchdog
from scaler.training.export import export, model_card
from scaler.training.job import Job
from scaler.training.progress import Progress


def write_settings(this: Job, world: World, hosts: list[str], step: int) -> None:
    """Write the settings of the run and this start of it into its folder; the recipe last, which makes it a run's."""
    settings = {"seed": this.recipe.seed, "rows_xxh3": this.data.manifest.xxh3("train"), "ds_config": this.resolved}
    settings["untested_ds_keys"] = ds_config.untested_keys(this.asked)
    with explain_disk_errors(this.run_dir):
        run_folder.set_state(this.run_dir, "running", step=step, steps=this.recipe.training.steps)
        run_folder.add_attempt(this.run_dir, environment.facts(world, hosts) | settings | {"changes": this.changes})
        write_json(this.run_dir / run_folder.DS_CONFIG, this.asked)
        write_whole(this.run_dir / run_folder.RECIPE, this.recipe.to_yaml())


def say(line: str) -> None:
    """Tell the user. Nobody listening, or a full disk there, is no reason to end a training."""
    try:
        print(line, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError:
        pass


def be_silent(line: str) -> None:
    """What the other ranks do instead."""


def start(arguments: argparse.Namespace, world: World) -> loop.Running | None:
    """All that comes before the first step; None where the run is finished."""
    # ---- the ranks meet; inputs are opened and verified, each rank its share
    started = time.perf_counter()
    process_group.join(world)
    this = collectives.all_or_none(lambda: job.resolve(arguments, world), world)
    this = replace(this, run_dir=collectives.all_gather(this.run_dir, world)[0])
    recipe, training, run_dir = this.recipe, this.recipe.training, this.run_dir
    tell = say if world.is_first else be_silent
    if (
        collectives.all_or_none(lambda: run_folder.state(run_dir), world).get("state") == "finished"
        and not this.changes
    ):
        tell(f"{run_dir}: this run is finished; its model is in {run_dir / 'export'}; name another --run_dir")
        return None
    collectives.all_or_none(lambda: engine.check(this.resolved, this.ds_config_file), world)
    collectives.all_or_none(lambda: token_rows.verify(this.data.manifest, world.rank, world.size), world)

    # ---- model and engine; the run folder, and where the run stands
    device = devices.device(world)
    unigram_counts = collectives.all_or_none(this.data.manifest.unigram_counts, world)
    network = collectives.all_or_none(lambda: job.starting_point(this, unigram_counts), world)
    parameters, trainable = model.count_parameters(network)
    table = model.render_table(model.what_trains(network, recipe.optimizer.weight_decay))
    flops_per_row = model.flops_per_row(network, recipe.data.seq_len, recipe.masked_per_row(0.5))
    ds_engine = collectives.all_or_none(
        lambda: engine.Engine(masked_lm.MaskedLM(network), recipe.optimizer, this.resolved), world
    )
    lock = collectives.all_or_none(lambda: folders.lock(run_dir) if world.is_first else None, world)
    keep = recipe.checkpoint
    checkpoints = store.Checkpoints(run_dir / "checkpoints", world, keep.keep_last, keep.keep_every, tell)
    checkpoints.on_first_rank(checkpoints.folder.clear_partial)
    newest = checkpoints.newest()
    progress = Progress()
    if newest is not None:
        progress = resume.restore(ds_engine, this, newest, world, tell, arguments.allow_changes)
        short = f"training.steps={training.steps}, but {run_dir} has done {progress.step}; name another --run_dir"
        collectives.agree_or_raise(short if progress.step > training.steps else None, world)
        if this.changes:
            progress.worse = 0  # the patience begins anew
    token_embeddings = ds_engine.token_embeddings()
    # only now, so that a start that is refused changes nothing
    hosts = collectives.all_gather(slurm.node_name(), world)
    collectives.all_or_none(
        lambda: write_settings(this, world, hosts, progress.step) if world.is_first else None, world
    )
    if newest is not None:
        checkpoints.on_first_rank(checkpoints.folder.set_aside_after, progress.step)
    for change in this.changes:
        tell(f"changed, as asked for: {change}")
    begun_at = None if newest is None else progress.step
    log = collectives.all_or_none(lambda: metrics.RunLog(run_dir, begun_at) if world.is_first else None, world)
    saves = resume.CheckpointPolicy(ds_engine, this, checkpoints, world, tell, begun_at)

    # ---- the machine's ceiling, and the loss that needs no model
    ceiling = devices.measure_matmul_flops(device, torch.bfloat16 if ds_engine.bf16 else torch.float32)
    ceiling = float(collectives.total(torch.tensor(ceiling, device=device, dtype=torch.float64)))
    unigram = heldout.unigram_entropy(this.rows["heldout"], unigram_counts)
    meter = metrics.Meter(training.rows, recipe.data.seq_len, flops_per_row / ceiling)
    tell(
        f"{table}\n"
        f"{run_dir}: {parameters:,} parameters, {trainable:,} of them trained, {world.size} ranks, "
        f"ZeRO-{ds_engine.stage}, {ds_config.precision_of(this.resolved)}, "
        f"{training.steps:,} steps of {training.rows} x {recipe.data.seq_len} "
        f"tokens ({this.batch.micro_rows} rows x {this.batch.accumulation} accumulation a rank); "
        f"matrix-multiply ceiling {ceiling / 1e9:,.0f} GFLOP/s; started in {time.perf_counter() - started:.0f} s"
    )
    requests = stop.StopRequests(run_dir if world.is_first else None)
    dog = watchdog.Watchdog(run_dir, world, recipe.faults.hang_seconds)
    ds_engine.watch = checkpoints.watch = dog.beat
    return loop.Running(
        this, world, ds_engine, token_embeddings, progress, saves, log, tell, meter, unigram, requests, dog, lock
    )


def run(arguments: argparse.Namespace, world: World) -> None:
    """Run the whole training on this rank: train, evaluate, export."""
    started = time.perf_counter()
    running = start(arguments, world)
    if running is None:
        return
    with run_folder.telling_failure(running.run_dir if world.is_first else None), running.requests, running.dog:
        end(running, loop.train(running), started)
    running.saves.checkpoints.close()
    running.engine.close()


def end(running: loop.Running, stopped_by: str | None, started: float) -> None:
    """After the last step: export the model, or say how the run goes on."""
    run_dir, steps = running.run_dir, running.job.recipe.training.steps
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
        measured = loop.evaluated(running)
        state = running.engine.full_state()
        became = collectives.all_or_none(lambda: running.embeddings.said_of(state), running.world)
        if running.log:
            with explain_disk_errors(run_dir):
                finish(running, running.log, state, measured, became, time.perf_counter() - started)
                run_folder.set_state(run_dir, "finished", step=progress.step, steps=steps)


def finish(
    running: loop.Running,
    log: metrics.RunLog,
    state: dict[str, torch.Tensor],
    measured: heldout.HeldOut,
    became: str,
    seconds: float,
) -> None:
    """Write the picture, the export and its card; the first rank's last act."""
    this, world, unigram, progress = running.job, running.world, running.unigram, running.progress
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
            "token embeddings": became,
            "tokens seen or stepped over": f"{progress.consumed_rows * recipe.data.seq_len:,}",
            "time": f"{text.duration(seconds)} on {world.size} ranks, since the last start",
        },
        f"{sources}: {manifest.count('train', 'documents'):,} documents and {manifest.count('train', 'tokens'):,} "
        f"tokens for training, {manifest.count('heldout', 'documents'):,} documents held out.",
        "deepspeed scaler/train.py --recipe recipe.yaml --deepspeed_config ds_config.json",
        str(this.data.tokenizer.mask_token),
    )
    folder = log.run_dir / "export"
    export(state, build.build(this.config, recipe.seed), this.data.tokenizer, card, folder)
    running.say(
        f"{became}\ndone in {text.duration(seconds)}: held-out loss {measured.loss:.3f}, "
        f"{unigram - measured.loss:.2f} nats under the unigram entropy\n"
        f"  {picture}\n  {folder}\n"
        f"  tensorboard --logdir {log.run_dir.parent}\n  python -m scaler.fill_mask {log.run_dir}"
    )

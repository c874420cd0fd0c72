"""Run a training on this rank: open the inputs, build the engine, restore, train, export."""

from __future__ import annotations

import argparse
import contextlib
import logging
import time
from dataclasses import replace
from pathlib import Path

import torch
from transformers import PreTrainedModel

from scaler.checkpoint.store import Checkpoints
from scaler.config.deepspeed import precision_of, untested_keys
from scaler.core import folders, slurm
from scaler.core.errors import explain_disk_errors
from scaler.core.files import write_json, write_whole
from scaler.core.log import RESULT, Heartbeat
from scaler.core.text import duration, quantity
from scaler.data import token_rows
from scaler.distributed import devices
from scaler.distributed.collectives import agree_or_raise, all_gather, all_or_none, total
from scaler.distributed.world import LIMIT_SECONDS, World
from scaler.engine import process_group
from scaler.engine.engine import Engine
from scaler.engine.engine import check as check_ds_config
from scaler.evaluation import heldout
from scaler.model import folder as model_folder
from scaler.model import parameters
from scaler.model.masked_lm import MaskedLM
from scaler.training import environment, finish, loop, resume, run_folder
from scaler.training.job import Job, resolve, starting_point
from scaler.training.metrics import RunLog
from scaler.training.monitor import Monitor
from scaler.training.progress import Progress
from scaler.training.resume import CheckpointPolicy
from scaler.training.stop import StopRequests
from scaler.training.watchdog import Watchdog

logger = logging.getLogger(__name__)


def run(arguments: argparse.Namespace, world: World) -> None:
    """Run a whole training on this rank. Every rank calls it.

    Nothing but the lock is written before inputs, engine and checkpoint have shown that the run can start.
    """
    started = time.perf_counter()
    with Heartbeat("starting the process group") as heartbeat, contextlib.ExitStack() as holding:
        process_group.join(world)
        heartbeat.doing = "opening the data"
        job = open_inputs(arguments, world)
        if is_finished(job, world):
            return
        job = hold_folder(job, arguments.run_dir, holding, world)
        heartbeat.doing = "checking the data"
        check_inputs(job, world)

        heartbeat.doing = "building the model and the engine"
        network = build_network(job, world)
        describe_model(job, network)
        # before ZeRO-3 takes the model apart
        flops_per_row = parameters.flops_per_row(network, job.recipe.data.seq_len, job.recipe.masked_per_row(0.5))
        engine = build_engine(job, network, world)
        # The watchdog says more than an error of a collective, so it comes first: it waits for this time, and as long
        # again for the reports of others.
        process_group.set_limit(max(LIMIT_SECONDS, 3 * job.recipe.faults.hang_seconds))

        heartbeat.doing = "restoring the run"
        checkpoints = open_checkpoints(job, world)
        progress, resumed_at = restore_progress(job, engine, checkpoints, world, arguments.allow_changes)
        embeddings_before = engine.token_embeddings()

        folder = job.run_dir if world.is_first else None
        with run_folder.recording_failure(folder), StopRequests(folder) as requests:
            record_start(job, checkpoints, world, resumed_at)
            policy = CheckpointPolicy(engine, job, checkpoints, world, resumed_at)
            heartbeat.doing = "measuring the machine"
            monitor = open_monitor(job, engine, flops_per_row, world, resumed_at)
            describe_start(job, engine, world, time.perf_counter() - started)
            watchdog = Watchdog(job.run_dir, world, job.recipe.faults.hang_seconds)

            def watch(doing: str) -> None:
                watchdog.beat(doing)
                heartbeat.doing = f"step {progress.step + 1:,}: {doing}"

            engine.watch = checkpoints.watch = watch
            with watchdog:
                stopped_by = loop.train(job, world, engine, progress, policy, monitor, requests)
                if stopped_by:
                    finish.record_stop(job, progress, policy, monitor, stopped_by)
                else:
                    steps_done = progress.step
                    if steps_done < job.recipe.training.steps:
                        policy.go_to_best(progress)
                    heartbeat.doing = "evaluating and exporting the model"
                    finish.evaluate_and_export(
                        job, world, engine, embeddings_before, progress, steps_done, monitor, started
                    )
        checkpoints.close()
        engine.close()


# ---- before anything is written


def open_inputs(arguments: argparse.Namespace, world: World) -> Job:
    """Open recipe, DeepSpeed configuration and data."""
    return all_or_none(lambda: resolve(arguments, world), world)


def is_finished(job: Job, world: World) -> bool:
    """Return whether the run has ended before, with an export that is whole, and log where its model is."""
    export_folder = job.run_dir / model_folder.EXPORT

    def look() -> tuple[bool, str | None]:
        state = run_folder.state(job.run_dir) if world.is_first else {}
        if job.changes or state.get("state") != "finished":
            return False, None
        return True, model_folder.problem(export_folder, state.get("export", {}))

    finished, problem = all_gather(all_or_none(look, world), world)[0]
    if finished and problem is None:
        logger.log(
            RESULT, f"{job.run_dir}: this run is finished; its model is in {export_folder}; name another --run_dir"
        )
    if problem and world.is_first:
        logger.warning(f"{problem}; this run is finished, and its export has to be made again")
    return finished and problem is None


def hold_folder(job: Job, asked: Path | None, holding: contextlib.ExitStack, world: World) -> Job:
    """Keep other runs out of the run's folder while `holding` is open; return the job with that folder.

    Args:
        asked: the folder that the user names; None takes a new one.
    """
    held = run_folder.hold(asked, job.recipe.name)
    folder = all_or_none(lambda: holding.enter_context(held) if world.is_first else job.run_dir, world)
    return replace(job, run_dir=all_gather(folder, world)[0])


def check_inputs(job: Job, world: World) -> None:
    """Let DeepSpeed check its section, and verify the checksums of the data, each rank a part of the files."""
    all_or_none(lambda: check_ds_config(job.ds_config, job.ds_config_file), world)
    all_or_none(lambda: token_rows.verify(job.data.manifest, world.rank, world.size), world)


def build_network(job: Job, world: World) -> PreTrainedModel:
    """Build the model with the weights that training begins with."""
    unigram_counts = all_or_none(job.data.manifest.unigram_counts, world)
    return all_or_none(lambda: starting_point(job, unigram_counts), world)


def describe_model(job: Job, network: PreTrainedModel) -> None:
    """Log what trains and what does not."""
    count, trainable = parameters.count_parameters(network)
    table = parameters.render_table(parameters.what_trains(network, job.recipe.optimizer.weight_decay))
    logger.info(f"{job.run_dir}: {count:,} parameters, {trainable:,} of them trained\n{table}")


def build_engine(job: Job, network: PreTrainedModel, world: World) -> Engine:
    """Build the DeepSpeed engine around the model."""
    return all_or_none(lambda: Engine(MaskedLM(network), job.recipe.optimizer, job.ds_config), world)


def open_checkpoints(job: Job, world: World) -> Checkpoints:
    """Open the folder of checkpoints, without what a killed run left half-written."""
    keep = job.recipe.checkpoint
    checkpoints = Checkpoints(job.run_dir / "checkpoints", world, keep.keep_last, keep.keep_every)
    checkpoints.on_first_rank(checkpoints.folder.clear_partial)
    return checkpoints


def restore_progress(
    job: Job, engine: Engine, checkpoints: Checkpoints, world: World, allow_changes: bool
) -> tuple[Progress, int | None]:
    """Restore the newest whole checkpoint, if there is one; return where the run stands, and the checkpoint's step."""
    newest = checkpoints.newest()
    finished = all_or_none(lambda: run_folder.state(job.run_dir), world).get("state") == "finished"
    if newest is None:
        nothing = f"{job.run_dir}: this run is finished, and has no checkpoint to go on from; name another --run_dir"
        agree_or_raise(nothing if finished else None, world)
        return Progress(), None
    progress = resume.restore(engine, job, newest, world, allow_changes)
    steps = job.recipe.training.steps
    too_few = f"training.steps={steps}, but {job.run_dir} has done {progress.step}; name another --run_dir"
    agree_or_raise(too_few if progress.step > steps else None, world)
    if job.changes:
        progress.evaluations_since_best = 0  # the patience begins anew
    return progress, progress.step


# ---- the start is accepted


def record_start(job: Job, checkpoints: Checkpoints, world: World, resumed_at: int | None) -> None:
    """Write the settings of the run and this start into its folder, and set damaged newer checkpoints aside."""
    hosts = all_gather(slurm.node_name(), world)
    all_or_none(lambda: write_settings(job, world, hosts, resumed_at or 0) if world.is_first else None, world)
    if resumed_at is not None:
        checkpoints.on_first_rank(checkpoints.folder.set_aside_after, resumed_at)
    for change in job.changes:
        logger.info(f"changed, as asked for: {change}")


def write_settings(job: Job, world: World, hosts: list[str], step: int) -> None:
    """Write the files of a run folder; the recipe comes last, because it makes the folder a run's."""
    settings = {"seed": job.recipe.seed, "rows_xxh3": job.data.manifest.xxh3("train"), "ds_config": job.ds_config}
    settings["untested_ds_keys"] = untested_keys(job.ds_config_given)
    export_folder = job.run_dir / model_folder.EXPORT
    with explain_disk_errors(job.run_dir):
        if not job.changes and run_folder.state(job.run_dir).get("state") == "finished" and export_folder.exists():
            logger.info(f"the damaged export is now {folders.set_aside(export_folder)}")
        run_folder.set_state(job.run_dir, "running", step=step, steps=job.recipe.training.steps)
        run_folder.add_attempt(job.run_dir, environment.facts(world, hosts) | settings | {"changes": job.changes})
        write_json(job.run_dir / run_folder.DS_CONFIG, job.ds_config_given)
        write_whole(job.run_dir / run_folder.RECIPE, job.recipe.to_yaml())


def open_monitor(job: Job, engine: Engine, flops_per_row: float, world: World, resumed_at: int | None) -> Monitor:
    """Open the log, and measure what speed and loss are compared with: the machine's ceiling, the unigram entropy."""
    log = all_or_none(lambda: RunLog(job.run_dir, resumed_at) if world.is_first else None, world)
    device = devices.device(world)
    flops = devices.measure_matmul_flops(device, torch.bfloat16 if engine.bf16 else torch.float32)
    ceiling = float(total(torch.tensor(flops, device=device, dtype=torch.float64)))
    logger.info(f"matrix-multiply ceiling {ceiling / 1e9:,.0f} GFLOP/s on {quantity(world.size, 'rank')}")
    unigram_entropy = all_or_none(
        lambda: heldout.unigram_entropy(job.rows["heldout"], job.data.manifest.unigram_counts()), world
    )
    return Monitor(job, world, log, ceiling / flops_per_row, unigram_entropy)


def describe_start(job: Job, engine: Engine, world: World, seconds: float) -> None:
    """Log what is about to be trained, and how it is shared."""
    training, batch = job.recipe.training, job.batch
    logger.info(
        f"{quantity(world.size, 'rank')}, ZeRO-{engine.stage}, {precision_of(job.ds_config)}, "
        f"{quantity(training.steps, 'step')} of {training.rows} x {job.recipe.data.seq_len} tokens "
        f"({quantity(batch.micro_rows, 'row')} x {batch.accumulation} accumulation per rank); "
        f"started in {duration(seconds)}"
    )

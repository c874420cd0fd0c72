"""Save the engine's state in a checkpoint and restore it, with proof that what was read is what was saved."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.checkpoint.store import Checkpoints
from scaler.config import deepspeed as ds_config
from scaler.core.errors import ScalerError
from scaler.core.text import quantity
from scaler.data.batches import Batch
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.training.job import Job, check_changes
from scaler.training.progress import Progress

logger = logging.getLogger(__name__)
PROBE_ROWS = 8
# relative difference that the probe loss may have: other kernels sum in another order, bf16 keeps 8 bits
TOLERANCE = {"fp32": 1e-3, "bf16": 3e-2}


def probe_loss(engine: Any, batch: Batch, world: World) -> float:
    """Return the loss on a batch without dropout. Every rank must call it, with the same batch."""
    engine.train(False)
    with torch.no_grad():
        loss, _ = engine(batch.to(devices.device(world)))
    engine.train(True)
    return float(loss)


def restore(engine: Any, job: Job, path: Path, world: World, allow_changes: bool) -> Progress:
    """Read a checkpoint into the engine, whatever world size, ZeRO stage and precision wrote it.

    Afterwards the fingerprint of parameters and optimizer state must be the saved one, and so must the loss on the
    stored probe batch. Every rank must call it.

    Raises: ScalerError when it is another run's checkpoint, or what was read is not what was saved.
    """
    manifest = collectives.all_or_none(lambda: checkpoint_folder.read_manifest(path), world)
    for change in collectives.all_or_none(lambda: check_same_run(path, manifest, job, allow_changes), world):
        logger.info(f"changed, as asked for: {change}")
    progress = Progress.from_plain(manifest["progress"])
    progress.digest *= world.is_first  # each rank adds its own part to it, and saving sums them up
    collectives.all_or_none(
        lambda: checkpoint_format.fill(engine.state.shards(progress.updates), path, manifest), world
    )
    engine.state.apply_loaded(progress.updates)
    saved, now = manifest["precision"], ds_config.precision_of(job.ds_config)
    fingerprint = checkpoint_format.total_fingerprint(engine.state.shards(progress.updates), world)
    probe = collectives.all_or_none(lambda: Batch(**load_file(path / checkpoint_format.PROBE)), world)
    loss = probe_loss(engine, probe, world)

    def prove() -> None:
        for kind, expected in manifest["fingerprint"].items():
            if kind == checkpoint_format.MOMENTUM and kind not in fingerprint:
                continue  # switched off
            # parameters that do not train are in the run's precision
            if fingerprint.get(kind) != expected and (kind != checkpoint_format.FROZEN or saved == now):
                raise ScalerError(
                    f"{path}: {kind} has the fingerprint {fingerprint.get(kind)} once read, not {expected}"
                )
        bound = max(TOLERANCE[saved], TOLERANCE[now]) * max(1.0, abs(manifest["probe_loss"]))
        if not abs(loss - manifest["probe_loss"]) <= bound:
            raise ScalerError(
                f"{path}: the loss on the probe batch was {manifest['probe_loss']:.5f} when it was saved, and is "
                f"{loss:.5f}; this engine does not go on where that one stopped"
            )

    collectives.all_or_none(prove, world)
    stage = ds_config.zero_stage(job.ds_config)
    logger.info(
        f"resumed from {path}, saved by {quantity(manifest['ranks'], 'rank')} at ZeRO-{manifest['zero_stage']} in "
        f"{saved}, on {quantity(world.size, 'rank')} at ZeRO-{stage} in {now}: parameters and optimizer state are "
        f"those that were saved, probe loss {manifest['probe_loss']:.5f} then and {loss:.5f} now"
    )
    logger.debug(f"fingerprint of the parameters: {fingerprint[checkpoint_format.WEIGHT]}")
    return progress


class CheckpointPolicy:
    """The saving of a run: when it fails, and how the run returns to a checkpoint. All methods are collectives.

    Args:
        saved_at: step of the checkpoint that the run went on from, if any.

    Attributes:
        saved_at: step of the newest checkpoint that has all of the run's progress, or None.
        failed: failures to save in a row.
        on_saved: called with the step of each new checkpoint and the seconds that training waited for it.
    """

    def __init__(self, engine: Any, job: Job, checkpoints: Checkpoints, world: World, saved_at: int | None) -> None:
        self.engine, self.job, self.checkpoints, self.world = engine, job, checkpoints, world
        self.saved_at = saved_at
        self.failed = 0
        self._has_one = saved_at is not None
        self.on_saved: Callable[[int, float], None] = lambda step, stall_seconds: None
        self._stall_seconds = 0.0

    @property
    def written(self) -> bool:
        """Return whether this rank is writing nothing."""
        return self.checkpoints.done

    def begin(self, progress: Progress, asynchronous: bool) -> None:
        """Save the run where it stands; unless asynchronous, the checkpoint is whole when this returns."""
        self.commit()
        clock = time.perf_counter()
        job, reader = self.job, self.job.rows["heldout"]
        probe = reader.fixed(np.arange(min(PROBE_ROWS, len(reader.rows))))
        progress.digest = sum(collectives.all_gather(progress.digest, self.world)) % (1 << 64)
        about = {
            "step": progress.step,
            "progress": progress.to_plain(),
            "recipe": job.recipe.to_plain(),
            "tokenizer_xxh3": job.data.manifest.tokenizer_xxh3,
            "rows_xxh3": job.data.manifest.xxh3("train"),
            "ranks": self.world.size,
            "zero_stage": ds_config.zero_stage(job.ds_config),
            "precision": ds_config.precision_of(job.ds_config),
            "probe_loss": probe_loss(self.engine, probe, self.world),
        }
        self.checkpoints.begin(self.engine.state.shards(progress.updates), about, vars(probe), asynchronous)
        progress.digest *= self.world.is_first
        self.saved_at = progress.step
        self._stall_seconds = time.perf_counter() - clock
        if not asynchronous:
            self.commit()

    def finish(self, progress: Progress) -> None:
        """Save the run where it stands, unless its newest checkpoint is of this step."""
        self.commit()
        if self.saved_at != progress.step:
            self.begin(progress, asynchronous=False)

    def commit(self) -> None:
        """Make a checkpoint of what all ranks have written since `begin`, if anything.

        Raises: ScalerError after too many failures in a row; at once where there is no checkpoint yet.
        """
        if not self.checkpoints.pending:
            return
        clock, step = time.perf_counter(), cast(int, self.saved_at)
        problem = self.checkpoints.commit()
        self._stall_seconds += time.perf_counter() - clock
        if problem is None:
            self.failed, self._has_one = 0, True
            self.on_saved(step, self._stall_seconds)
            return
        self.failed, self.saved_at = self.failed + 1, None
        failure = f"the checkpoint of step {step} could not be saved: {problem}"
        if not self._has_one or self.failed >= self.job.recipe.faults.failed_saves:
            collectives.agree_or_raise(f"{failure}; {self.failed} in a row; training stopped", self.world)
        if self.world.is_first:
            every = self.job.recipe.checkpoint.every
            logger.warning(f"{failure}; the one before stays, and the next try is after {quantity(every, 'step')}")

    def go_back(self, progress: Progress, skip: int) -> None:
        """Return to the newest whole checkpoint but `skip`, and step over the rows read since."""
        self.commit()
        path = self.checkpoints.newest(skip)
        if path is None:
            problem = f"{self.checkpoints.folder.root}: there is no checkpoint to go back to; training stopped"
            collectives.agree_or_raise(problem, self.world)
            raise AssertionError(problem)
        before = restore(self.engine, self.job, path, self.world, allow_changes=True)
        before.consumed_rows = progress.consumed_rows
        progress.go_to(before)
        self.checkpoints.on_first_rank(self.checkpoints.folder.forget_after, progress.step)
        self.saved_at = None  # that checkpoint lacks the rows that were stepped over

    def go_to_best(self, progress: Progress) -> None:
        """Return to the checkpoint of the lowest held-out loss, if it is there, after an early stop."""
        evaluations = quantity(progress.evaluations_since_best, "evaluation")
        logger.info(f"stopped early: {evaluations}, and none under {progress.best_loss}")
        if progress.best_step is None:
            return
        path = self.checkpoints.folder.path(progress.best_step)
        problem = self.checkpoints.damage(path)
        if problem is not None:
            if self.world.is_first:
                logger.warning(f"{problem}; the last weights are taken and not the best")
            return
        progress.go_to(restore(self.engine, self.job, path, self.world, allow_changes=True))


def check_same_run(path: Path, manifest: dict[str, Any], now: Job, allow_changes: bool) -> list[str]:
    """Check that a checkpoint is one of the job's run; return allowed changes of the data, which no recipe names.

    Raises: ScalerError when it is of another recipe, model, tokenizer or data than the job.
    """
    origin = path / "manifest.json"
    if manifest["tokenizer_xxh3"] != now.data.manifest.tokenizer_xxh3:
        raise ScalerError(
            f"{origin}: made with the tokenizer {manifest['tokenizer_xxh3'][:8]}, but {now.recipe.tokenizer_folder} is "
            f"{now.data.manifest.tokenizer_xxh3[:8]}; bring that one back, or name another --run_dir"
        )
    check_changes(origin, manifest["recipe"], now.recipe.to_plain(), allow_changes)
    rows = now.data.manifest.xxh3("train")
    if manifest["rows_xxh3"] == rows:
        return []
    if not allow_changes:
        raise ScalerError(
            f"{origin}: trained on other rows than {now.recipe.rows_folder} holds; bring those back, name another "
            "--run_dir, or add --allow_changes"
        )
    return [f"rows of {now.recipe.rows_folder}: {manifest['rows_xxh3'][:8]} -> {rows[:8]}"]

"""Measure the gradient noise scale of a run at its checkpoints."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.checkpoint.format import FROZEN, WEIGHT, ParameterShard
from scaler.config import command_line, recipe
from scaler.core.board import Board
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.data import order, prepared
from scaler.data.batches import Batch, RowReader
from scaler.distributed import collectives, devices
from scaler.distributed.world import World
from scaler.model import build, masked_lm, parameters
from scaler.planning import critical_batch
from scaler.planning.critical_batch import LEAST_BATCHES, Estimate, Record

# A folder of its own: of several files in one folder TensorBoard reads none further once there is a newer one.
BOARD = Path("tensorboard") / "noise_scale"


class Run:
    """A run's model and training rows, whose gradients are measured.

    Raises: ScalerError if there is no run, no checkpoint or no data.

    Attributes:
        recipe: of the run.
        checkpoints: that are there, the oldest first.
        reader: of the training rows.
        masked: positions a row, at the checkpoint that was loaded last; before, at the first step.
        network, trained: the model, and its parameters that train.
    """

    def __init__(self, run_dir: Path, device: torch.device) -> None:
        path = command_line.run_recipe(run_dir)
        if path is None:
            raise ScalerError(
                f"{run_dir}: no run here (no {command_line.RECIPE_FILE}); name one such as runs/quickstart"
            )
        self.recipe, self.device = recipe.load(str(path)), device
        self.checkpoints = checkpoint_folder.found(run_dir / "checkpoints")[::-1]
        if not self.checkpoints:
            raise ScalerError(f"{run_dir}: no checkpoint here; measure once the run has saved one")
        self.data = data = prepared.open_prepared(self.recipe)
        config = build.configuration_of(self.recipe, data.vocabulary)
        self.reader: RowReader = data.rows("train", self.recipe, build.first_position(config))
        self.masked = self.recipe.masked_per_row(0.0)
        self.network = masked_lm.MaskedLM(build.from_recipe(self.recipe, config)).to(device).train()
        self.trained = [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def load(self, path: Path) -> dict[str, Any] | None:
        """Load the weights of a checkpoint and return its manifest; None if the run has just removed it.

        Raises: ScalerError when it is damaged, or was trained on other rows than there are now.
        """
        try:
            manifest = checkpoint_folder.read_manifest(path)
            for record in manifest["files"]:
                checkpoint_folder.check_file(path / record["name"], record)
            ours = self.data.manifest.tokenizer_xxh3, self.data.manifest.xxh3("train")
            if (manifest["tokenizer_xxh3"], manifest["rows_xxh3"]) != ours:
                raise ScalerError(
                    f"{path}: trained on other rows than {self.recipe.rows_folder} holds now, or with another "
                    "tokenizer; bring those back"
                )
            shards = [
                ParameterShard(name, 0, p.numel(), {WEIGHT if p.requires_grad else FROZEN: p.data.view(-1)})
                for name, p in self.network.model.named_parameters()
            ]
            checkpoint_format.fill(shards, path, manifest)
        except (ScalerError, OSError):
            if path.is_dir():
                raise
            return None
        for kind, found in checkpoint_format.sum_up([checkpoint_format.fingerprint(shards)]).items():
            if found != manifest["fingerprint"][kind]:
                raise ScalerError(f"{path}: {kind} has the fingerprint {found} once read; the checkpoint is damaged")
        self.masked = self.recipe.masked_per_row(manifest["progress"]["step"] / self.recipe.training.steps)
        return manifest

    def batch(self, first: int, rows: int) -> Iterator[Batch]:
        """Return the next `rows` rows of a run that has consumed `first`, as micro-batches of its recipe."""
        most, end = self.recipe.training.max_micro_rows, first + rows
        return (self.reader.at(start, min(most, end - start), self.masked) for start in range(first, end, most))

    def gradient(self, first: int, rows: int) -> list[torch.Tensor]:
        """Return the gradient of the mean loss of those rows, for each trained parameter."""
        torch.manual_seed(int(order.key(self.recipe.seed, first) >> 1))  # of dropout, whichever rank it is
        self.network.zero_grad()
        for some in self.batch(first, rows):
            loss, _ = self.network(some.to(self.device))
            (loss * len(some.labels) / rows).backward()  # all rows have equally many masked positions
        return [torch.zeros_like(p) if p.grad is None else p.grad for p in self.trained]

    def noise_at(self, path: Path, batches: int, rows: int, world: World) -> Record | None:
        """Measure the noise scale at a checkpoint; None if the run has just removed it. Collective."""
        clock = time.perf_counter()
        manifest = collectives.all_or_none(lambda: self.load(path), world)
        there = collectives.all_gather(manifest is not None, world)
        if manifest is None or not all(there):
            return None
        first = int(manifest["progress"]["consumed_rows"])
        numbers = range(first, first + batches * rows, rows)
        estimate = measure(lambda number: self.gradient(numbers[number], rows), self.trained, batches, rows, world)
        tokens = sum(int((some.segment_ids > 0).sum()) for some in self.batch(first, batches * rows))
        return Record(
            **dataclasses.asdict(estimate),
            step=int(manifest["step"]),
            training_rows=self.recipe.training.rows,
            batches=batches,
            batch_rows=rows,
            tokens_per_row=tokens / (batches * rows),
            seconds=time.perf_counter() - clock,
        )


def measure(
    gradient_of: Callable[[int], Sequence[torch.Tensor]],
    like: Sequence[torch.Tensor],
    batches: int,
    rows: int,
    world: World,
) -> Estimate:
    """Estimate the noise scale from the gradients of batches of `rows` rows, divided among the ranks. Collective.

    Each gradient is taken twice, because the standard error needs its product with the mean of all, and to keep them
    would take as many times the memory of the model.

    Args:
        gradient_of: the gradient of a batch by its number, always the same; in tensors that may change afterwards.
        like: tensors of the same shapes.
    """
    mine = range(world.rank, batches, world.size)
    mean = [torch.zeros_like(part) for part in like]
    squares, products = np.zeros(batches), np.zeros(batches)
    for number in mine:
        parts = gradient_of(number)
        squares[number] = _square(parts)
        for total, part in zip(mean, parts, strict=True):
            total.add_(part, alpha=1 / batches)
    mean = [collectives.total(part) for part in mean]
    for number in mine:
        pairs = zip(gradient_of(number), mean, strict=True)
        products[number] = sum(float(torch.dot(part.flatten(), whole.flatten())) for part, whole in pairs)
    squares, products = (np.sum(collectives.all_gather(of_rank, world), axis=0) for of_rank in (squares, products))
    diverged = f"the gradient of {rows} rows is not finite because the run diverges; lower its learning rate"
    collectives.agree_or_raise(None if np.isfinite(squares).all() else diverged, world)
    return critical_batch.estimate(squares, products, _square(mean), rows)


def _square(parts: Sequence[torch.Tensor]) -> float:
    return sum(float(parameters.square(part)) for part in parts)


def keep(run_dir: Path, record: Record) -> None:
    """Add a measurement to those of the run, instead of an earlier one at its step; write all for TensorBoard."""
    by_step = {**{old.step: old for old in critical_batch.read(run_dir)}, record.step: record}
    records = [by_step[step] for step in sorted(by_step)]
    with explain_disk_errors(run_dir):
        critical_batch.write(run_dir, records)
        shutil.rmtree(run_dir / BOARD, ignore_errors=True)
        board = Board(run_dir / BOARD)
        for one in records:
            board.add_scalar("noise_scale/gradient_square", one.gradient, one.step)
            board.add_scalar("noise_scale/noise", one.noise, one.step)
            if one.rows is not None:
                board.add_scalar("noise_scale/rows", one.rows, one.step)
                board.add_scalar("noise_scale/rows_standard_error", one.rows_error, one.step)
                board.add_scalar("noise_scale/tokens", one.rows * one.tokens_per_row, one.step)
        board.close()


def render(record: Record) -> str:
    """Format a measurement as a line."""
    gradient = f"|G|^2 {record.gradient:.3g} ± {record.gradient_error:.1g}"
    noise = f"tr(Sigma) {record.noise:.3g} ± {record.noise_error:.1g}"
    if record.rows is None:
        said = f"more batches are needed (--batches {4 * record.batches})"
    else:
        said = f"{record.rows:,.0f} ± {record.rows_error:,.0f} rows, {record.rows * record.tokens_per_row:,.0f} tokens"
    return f"step {record.step:>7,} | {said} | {gradient} | {noise} | {record.seconds:.0f} s"


def run(arguments: argparse.Namespace, world: World) -> None:
    """Measure the requested checkpoints, and save and print the results. Collective."""
    run_dir, batches, rows = arguments.run_dir, arguments.batches, arguments.rows

    def opened() -> Run:
        found = Run(run_dir, devices.device(world))
        if batches < LEAST_BATCHES:
            more = f"give {LEAST_BATCHES} or more, because their gradients are compared"
            raise ScalerError(f"--batches {batches}: {more}")
        if rows < 1:
            raise ScalerError(f"--rows {rows}: give 1 or more")
        if batches * rows > (there := len(found.reader.rows)):
            once = f"the run has {there:,} training rows, and each counts once; lower one of them"
            raise ScalerError(f"--batches {batches} --rows {rows}: {once}")
        critical_batch.read(run_dir)  # before the work, because it may be damaged
        return found

    this = collectives.all_or_none(opened, world)
    records = []
    for path in collectives.all_gather(this.checkpoints, world)[0][-1 if arguments.steps == "last" else 0 :]:
        record = this.noise_at(path, batches, rows, world)
        if record is None:
            if world.is_first:
                print(f"{path}: removed by the run in the meantime; left out", file=sys.stderr, flush=True)
            continue
        records.append(record)
        collectives.all_or_none(functools.partial(keep, run_dir, record) if world.is_first else lambda: None, world)
        if world.is_first and not arguments.json:
            print(render(record), flush=True)
    gone = f"{run_dir}: its checkpoints were removed while they were read; raise checkpoint.keep_last"
    collectives.agree_or_raise(None if records else gone, world)
    if world.is_first and arguments.json:
        print(json.dumps([dataclasses.asdict(record) for record in records], indent=2))
    elif world.is_first:
        print(summary(run_dir))


def summary(run_dir: Path) -> str:
    """Format the critical batch over the training."""
    records = critical_batch.read(run_dir)
    critical, batch = critical_batch.over_training(records), records[-1].training_rows
    if critical is None:
        return f"{run_dir}: more batches are needed at every checkpoint"
    steps = [f"{record.step:,}" for record in records if record.rows is not None]
    recipe_file = run_dir / command_line.RECIPE_FILE
    return (
        f"critical batch over steps {', '.join(steps)}: {critical:,.0f} rows; the run has {batch}\n"
        f"  {run_dir / critical_batch.FILE}\n"
        f"  scaler plan --weak --noise_scale {run_dir} --recipe {recipe_file} --hardware ..."
    )

"""Turn a command line into a job: read recipe, DeepSpeed configuration, data and run folder, and make them agree."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from scaler.config import deepspeed as ds_config
from scaler.config import recipe
from scaler.config.batch import SolvedBatch, solve_batch
from scaler.config.command_line import chosen_recipe, load_run_recipe, prepare_command, run_recipe
from scaler.config.deepspeed import DEFAULT_DS_CONFIG
from scaler.config.recipe import Recipe
from scaler.config.typed import differences
from scaler.core.errors import ScalerError
from scaler.data import prepared, word_vectors
from scaler.data.batches import RowReader
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.model import build, embeddings, initialisation
from scaler.training import run_folder

# Settings that do not change what is learned may differ between two starts of a run ...
FREE = (
    *("name", "checkpoint", "faults", "training.log_every", "training.evaluate_every", "training.max_micro_rows"),
    *("training.patience", "data.folder", "data.text_folder"),  # their content is compared by its checksums
)
# ... and others cannot change at all.
FIXED = ("model", "data.seq_len", "tokenizer", "optimizer.name", "optimizer.frozen_embeddings")


@dataclass(frozen=True)
class Request:
    """A checked request for a training, without the data.

    Attributes:
        recipe: the experiment.
        ds_config_file, ds_config_given: the DeepSpeed configuration as given.
        ds_config: the same with every "auto" filled in.
        batch: a step's rows, split into ranks, micro-batches and accumulation.
        run_dir: folder of the run, which may have begun there before.
        changes: what differs from the recipe that the run began with, as "key: old -> new".
        prepare: the command that prepares the data.
    """

    recipe: Recipe
    ds_config_file: Path
    ds_config_given: dict[str, Any]
    ds_config: dict[str, Any]
    batch: SolvedBatch
    run_dir: Path
    changes: tuple[str, ...]
    prepare: str


@dataclass(frozen=True)
class Job(Request):
    """A training with all that is known before its first step.

    Attributes:
        data, rows: the opened data, and its rows of "train" and "heldout".
        config: configuration of the model.
    """

    data: prepared.Prepared
    config: Any
    rows: dict[str, RowReader]

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of an optimizer step, counted from 0."""
        recipe = self.recipe
        return recipe.schedule.learning_rate(step, recipe.training.steps, recipe.optimizer.learning_rate)

    def masked_per_row(self, step: int) -> int:
        """Return the number of masked positions of each row in an optimizer step, counted from 0."""
        return self.recipe.masked_per_row(step / self.recipe.training.steps)


def read_request(arguments: argparse.Namespace, world: World) -> Request:
    """Read recipe and DeepSpeed configuration, and check that they agree. Raises ScalerError where they do not.

    In the folder of a run its own recipe and configuration are the defaults; so is the configuration beside a recipe.
    """
    if arguments.ranks not in (None, world.size):
        which = "the only rank" if world.size == 1 else f"one of {world.size} ranks"
        raise ScalerError(
            f"--ranks {arguments.ranks}, but this is {which}, started by {world.launcher}; start them by "
            "srun, deepspeed, torchrun or mpiexec, or give the right number"
        )
    began_with = run_recipe(arguments.run_dir)
    name, settings = chosen_recipe(arguments)
    path = arguments.deepspeed_config or _configuration_beside(began_with or recipe.find(name))
    batch = solve_batch(settings.training.rows, world.size, settings.training.max_micro_rows)
    given = ds_config.read(path)
    native_bf16 = devices.bf16_is_native(devices.device(world))
    resolved = ds_config.resolve(given, path, settings, batch, native_bf16, arguments.allow_untested_ds_keys)
    changes: tuple[str, ...] = ()
    if began_with is not None:
        before = {**load_run_recipe(began_with.parent).to_plain(), **_of_learning(_configuration_beside(began_with))}
        now = {**settings.to_plain(), **_of_learning(path)}
        changes = check_changes(began_with, before, now, arguments.allow_changes)
    run_dir = run_folder.choose(arguments.run_dir, settings.name)
    return Request(settings, path, given, resolved, batch, run_dir, changes, prepare_command(arguments))


def resolve(arguments: argparse.Namespace, world: World) -> Job:
    """Read a command line, and open the data that it asks for. Raises ScalerError where they do not agree."""
    request = read_request(arguments, world)
    settings = request.recipe
    data = prepared.open_prepared(settings, f"run `{request.prepare}`")
    config = build.configuration_of(settings, data.vocabulary)
    rows = {split: data.rows(split, settings, build.first_position(config)) for split in ("train", "heldout")}
    return Job(**vars(request), data=data, config=config, rows=rows)


def _configuration_beside(recipe_file: Path) -> Path:
    beside = recipe_file.parent / run_folder.DS_CONFIG
    return beside if recipe_file.name == run_folder.RECIPE and beside.is_file() else DEFAULT_DS_CONFIG


def _of_learning(path: Path) -> dict[str, Any]:
    """Return the settings of a DeepSpeed configuration that change what is learned."""
    return {"gradient_clipping": ds_config.read(path).get("gradient_clipping", 0.0)}


def check_changes(origin: Path, before: dict[str, Any], now: dict[str, Any], allowed: bool) -> tuple[str, ...]:
    """Return how a run's recipe differs from the one that it began with, as "key: old -> new".

    Args:
        origin: the file with the recipe that it began with, which errors name.
        allowed: whether the user allows changes of what is learned.

    Raises: ScalerError for changes that are not allowed, and for those that no run can make.
    """
    found = differences(recipe.compared(before), recipe.compared(now))
    changes = {key: pair for key, pair in found.items() if not _within(key, FREE)}
    for key, (old, new) in changes.items():
        if _within(key, FIXED):
            raise ScalerError(f"{origin}: the run has {key}={old!r}, and not {new!r}; name another --run_dir")
        if not allowed:
            raise ScalerError(
                f"{origin}: the run began with {key}={old!r}, and now it is {new!r}; go on with the old value, name "
                "another --run_dir, or add --allow_changes"
            )
    return tuple(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def _within(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def vectors(job: Job) -> word_vectors.WordVectors:
    """Open and verify the word vectors that the token embeddings start from.

    Raises: ScalerError when they do not belong to data and model.
    """
    folder = job.recipe.word2vec_folder
    found = word_vectors.read(folder, job.data.manifest.tokenizer_xxh3, embeddings.width(job.config))
    for key, (made, wanted) in differences(found.settings, job.recipe.to_plain()["word2vec"]).items():
        raise ScalerError(f"{folder}: made with word2vec.{key}={made!r}, not {wanted!r}; run `scaler prepare` again")
    return found


def starting_point(job: Job, unigram_counts: np.ndarray) -> PreTrainedModel:
    """Build the model that training begins with, the same on every rank."""
    settings = job.recipe
    network = build.from_recipe(settings, job.config)
    if settings.initialisation.word2vec:
        initialisation.start_from_vectors(network, vectors(job).vectors)
    if settings.initialisation.unigram_bias:
        initialisation.start_from_unigram(network, unigram_counts)
    if settings.initialisation.neighbour_heads:
        initialisation.look_at_neighbours(network, settings.initialisation.neighbour_heads)
    return network

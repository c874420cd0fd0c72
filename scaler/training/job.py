"""From a command line to a job: recipe, engine's settings, data and run folder, and that they agree."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from scaler.config import batch as ds_config
from scaler.config import deepspeed as config_deepspeed
from scaler.config import recipe
from scaler.config.command_line import chosen_recipe, prepare_command, run_recipe
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

# Settings that decide nothing of what is learned may change from one start of a run to the next ...
FREE = (
    *("name", "checkpoint", "faults", "training.log_every", "training.evaluate_every", "training.max_micro_rows"),
    *("training.patience", "data.folder", "data.text_folder"),  # whose content is compared by its checksums
)
# ... and others cannot change at all.
FIXED = ("model", "data.seq_len", "tokenizer", "optimizer.name", "optimizer.frozen_embeddings")


@dataclass(frozen=True)
class Request:
    """What a command line asks for, checked, without the data.

    Attributes:
        recipe: the experiment.
        ds_config_file, asked: the DeepSpeed configuration as given; `resolved` has its "auto" filled in.
        batch: as solved for the number of ranks.
        run_dir: the folder; a run may have begun there.
        changes: of the recipe since then, "key: old -> new".
        prepare: the command that prepares the data.
    """

    recipe: Recipe
    ds_config_file: Path
    asked: dict[str, Any]
    resolved: dict[str, Any]
    batch: ds_config.SolvedBatch
    run_dir: Path
    changes: tuple[str, ...]
    prepare: str


@dataclass(frozen=True)
class Job(Request):
    """All that is known before the first step.

    Attributes:
        data, rows: opened; the rows of "train" and "heldout".
        config: of the model.
    """

    data: prepared.Prepared
    config: Any
    rows: dict[str, RowReader]


def read_request(arguments: argparse.Namespace, world: World) -> Request:
    """Read recipe and DeepSpeed configuration, and make them agree. Raises ScalerError where they cannot.

    In the folder of a run its own recipe and configuration are the defaults; so is the configuration beside a recipe.
    """
    if arguments.ranks not in (None, world.size):
        raise ScalerError(
            f"--ranks {arguments.ranks}, but this is one of {world.size} ranks started by {world.launcher}; start them "
            "by srun, deepspeed, torchrun or mpiexec, or say the right number"
        )
    began_with = run_recipe(arguments.run_dir)
    name, settings = chosen_recipe(arguments)
    path = arguments.deepspeed_config or _configuration_beside(began_with or recipe.find(name))
    batch = ds_config.solve_batch(settings.training.rows, world.size, settings.training.max_micro_rows)
    asked = config_deepspeed.read(path)
    native_bf16 = devices.bf16_is_native(devices.device(world))
    resolved = config_deepspeed.resolve(asked, path, settings, batch, native_bf16, arguments.allow_untested_ds_keys)
    changes: tuple[str, ...] = ()
    if began_with is not None:
        before = {**recipe.load(str(began_with)).to_plain(), **_of_learning(_configuration_beside(began_with))}
        now = {**settings.to_plain(), **_of_learning(path)}
        changes = compare(began_with, before, now, arguments.allow_changes)
    run_dir = run_folder.choose(arguments.run_dir, settings.name)
    return Request(settings, path, asked, resolved, batch, run_dir, changes, prepare_command(arguments))


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
    """What a DeepSpeed configuration says of learning itself."""
    return {"gradient_clipping": config_deepspeed.read(path).get("gradient_clipping", 0.0)}


def compare(origin: Path, before: dict[str, Any], now: dict[str, Any], allowed: bool) -> tuple[str, ...]:
    """Where a run's recipe is another than it began with, as "key: old -> new".

    Args:
        origin: the file that says what it began with, for errors.
        allowed: changes of what is learned were asked for.

    Raises: ScalerError when there are changes that were not asked for, or that no run can take.
    """
    found = differences(before, now)
    changes = {key: pair for key, pair in found.items() if not _within(key, FREE)}
    for key, (old, new) in changes.items():
        if _within(key, FIXED):
            raise ScalerError(f"{origin}: the run has {key}={old!r}, and not {new!r}; name another --run_dir")
        if not allowed:
            raise ScalerError(
                f"{origin}: the run began with {key}={old!r}, and now it is {new!r}; go on with the old value, name "
                "another --run_dir, or say --allow_changes"
            )
    return tuple(f"{key}: {old!r} -> {new!r}" for key, (old, new) in changes.items())


def _within(key: str, sections: Iterable[str]) -> bool:
    return any(key == section or key.startswith(f"{section}.") for section in sections)


def vectors(job: Job) -> word_vectors.WordVectors:
    """The word vectors that the token embeddings start from, opened and verified. Raises ScalerError where they do not
    belong to data and model.
    """
    folder = job.recipe.word2vec_folder
    found = word_vectors.read(folder, job.data.manifest.tokenizer_xxh3, embeddings.width(job.config))
    for key, (made, wanted) in differences(found.settings, job.recipe.to_plain()["word2vec"]).items():
        raise ScalerError(
            f"{folder}: made with word2vec.{key}={made!r}, not {wanted!r}; run `python -m data_prep` again"
        )
    return found


def starting_point(job: Job, unigram_counts: np.ndarray) -> PreTrainedModel:
    """The model that training begins with, the same on every rank."""
    settings = job.recipe
    network = build.from_recipe(settings, job.config)
    if settings.initialisation.word2vec:
        initialisation.start_from_vectors(network, vectors(job).vectors)
    if settings.initialisation.unigram_bias:
        initialisation.start_from_unigram(network, unigram_counts)
    if settings.initialisation.neighbour_heads:
        initialisation.look_at_neighbours(network, settings.initialisation.neighbour_heads)
    return network

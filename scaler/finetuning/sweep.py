"""Run all learning rates with all seeds, keep the best model of each rate, and write the results."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from scaler.core import provenance
from scaler.core.cli import progress_beside
from scaler.core.errors import ScalerError, TryAgain, dispensable, explain_disk_errors
from scaler.core.files import checksum, flush, flush_folder, read_json, write_json, write_whole
from scaler.core.folders import set_aside
from scaler.distributed.collectives import all_gather, all_or_none, explaining_errors
from scaler.distributed.world import World, forget_launch
from scaler.finetuning import encoder, features, scores
from scaler.finetuning import folder as finetune_folder
from scaler.finetuning import report as finetune_report
from scaler.finetuning import trial as finetune_trial
from scaler.finetuning.examples import Reading
from scaler.finetuning.features import Encoded
from scaler.finetuning.splits import TEST, TRAIN, VALIDATION, Sources, Splits, load
from scaler.finetuning.trial import Settings
from scaler.model import exported, saving
from scaler.model import folder as model_folder

logger = logging.getLogger(__name__)
PACKAGES = ("accelerate", "datasets", "scikit-learn", "seqeval")  # beside those of every run
NO_SETTINGS = ("out", "local_rank", "json", "verbosity", "data", VALIDATION, TEST)  # for files, their checksums stand


def start(arguments: argparse.Namespace, world: World) -> None:
    """Join the ranks, read data and model, and run the sweep of a command line. Every rank calls it."""
    ranks = world.size > 1 or arguments.deepspeed_config is not None
    if ranks:
        from scaler.engine import process_group  # seconds for DeepSpeed, through which ranks meet

        process_group.join(world)
    elif torch.cuda.device_count() > 1:
        raise ScalerError("this machine has several GPUs: start a rank for each, or set CUDA_VISIBLE_DEVICES to one")
    else:
        forget_launch()  # Accelerate takes a variable that is left over, LOCAL_RANK=0 perhaps, for ranks that can meet
    try:
        with explaining_errors(world, f"lower --batch_size {arguments.batch_size}", "the same command goes on"):
            settings = all_or_none(lambda: settings_of(arguments, world), world)
            run(arguments, settings, all_or_none(lambda: splits_of(arguments), world), world)
    finally:
        if ranks:
            process_group.leave()


def _given(kind: Any, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the options of a command line that are fields of a dataclass."""
    return {name: value for name, value in vars(arguments).items() if name in kind.__dataclass_fields__}


def splits_of(arguments: argparse.Namespace) -> Splits:
    """Read the data that a command line names."""
    percent = {VALIDATION: arguments.validation_percent, TEST: arguments.test_percent}
    sources = Sources(train=arguments.data, percent=percent, **_given(Sources, arguments))
    return load(sources, Reading(**_given(Reading, arguments)))


def settings_of(arguments: argparse.Namespace, world: World) -> Settings:
    """Return what all trials share. Raises ScalerError for what cannot be trained with."""
    settings = Settings(source=exported.find_or_hub_id(arguments.model), **_given(Settings, arguments))
    finetune_trial.check(settings, world)
    return settings


def run(arguments: argparse.Namespace, settings: Settings, splits: Splits, world: World) -> None:
    """Run a sweep, or what is missing of it, and print the results. Every rank calls it."""
    tokenizer, max_length, encoded = all_or_none(lambda: _encoded(arguments, settings, splits), world)
    notes = [*splits.notes, *cut(encoded, max_length)]
    name = f"{encoder.name_of(settings.source)}-{settings.task}{'-from_scratch' * settings.from_scratch}"
    out: Path = arguments.out or Path("runs") / name
    identity = {
        **{name: value for name, value in vars(arguments).items() if name not in NO_SETTINGS},
        **{"model": settings.source, "model_files": all_or_none(lambda: encoder.identity(settings.source), world)},
        **{"data": splits.checksums, "max_length": max_length},
    }
    held: AbstractContextManager[Any] = all_or_none(
        lambda: finetune_folder.begin(out, identity) if world.is_first else nullcontext(), world
    )
    with held:
        wanted = [(rate, seed) for rate in arguments.learning_rates for seed in arguments.seeds]
        missing = all_or_none(lambda: _missing(out, wanted, settings.task) if world.is_first else [], world)
        missing = all_gather(missing, world)[0]
        with progress_beside(arguments.json):
            if world.is_first:
                sizes = ", ".join(f"{split} {len(examples):,}" for split, examples in splits.examples.items())
                labels = f"{len(splits.labels)} labels"
                print(f"{out}: {sizes}; {labels}; {len(missing)} of {len(wanted)} runs to do")
                print(*(f"  note: {note}\n" for note in notes), sep="", end="", flush=True)
            for rate, seed in missing:
                result = finetune_trial.run(settings, rate, seed, splits, encoded, tokenizer, out)
                keep = partial(_keep, out, *result, arguments, splits, tokenizer, max_length)
                all_or_none(keep if world.is_first else lambda: None, world)
        if world.is_first:
            if missing or not (out / finetune_folder.RESULTS).is_file():
                _finish(out, identity, splits, settings.task, notes)
            content = read_json(out / finetune_folder.RESULTS)
            paths = f"{out / finetune_folder.MODEL}, {out / finetune_folder.RESULTS}"
            print(json.dumps(content, indent=2) if arguments.json else f"{finetune_report.render(content)}\n  {paths}")


def _missing(out: Path, wanted: list[tuple[float, int]], task: str) -> list[tuple[float, int]]:
    """Return the runs that are not done. Those of the chosen rate count as not done where its model is lost."""
    records = [record for one in wanted if (record := finetune_folder.record(out, *one))]
    if len(records) < len(wanted):
        return [one for one in wanted if not finetune_folder.record_file(out, *one).is_file()]
    chosen, place = finetune_report.summary(records, task)["chosen"], out / finetune_folder.MODEL
    rate, problem = chosen["learning_rate"], _problem(place, records, chosen)
    if not problem or not _problem(finetune_folder.candidate(out, rate), records, chosen):
        return []
    logger.warning(f"{problem}; the runs of learning rate {rate:g} are done again, because the best of them is lost")
    with explain_disk_errors(out):
        # in this order, so that a call that is interrupted leaves neither results without a model nor half a choice
        (out / finetune_folder.RESULTS).unlink(missing_ok=True)
        if place.exists():
            logger.warning(f"what is left of the model is now {set_aside(place)}")
        again = [one for one in wanted if one[0] == rate]
        for one in again:
            finetune_folder.record_file(out, *one).unlink()
    return again


def _problem(place: Path, records: Sequence[Mapping[str, Any]], chosen: Mapping[str, Any]) -> str | None:
    """Return what is missing or damaged of the chosen run's model in a folder; None where it is whole."""
    (record,) = (record for record in records if all(record[key] == chosen[key] for key in chosen))
    return model_folder.problem(place, record.get("files", {}))


def _encoded(arguments: argparse.Namespace, settings: Settings, splits: Splits) -> tuple[Any, int, dict[str, Encoded]]:
    """Return the model's tokenizer, the longest text in tokens, and all splits as model input."""
    config = encoder.configuration(settings.source)
    tokenizer = encoder.tokenizer(settings.source, config)
    max_length = encoder.most_tokens(config, arguments.max_length, settings.source)
    encoded = {
        split: features.encode(examples, tokenizer, splits.labels, settings.task, max_length)
        for split, examples in splits.examples.items()
    }
    return tokenizer, max_length, encoded


def cut(encoded: Mapping[str, Encoded], max_length: int) -> list[str]:
    """Return notes on the parts of the examples that the model never sees."""
    notes = []
    for split, of_split in encoded.items():
        if of_split.cut:
            fraction = of_split.cut / len(of_split.rows)
            notes.append(
                f"{split} examples that are cut at {max_length} tokens: {of_split.cut:,} of "
                f"{len(of_split.rows):,} ({fraction:.1%})"
            )
        if of_split.lost_words:
            notes.append(f'words of {split} without a token, which count as predicted "O": {of_split.lost_words:,}')
    return notes


def _keep(
    out: Path,
    record: dict[str, Any],
    model: PreTrainedModel,
    predicted: list[tuple[str, ...]],
    arguments: argparse.Namespace,
    splits: Splits,
    tokenizer: Any,
    max_length: int,
) -> None:
    """Save the model if it is the best of its rate on the validation examples so far; then the record."""
    rate, score = record["learning_rate"], scores.chosen_by(arguments.task)
    others = [finetune_folder.record(out, rate, seed) for seed in arguments.seeds]
    with explain_disk_errors(out):
        if all(record["validation"][score] > other["validation"][score] for other in others if other):
            beside, place = out / finetune_folder.CANDIDATES / "partial", finetune_folder.candidate(out, rate)
            shutil.rmtree(beside, ignore_errors=True)
            save(model, tokenizer, max_length, beside)
            record = {**record, "files": {path.name: checksum(path) for path in beside.iterdir()}}
            lines = (
                json.dumps({"example": example.where, "labels": example.labels, "predicted": of_it}, ensure_ascii=False)
                for example, of_it in zip(splits.examples[TEST], predicted, strict=True)
            )
            write_whole(beside / finetune_folder.PREDICTIONS, "".join(line + "\n" for line in lines))
            flush_folder(beside)
            shutil.rmtree(place, ignore_errors=True)
            beside.rename(place)
            flush(place.parent)
        write_json(finetune_folder.record_file(out, rate, record["seed"]), record)


def save(model: PreTrainedModel, tokenizer: Any, max_length: int, folder: Path) -> None:
    """Write a Transformers folder and read it back.

    Raises: ScalerError when the weights that are read back differ.
    """
    model = model.to("cpu")
    tokenizer.backend_tokenizer.no_truncation()
    saving.save(model, tokenizer, folder, max_length)
    again = type(model).from_pretrained(folder, local_files_only=True, dtype=model.dtype).state_dict()
    for name, weight in model.state_dict().items():
        if not torch.equal(weight, again[name]):
            raise ScalerError(f"{folder}: {name} reads back with other values; not saved; check the disk")


def _finish(out: Path, identity: dict[str, Any], splits: Splits, task: str, notes: list[str]) -> None:
    """Choose, write the model and the results, and draw; what an interrupted call has written stays."""
    place = out / finetune_folder.MODEL
    records = [
        finetune_folder.record(out, rate, seed) for rate in identity["learning_rates"] for seed in identity["seeds"]
    ]
    content = {
        **{"settings": identity, "labels": splits.labels},
        "examples": {split: len(examples) for split, examples in splits.examples.items()},
        **finetune_report.summary([record for record in records if record], task),
        "without_learning": scores.without_learning(splits.examples[TRAIN], splits.examples[TEST], splits.labels, task),
        **{"notes": notes, "runs": records},
        "packages": {**provenance.versions(), **{name: metadata.version(name) for name in PACKAGES}},
        **{"commit": provenance.commit(), "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z")},
    }
    with explain_disk_errors(out):
        chosen = finetune_folder.candidate(out, content["chosen"]["learning_rate"])
        if (chosen / finetune_folder.PREDICTIONS).is_file():
            (chosen / finetune_folder.PREDICTIONS).replace(out / finetune_folder.PREDICTIONS)
        if chosen.is_dir():
            command = f"scaler finetune {shlex.join(sys.argv[1:])}"
            tried = saving.tried(read_json(chosen / model_folder.CONFIG)["model_type"])
            base = encoder.name_of(identity["model"])
            write_whole(chosen / "README.md", finetune_report.model_card(content, out.name, base, command, tried))
            shutil.rmtree(place, ignore_errors=True)
            chosen.rename(place)
        flush(out)
        if problem := _problem(place, content["runs"], content["chosen"]):
            raise TryAgain(f"{problem}; the same command trains that model again")
        write_json(out / finetune_folder.RESULTS, content)
    shutil.rmtree(out / finetune_folder.CANDIDATES, ignore_errors=True)
    with dispensable(f"{out}: no pictures"):
        lines = (out / finetune_folder.PREDICTIONS).read_text(encoding="utf-8").splitlines()
        predicted = [tuple(json.loads(line)["predicted"]) for line in lines]
        finetune_report.draw(content, *scores.confusion(splits.examples[TEST], predicted, splits.labels, task), out)

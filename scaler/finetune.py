"""Fine-tune an exported encoder on labelled data: `python -m scaler.finetune runs/quickstart --data FILES`.

Learning rates are tried with all seeds; the validation examples choose one, and the test examples say what it is worth.
A sweep that was stopped goes on with the same command. docs/finetuning.md has the formats.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch

from scaler.core.cli import command
from scaler.core.errors import ScalerError
from scaler.distributed.collectives import all_or_none
from scaler.distributed.world import World, detect_world
from scaler.finetuning import sweep as finetune_sweep
from scaler.finetuning import trial as finetune_trial
from scaler.finetuning.examples import READERS, TASKS, Reading
from scaler.finetuning.splits import TEST, VALIDATION, Sources, Splits, load
from scaler.model import exported


def arguments_of(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.finetune", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a run, an export, any Transformers folder, or a hub id")
    data = parser.add_argument_group("data")
    data.add_argument("--data", nargs="+", required=True, help="training files, or a Hugging Face data set's id")
    data.add_argument("--validation", nargs="+", default=[], help="files (split off the training files)")
    data.add_argument("--test", nargs="+", default=[], help="files (split off the training files)")
    data.add_argument("--validation_percent", type=float, default=10.0, help="to split off, by hash of the text (10)")
    data.add_argument("--test_percent", type=float, default=10.0, help="likewise (10)")
    data.add_argument("--task", choices=TASKS, default=TASKS[0], help=f"({TASKS[0]})")
    data.add_argument("--format", choices=READERS, help="of all files (as their names say)")
    data.add_argument("--encoding", default="utf-8", help="of all files (utf-8)")
    data.add_argument("--text_field", help='("text"; for tokens "tokens")')
    data.add_argument("--label_field", help='("label"; for multilabel "labels", for tokens "tags")')
    data.add_argument("--skip_empty", action="store_true", help="leave empty texts out, and count them")
    data.add_argument("--hub_config", help="of a hub data set")
    data.add_argument("--hub_revision", help="a commit of a hub data set, so that it never changes")
    training = parser.add_argument_group("training")
    training.add_argument("--learning_rates", nargs="+", type=float, default=[5e-5], help="to choose from (5e-5)")
    training.add_argument("--seeds", nargs="+", type=int, default=[0], help="of head, order and dropout (0)")
    training.add_argument("--epochs", type=int, default=10, help="at most (10)")
    training.add_argument("--patience", type=int, default=3, help="epochs without a better validation score (3)")
    training.add_argument("--batch_size", type=int, default=32, help="of all ranks together (32)")
    training.add_argument("--max_length", type=int, help="tokens of a text (the model's positions, 512 at most)")
    training.add_argument("--precision", choices=["fp32", "bf16"], default="fp32", help="(fp32)")
    training.add_argument("--freeze_embeddings", action="store_true", help="keep the word embeddings as they are")
    training.add_argument("--from_scratch", action="store_true", help="random weights, to see what pretraining helps")
    training.add_argument("--deepspeed_config", help="train through DeepSpeed, ZeRO 0 to 2")
    parser.add_argument("--out", type=Path, help="new folder, or one to go on in (runs/MODEL-TASK)")
    parser.add_argument("--local_rank", help=argparse.SUPPRESS)  # the deepspeed launcher's
    arguments = parser.parse_args(given)
    for name in ("epochs", "patience", "batch_size"):
        if getattr(arguments, name) < 1:
            raise ScalerError(f"--{name} {getattr(arguments, name)}: 1 is the least")
    for rate in arguments.learning_rates:
        if not 0 < rate < 1:
            raise ScalerError(f"--learning_rates {rate}: 0 < rate < 1 is needed; 5e-5 is usual")
    for seed in arguments.seeds:
        if not 0 <= seed < 1 << 32:
            raise ScalerError(f"--seeds {seed}: 0 <= seed < 2**32 is needed")
    for name in ("learning_rates", "seeds"):
        setattr(arguments, name, list(dict.fromkeys(getattr(arguments, name))))
    return arguments


def splits_of(arguments: argparse.Namespace) -> Splits:
    """Read the data that the command line names."""
    how = Reading(
        arguments.task,
        arguments.format,
        arguments.encoding,
        arguments.text_field,
        arguments.label_field,
        arguments.skip_empty,
    )
    percent = {VALIDATION: arguments.validation_percent, TEST: arguments.test_percent}
    sources = Sources(
        tuple(arguments.data),
        tuple(arguments.validation),
        tuple(arguments.test),
        percent,
        arguments.hub_config,
        arguments.hub_revision,
    )
    return load(sources, how)


def settings_of(arguments: argparse.Namespace, world: World) -> finetune_trial.Settings:
    """What all runs share. Raises ScalerError for what cannot be trained with."""
    given = {
        name: value for name, value in vars(arguments).items() if name in finetune_trial.Settings.__dataclass_fields__
    }
    settings = finetune_trial.Settings(source=exported.find_or_hub_id(arguments.model), **given)
    finetune_trial.check(settings, world)
    return settings


@command
def main() -> None:
    """Run the command line."""
    arguments = arguments_of()
    world = detect_world()
    for package in ("accelerate", "seqeval"):
        if importlib.util.find_spec(package) is None:
            raise ScalerError(f"fine-tuning needs {package}; install it with `pip install '.[finetune]'`")
    ranks = world.size > 1 or arguments.deepspeed_config is not None
    if ranks:
        from scaler.engine import process_group  # seconds for DeepSpeed, through which ranks meet

        process_group.join(world)
    elif torch.cuda.device_count() > 1:
        raise ScalerError("this machine has several GPUs: start a rank for each, or set CUDA_VISIBLE_DEVICES to one")
    try:
        settings = all_or_none(lambda: settings_of(arguments, world), world)
        finetune_sweep.run(arguments, settings, all_or_none(lambda: splits_of(arguments), world), world)
    finally:
        if ranks:
            process_group.leave()


if __name__ == "__main__":
    main()

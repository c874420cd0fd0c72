"""Fine-tune an exported encoder on labelled data.

`scaler finetune runs/quickstart --data FILES` tries all learning rates with all seeds. The validation examples choose a
learning rate, and the test examples say what it is worth. The same command continues a sweep that was stopped.
docs/guides/finetuning.md has the formats.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

from scaler.config.command_line import ds_config
from scaler.core import log
from scaler.core.cli import Parser, at_least, command
from scaler.core.errors import ScalerError
from scaler.distributed.world import detect_world
from scaler.finetuning.examples import READERS, TASKS


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("finetune", __doc__)
    made.add_argument("model", metavar="MODEL", help="a run, an export, any Transformers folder, or a hub id")
    option = made.add_argument_group("data").add_argument
    option("--data", nargs="+", required=True, metavar="FILE", help="training files, or a Hugging Face data set's id")
    files = "files (default: split off the training files)"
    option("--validation", nargs="+", default=[], metavar="FILE", help=f"validation {files}")
    option("--test", nargs="+", default=[], metavar="FILE", help=f"test {files}")

    percent = "percent of the training texts to split off for {}, by hash of the text (default: 10)"
    option("--validation_percent", type=float, default=10.0, metavar="PERCENT", help=percent.format("validation"))
    option("--test_percent", type=float, default=10.0, metavar="PERCENT", help=percent.format("the test"))
    option("--task", choices=TASKS, default=TASKS[0], help="kind of labels (default: %(default)s)")
    option("--format", choices=READERS, help="format of all files (default: as their names say)")
    option("--encoding", default="utf-8", help="encoding of all files (default: %(default)s)")
    option("--text_field", metavar="FIELD", help='field with the text (default: "text"; for tokens "tokens")')
    label = 'field with the labels (default: "label"; for multilabel "labels", for tokens "tags")'
    option("--label_field", metavar="FIELD", help=label)
    option("--skip_empty", action="store_true", help="leave empty texts out, and count them")
    option("--hub_config", metavar="NAME", help="configuration of a hub data set (default: its only one)")
    revision = "commit of a hub data set, so that it never changes (default: the newest)"
    option("--hub_revision", metavar="COMMIT", help=revision)
    option = made.add_argument_group("training").add_argument
    rates = "learning rates to choose from (default: 5e-5)"
    option("--learning_rates", nargs="+", type=float, default=[5e-5], metavar="RATE", help=rates)
    option("--seeds", nargs="+", type=int, default=[0], help="seeds of head, order and dropout (default: 0)")
    option("--epochs", type=at_least(1), default=10, help="passes over the training examples at most (default: 10)")
    patience = "epochs without a better validation score, after which a run stops (default: 3)"
    option("--patience", type=at_least(1), default=3, metavar="EPOCHS", help=patience)
    option("--batch_size", type=at_least(1), default=32, help="examples in a batch of all ranks together (default: 32)")
    length = "longest text in tokens (default: the model's positions, 512 at most)"
    option("--max_length", type=int, metavar="TOKENS", help=length)
    option("--precision", choices=("fp32", "bf16"), default="fp32", help="of forward and backward pass (default: fp32)")
    option("--freeze_embeddings", action="store_true", help="keep the word embeddings as they are")
    option("--from_scratch", action="store_true", help="start from random weights, to see what pretraining helps")
    deepspeed = "train through DeepSpeed, ZeRO 0 to 2: a file, or a name in ds_configs/ (default: without DeepSpeed)"
    option("--deepspeed_config", type=ds_config, metavar="FILE", help=deepspeed)
    out = "folder of the results, new or to continue (default: runs/MODEL-TASK)"
    made.add_argument("--out", type=Path, metavar="DIR", help=out)
    made.add_json("the results")
    made.add_local_rank()
    return made


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    arguments = parser().parse(given)
    for rate in arguments.learning_rates:
        if not 0 < rate < 1:
            raise ScalerError(f"--learning_rates {rate}: 0 < rate < 1 is needed; 5e-5 is usual")
    for seed in arguments.seeds:
        if not 0 <= seed < 1 << 32:
            raise ScalerError(f"--seeds {seed}: 0 <= seed < 2**32 is needed")
    for name in ("learning_rates", "seeds"):
        setattr(arguments, name, list(dict.fromkeys(getattr(arguments, name))))
    if arguments.deepspeed_config is not None:
        arguments.deepspeed_config = str(arguments.deepspeed_config)  # the results keep it as JSON
    return arguments


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    for package in ("accelerate", "seqeval"):
        if importlib.util.find_spec(package) is None:
            raise ScalerError(f"fine-tuning needs {package}; install it with `pip install '.[finetune]'`")
    from scaler.finetuning.sweep import start

    world = detect_world()
    log.set_up(arguments.verbosity, world.rank)
    start(arguments, world)


if __name__ == "__main__":
    main()

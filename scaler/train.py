"""Pretrain a masked language model.

Every launcher starts it: `deepspeed scaler/train.py --deepspeed_config ds_configs/zero2.json`, torchrun, mpiexec, srun;
`scaler train` starts one rank. The same command with --run_dir continues a run that was stopped.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: find the package beside it, and let no file here shadow a library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

from scaler.config.command_line import run_parser
from scaler.core import log
from scaler.core.cli import Parser, command
from scaler.core.errors import EXIT_INTERRUPTED, ScalerError
from scaler.distributed.world import detect_world

FULL_MEMORY = "lower training.max_micro_rows, or take a ds_config of a higher ZeRO stage"
LOST_RANK = "the same command with --run_dir goes on from the last checkpoint"

logger = logging.getLogger("scaler.train")  # also where this file is __main__


def parser() -> Parser:
    """Return the command's parser."""
    made = run_parser("train", __doc__)
    made.add_argument("--dry_run", action="store_true", help="describe the run and write nothing, as `scaler dry-run`")
    made.add_json("the dry run")
    return made


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Parse and check the command line."""
    arguments = parser().parse(given)
    if arguments.json and not arguments.dry_run:
        raise ScalerError("--json: a training prints no JSON; add --dry_run")
    return arguments


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    world = detect_world()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if arguments.dry_run:
        from scaler.planning import dry_run  # which needs no DeepSpeed

        dry_run.show(arguments, world)
        return
    log.set_up(arguments.verbosity, world.rank, on_stdout=True)
    logger.info("starting; loading PyTorch and DeepSpeed")
    from scaler.distributed.collectives import explaining_errors
    from scaler.engine import process_group
    from scaler.training.run import run

    try:
        with explaining_errors(world, FULL_MEMORY, LOST_RANK):
            run(arguments, world)
    except KeyboardInterrupt:
        print("stopped by Ctrl-C at once; --run_dir goes on from the last checkpoint", file=sys.stderr, flush=True)
        os._exit(EXIT_INTERRUPTED)  # no waiting for a write to a disk that hangs
    finally:
        process_group.leave()


if __name__ == "__main__":
    main()

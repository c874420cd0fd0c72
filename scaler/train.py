"""Pretrain a masked LM: `deepspeed scaler/train.py --deepspeed_config ds_configs/zero2.json [--recipe NAME]`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

if not __package__:  # run as a file: find the package beside it, and let no file here shadow a library
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import torch

from scaler.config.command_line import parser as command_line_parser
from scaler.core.cli import command
from scaler.core.errors import EXIT_INTERRUPTED, ScalerError, TryAgain
from scaler.distributed.world import detect_world
from scaler.planning import dry_run
from scaler.training import job


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = command_line_parser("scaler/train.py", __doc__)
    parser.add_argument("--dry_run", action="store_true", help="say what the run would do, and touch nothing")
    parser.add_argument("--json", action="store_true", help="the dry run as JSON")
    parsed = parser.parse_intermixed_args(arguments)
    if parsed.json and not parsed.dry_run:
        parser.error("--json goes with --dry_run")
    return parsed


@command
def main() -> None:
    """Run the command line."""
    arguments = parse()
    world = detect_world()
    if not arguments.dry_run:
        from scaler.engine import process_group  # not for the dry run, which needs no DeepSpeed
        from scaler.training.run import run

        try:
            run(arguments, world)
        except KeyboardInterrupt:
            print("stopped by Ctrl-C at once; --run_dir goes on from the last checkpoint", file=sys.stderr, flush=True)
            os._exit(EXIT_INTERRUPTED)  # no waiting for a write to a disk that hangs
        except torch.OutOfMemoryError as error:
            raise ScalerError(
                f"rank {world.rank}: the GPU's memory is full ({str(error).splitlines()[0][:160]}); lower "
                "training.max_micro_rows, or take a ds_config of a higher ZeRO stage"
            ) from error
        except RuntimeError as error:
            if not process_group.is_lost_connection(error):
                raise
            raise TryAgain(
                f"rank {world.rank}: another rank has gone ({str(error).splitlines()[0][:200]}); "
                "the same command with --run_dir goes on from the last checkpoint"
            ) from error
        finally:
            process_group.leave()
    elif world.is_first:
        this = job.resolve(arguments, world)
        content = dry_run.describe(this)
        print(json.dumps(content, indent=2) if arguments.json else dry_run.render(content))


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()

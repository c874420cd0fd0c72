"""The gradient noise scale of a run at its checkpoints, also while it trains: `python -m scaler.noise_scale runs/NAME`.

It says up to which batch more rows save steps: the critical batch size, for `scaler.plan --weak --noise_scale`. Takes
gradients of the training rows that come next after each checkpoint, masked as in training and with its dropout, but in
fp32 and not clipped; under torchrun or srun the ranks share them. Results go into noise_scale.jsonl in the run's folder
and into its TensorBoard.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from scaler.core.cli import command
from scaler.core.errors import ScalerError
from scaler.distributed.world import detect_world
from scaler.planning.noise_scale import run


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.noise_scale", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run_dir", type=Path, metavar="runs/NAME")
    parser.add_argument("--rows", type=int, default=8, help="of a batch whose gradient is taken (%(default)s)")
    parser.add_argument("--batches", type=int, default=32, help="at each checkpoint (%(default)s)")
    parser.add_argument("--steps", choices=("all", "last"), default="all", help="checkpoints to measure (%(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs: a list, one object a checkpoint")
    arguments = parser.parse_args()
    world = detect_world()
    if world.size > 1:
        from scaler.engine import process_group  # not for one rank, which needs no DeepSpeed

        process_group.join(world)
    try:
        run(arguments, world)
    except torch.OutOfMemoryError as error:
        raise ScalerError(f"rank {world.rank}: the GPU's memory is full; lower --rows {arguments.rows}") from error
    finally:
        if world.size > 1:
            process_group.leave()


if __name__ == "__main__":
    main()

"""Measure the gradient noise scale of a run at its checkpoints, also while it trains.

`scaler noise-scale runs/NAME` says up to which batch more rows save steps: the critical batch size, for
`scaler plan --weak --noise_scale`. It takes gradients of the training rows that come next after each checkpoint, masked
as in training and with its dropout, but in fp32 and not clipped. Under torchrun or srun the ranks share them. Results
go into noise_scale.jsonl in the run's folder, and into its TensorBoard.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core import log
from scaler.core.cli import Parser, command
from scaler.distributed.world import detect_world


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("noise-scale", __doc__)
    made.add_argument("run_dir", type=Path, metavar="runs/NAME", help="folder of the run")
    made.add_argument("--rows", type=int, default=8, help="rows of each batch (default: %(default)s)")
    made.add_argument("--batches", type=int, default=32, help="batches at each checkpoint (default: %(default)s)")
    made.add_argument(
        "--steps", choices=("all", "last"), default="all", help="checkpoints to measure (default: %(default)s)"
    )
    made.add_json("a list with an object for each checkpoint")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    world = detect_world()
    log.set_up(arguments.verbosity, world.rank)
    from scaler.distributed.collectives import explaining_errors
    from scaler.planning.noise_scale import run

    if world.size > 1:
        from scaler.engine import process_group  # one rank needs no DeepSpeed

        process_group.join(world)
    try:
        with explaining_errors(world, f"lower --rows {arguments.rows}"):
            run(arguments, world)
    finally:
        if world.size > 1:
            process_group.leave()


if __name__ == "__main__":
    main()

"""Run by test_switches.py: the losses and norms of short trainings, with each thing that makes them fast on and off.

python switches_worker.py RECIPE FOLDER
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import ranks
from configs import configuration

from scaler.engine.patches import allocator, direct_collectives, gradient_norm
from scaler.model import masked_lm
from scaler.model.kernels import attention, cross_entropy


def nothing(*_: object) -> None:
    """Of what is off."""


def without_documents() -> None:
    attention.use = nothing


def without_blocks() -> None:
    cross_entropy.SCORES_AT_ONCE = 1 << 40


def without_sparse_lookups() -> None:
    masked_lm._look_up_sparsely = nothing


def without_one_pass() -> None:
    gradient_norm.give_to = nothing


def without_direct_exchange() -> None:
    direct_collectives.give_to = direct_collectives.reduce_by = nothing


def without_kept_memory() -> None:
    allocator.keep_freed_memory = nothing


OFF: dict[str, Callable[[], None]] = {
    "attention": without_documents,
    "head": without_blocks,
    "lookup": without_sparse_lookups,
    "gradient norm": without_one_pass,
    "exchange": without_direct_exchange,
    "allocator": without_kept_memory,
}


def all_off() -> None:
    for switch in OFF.values():
        switch()


def all_on() -> None:
    cross_entropy.SCORES_AT_ONCE = 1000  # of 400 entries: several blocks


def one_off(name: str) -> Callable[[], None]:
    def patch() -> None:
        all_on()
        OFF[name]()

    return patch


def main() -> None:
    recipe, folder = sys.argv[1], Path(sys.argv[2])
    sides = {"on": all_on, "off": all_off, **{f"without {name}": one_off(name) for name in OFF}}
    found = {}
    for precision in ("fp32", "bf16"):
        config = configuration(folder, "zero2", precision == "bf16")
        for name, patch in sides.items() if precision == "fp32" else list(sides.items())[:2]:
            run = folder / f"{precision} {name}"
            options = ["--recipe", recipe, "--run_dir", run, "--deepspeed_config", config, "training.log_every=1"]
            assert ranks.ended(ranks.forked(2, options, folder / "log.txt", patch)) == [0, 0], (
                folder / "log.txt"
            ).read_text()
            records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            found[run.name] = {
                "losses": [record["train_loss"] for record in records if "train_loss" in record],
                "norms": [record["train_gradient_norm"] for record in records if "train_gradient_norm" in record],
                "held out": [record["heldout_loss"] for record in records if "heldout_loss" in record],
            }
    (folder / "figures.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

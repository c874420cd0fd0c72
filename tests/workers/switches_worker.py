"""Run by test_switches.py: the losses and norms of short trainings, with each replacement of library code on and off.

python switches_worker.py RECIPE FOLDER
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import ranks
from configs import configuration
from on_disk import attempts, metric

from scaler.core import switches
from scaler.model.kernels import cross_entropy


def with_patches(given: str) -> Callable[[], None]:
    """Return what a rank calls before it trains."""

    def patch() -> None:
        os.environ[switches.VARIABLE] = given
        cross_entropy.SCORES_AT_ONCE = 1000  # so that the scores of 400 entries take several blocks

    return patch


def main() -> None:
    recipe, folder = sys.argv[1], Path(sys.argv[2])
    sides = {"all": "all", "none": "none"}
    sides |= {f"without {name}": ",".join(n for n in switches.NAMES if n != name) for name in switches.NAMES}
    found = {}
    for precision in ("fp32", "bf16"):
        config = configuration(folder, "zero2", precision == "bf16")
        for name, given in sides.items() if precision == "fp32" else list(sides.items())[:2]:
            run = folder / f"{precision} {name}"
            options = ["--recipe", recipe, "--run_dir", run, "--deepspeed_config", config, "training.log_every=1"]
            log = folder / "log.txt"
            assert ranks.ended(ranks.forked(2, options, log, with_patches(given))) == [0, 0], log.read_text()
            (attempt,) = attempts(run)
            series = {"losses": "train_loss", "norms": "train_gradient_norm", "held out": "heldout_loss"}
            found[run.name] = {what: metric(run, name) for what, name in series.items()}
            found[run.name]["patches"] = attempt["patches"]
    (folder / "figures.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()

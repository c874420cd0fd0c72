"""A run of the tiny recipe, and the noise scale of a copy of it as two ranks find it; see test_noise_scale.py.

python noise_worker.py RECIPE BATCHES FOLDER
"""

import json
import os
import shutil
import sys
from pathlib import Path

import ranks

from scaler import noise_scale


def measure(run_dir: Path, batches: str, log: Path) -> None:
    """On one of the ranks."""
    os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), 1)
    sys.argv = ["noise_scale", str(run_dir), "--batches", batches]
    noise_scale.main()


if __name__ == "__main__":
    recipe, batches, folder = *sys.argv[1:3], Path(sys.argv[3])
    run_dir, shared = folder / "run", folder / "shared"
    changes = ("checkpoint.every=6", "checkpoint.keep_every=6", "model.hidden_dropout_prob=0.1")
    trained = ranks.forked(1, ["--recipe", recipe, "--run_dir", run_dir, *changes], folder / "train.log")
    assert ranks.ended(trained) == [0], (folder / "train.log").read_text()
    shutil.copytree(run_dir, shared)
    ranks.call_on(2, measure, shared, batches, folder / "said.txt")
    figures = {"run": str(run_dir), "shared": str(shared), "said": (folder / "said.txt").read_text()}
    (folder / "figures.json").write_text(json.dumps(figures))

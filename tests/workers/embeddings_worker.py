"""Run by test_embeddings.py: trainings whose token embeddings are frozen or updated; what came of them, as JSON."""

from __future__ import annotations

import json
import signal
import sys
from pathlib import Path

import torch
from configs import configuration
from ranks import around, before_step, ended, forked, sends
from safetensors import safe_open

from scaler.checkpoint import folder as checkpoint_folder
from scaler.training import loop

STEPS = 12
SETTINGS = [f"training.steps={STEPS}", "training.evaluate_every=6", "checkpoint.every=6", "training.max_micro_rows=6"]
FROZEN = "optimizer.frozen_embeddings=true"
SENDS = ("all_reduce", "isend")


def counting(file: Path):
    """A patch: write down how many bytes the first rank sends in its third step."""
    moved = [0]

    def sent(inner, *arguments, **options):
        tensors = [some for some in (*arguments, *options.values()) if isinstance(some, torch.Tensor)]
        moved[0] += max((some.numel() * some.element_size() for some in tensors), default=0)
        return inner(*arguments, **options)

    def train_batch(inner, engine, this, progress, world):
        moved[0] = 0
        found = inner(engine, this, progress, world)
        if progress.step == 2 and world.is_first:
            file.write_text(str(moved[0]))
        return found

    patches = [*(around(torch.distributed, name, sent) for name in SENDS), around(loop, "train_batch", train_batch)]
    return lambda: [patch() for patch in patches]


def meddle(inner, engine, this, progress, world):
    """In place of `train_batch`: one number of the frozen matrix changes in the ninth step, on all ranks."""
    if progress.step == 8:
        engine.module.model.get_input_embeddings().weight.data[7, 3] += 1.0
    return inner(engine, this, progress, world)


def run(folder: Path, recipe: Path, *settings: str, config=(("zero2",),), patches=(lambda: None,)):
    """Train on two ranks, once for each patch, in one run's folder, with the configurations in turn."""
    folder.mkdir()
    statuses = []
    for number, patch in enumerate(patches):
        path = configuration(folder, *config[number % len(config)])
        arguments = ["--recipe", recipe, "--run_dir", folder / "run", "--deepspeed_config", path, *SETTINGS, *settings]
        statuses.append(ended(forked(2, arguments, folder / "log.txt", patch)))
    found = {"statuses": statuses, "said": (folder / "log.txt").read_text(), "run": str(folder / "run"), "stored": {}}
    if (folder / "traffic").is_file():
        found["traffic"] = int((folder / "traffic").read_text())
    for number, path in enumerate(checkpoint_folder.found(folder / "run" / "checkpoints")):
        for file in sorted(path.glob("rank_*.safetensors")) if number == 0 else ():
            with safe_open(file, framework="pt") as tensors:
                for key in tensors.keys():  # noqa: SIM118  (no mapping)
                    kind, _, rest = key.partition("/")
                    numbers = found["stored"].setdefault(rest.rpartition("/")[0], {})
                    numbers[kind] = numbers.get(kind, 0) + tensors.get_slice(key).get_shape()[0]
    return found


def main() -> None:
    recipe, folder = map(Path, sys.argv[1:])
    bf16 = ("zero2", True)
    stop = before_step(8, sends(signal.SIGTERM))
    cases: dict[str, tuple[tuple[str, ...], dict[str, object]]] = {
        "updated": ((), {"patches": [counting(folder / "updated" / "traffic")]}),
        "frozen": ((FROZEN,), {"patches": [counting(folder / "frozen" / "traffic")]}),
        "frozen_zero3": ((FROZEN,), {"config": [("zero3",)]}),
        "frozen_bf16": ((FROZEN,), {"config": [bf16]}),
        "frozen_stopped": ((FROZEN,), {"patches": [stop, lambda: None]}),
        "frozen_bf16_fp32": ((FROZEN,), {"patches": [stop, lambda: None], "config": [bf16, ("zero2",)]}),
        "thawed": ((FROZEN, "--allow_changes"), {"patches": [stop]}),
        "meddled": ((FROZEN,), {"patches": [around(loop, "train_batch", meddle)]}),
    }
    outcomes = {name: run(folder / name, recipe, *settings, **how) for name, (settings, how) in cases.items()}
    (folder / "figures.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()

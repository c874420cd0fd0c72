"""Run by test_resume_matrix.py on several ranks: checkpoints of every DeepSpeed configuration, saved and read back."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from parity_worker import build, make_batch, part, rate_of

from scaler import checkpoint, ds_config, engine, world
from scaler.recipe import load

ROWS, STEPS = 12, 3
PROBE = part(make_batch(99), 0, 2)


def start(recipe, path: Path, bf16: bool, here: world.World, seed: int):
    batch = ds_config.solve_batch(ROWS, here.size, 2)
    recipe = replace(recipe, training=replace(recipe.training, rows=ROWS, max_micro_rows=2), seed=seed)
    resolved = ds_config.resolve(ds_config.read(path), path, recipe, batch, native_bf16=bf16)
    network = build(recipe, bf16)
    if seed:  # what is read must come from the checkpoint
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.5)
    # one that does not train, as in the recipes of frozen embeddings
    network.model.get_submodule("roberta.embeddings.position_embeddings").weight.requires_grad_(False)
    return engine.Engine(network, recipe.optimizer, resolved), recipe, batch


def train(running, recipe, batch, here: world.World, steps) -> list[float]:
    losses = []
    for step in steps:
        total = torch.zeros(())
        first = here.rank * batch.micro_rows * batch.accumulation
        for micro in range(batch.accumulation):
            begin = first + micro * batch.micro_rows
            loss, _ = running(part(make_batch(step), begin, begin + batch.micro_rows))
            running.backward(loss)
            running.step(rate_of(recipe, step))
            total += loss.detach()
        losses.append(float(world.total(total)) / (batch.accumulation * here.size))
    return losses


def probe(running) -> float:
    running.train(False)
    with torch.no_grad():
        loss, _ = running(PROBE)
    running.train(True)
    return float(loss)


def main() -> None:
    mode, recipe_file, folder, *names = sys.argv[1:]
    here = world.detect()
    engine.join(here)
    folder, figures = Path(folder), {}
    for number, name in enumerate(names):
        *source, config, precision = name.split(":")
        recipe = load(recipe_file, ["optimizer.learning_rate=1e-3"])
        running, recipe, batch = start(recipe, Path(config), precision == "bf16", here, int(mode == "load"))
        if mode == "save":
            train(running, recipe, batch, here, range(STEPS))
            place = folder / f"{here.size}-{Path(config).stem}-{precision}"
            kept = checkpoint.Checkpoints(place, here, keep_last=1, keep_every=None)
            before = probe(running)
            kept.begin(running.pieces(STEPS), {"step": STEPS}, vars(PROBE), asynchronous=number % 2 == 0)
            after = train(running, recipe, batch, here, range(STEPS, 2 * STEPS))
            assert kept.commit() is None
            figures[place.name] = {"probe": before, "losses": after}
        else:
            place = folder / source[0]
            kept = checkpoint.Checkpoints(place, here, keep_last=1, keep_every=None)
            path = kept.newest(print)
            manifest = checkpoint.read_manifest(path)
            pieces = running.pieces(STEPS)
            checkpoint.fill(pieces, path, manifest)
            running.take_over(STEPS)
            same = checkpoint.total_fingerprint(running.pieces(STEPS), here) == manifest["fingerprint"]
            found = probe(running)
            losses = train(running, recipe, batch, here, range(STEPS, 2 * STEPS))
            figures[f"{source[0]} {here.size}-{Path(config).stem}-{precision}"] = {
                "same": same,
                "probe": found,
                "losses": losses,
            }
        kept.close()
        running.close()
    if here.is_first:
        (folder / f"{mode}-{here.size}.json").write_text(json.dumps(figures))
    engine.leave()


if __name__ == "__main__":
    main()

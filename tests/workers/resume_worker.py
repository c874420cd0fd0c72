"""Checkpoints of every DeepSpeed configuration, saved and read back at every world size; figures as JSON.

Run by test_resume_matrix.py for some pairs, and by `make resume-matrix` for all. Each world is a set of forked ranks.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from configs import CONFIGS
from parity_worker import build, engine_for, make_batch, micro_batches, part, rate_of
from ranks import call_on

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.checkpoint import store
from scaler.config.recipe import load
from scaler.distributed import collectives
from scaler.distributed.world import World, detect_world
from scaler.engine import process_group

STEPS = 3
PROBE = part(make_batch(99), 0, 2)
WORLDS = (1, 2, 3, 4)
WORLD_SECONDS = 3600.0  # seconds for one world, at most
SOME = {  # world -> its configurations; every pair is tried
    1: ("zero0:fp32",),
    2: ("zero2:fp32", "zero1:bf16"),
    3: ("zero3:fp32", "zero3:bf16"),
    4: ("zero2_offload:fp32",),
}
NAMES = ("zero0", "zero1", "zero2", "zero2_offload", "zero3")
ALL = dict.fromkeys(WORLDS, tuple(f"{name}:{precision}" for name in NAMES for precision in ("fp32", "bf16")))


def start(recipe, config: str, world: World, fresh: bool):
    """An engine of a model of which one matrix does not train, as in the recipes of frozen embeddings."""
    name, precision = config.split(":")
    network = build(recipe, precision == "bf16")
    if fresh:  # what is right afterwards must come from the checkpoint
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.mul_(0.5)
    network.model.get_submodule("roberta.embeddings.position_embeddings").weight.requires_grad_(False)
    return engine_for(recipe, CONFIGS / f"{name}.json", precision == "bf16", world, network)


def train(running, recipe, batch, world: World, steps, spoilt: int | None = None) -> list[float]:
    """Mean losses of the steps; on the last rank the loss of one of them can be made not a number."""
    losses = []
    for step in steps:
        total = torch.zeros(())
        for number, micro in enumerate(micro_batches(step, batch, world)):
            loss, _ = running(micro)
            bad = step == spoilt and world.rank == world.size - 1 and number == 0
            running.backward(loss * float("nan") if bad else loss)
            running.step(rate_of(recipe, step))
            total += loss.detach()
        losses.append(float(collectives.total(total)) / (batch.accumulation * world.size))
    return losses


def probe(running) -> float:
    running.train(False)
    with torch.no_grad():
        loss, _ = running(PROBE)
    running.train(True)
    return float(loss)


def save(recipe, folder: Path, config: str, world: World, asynchronous: bool):
    """Save after three steps, and train on; between them a step whose gradient is not a number changes nothing."""
    running, batch = start(recipe, config, world, fresh=False)
    train(running, recipe, batch, world, range(STEPS))
    kept = store.Checkpoints(folder / f"{world.size}-{config}", world, keep_last=1, keep_every=None)
    before = probe(running)
    kept.begin(running.state.shards(STEPS), {"step": STEPS}, vars(PROBE), asynchronous)
    fingerprint = checkpoint_format.total_fingerprint(running.state.shards(STEPS), world)
    train(running, recipe, batch, world, [50], spoilt=50)
    unmoved = checkpoint_format.total_fingerprint(running.state.shards(STEPS), world) == fingerprint
    after = train(running, recipe, batch, world, range(STEPS, 2 * STEPS))
    assert kept.commit() is None
    kept.close()
    running.close()
    return {"probe": before, "losses": after, "unmoved": unmoved}


def read(recipe, folder: Path, source: str, config: str, world: World):
    """Read a checkpoint into another engine, and train on."""
    running, batch = start(recipe, config, world, fresh=True)
    kept = store.Checkpoints(folder / source, world, keep_last=1, keep_every=None)
    path = kept.newest()
    manifest = checkpoint_folder.read_manifest(path)
    checkpoint_format.fill(running.state.shards(STEPS), path, manifest)
    running.state.apply_loaded(STEPS)
    found = checkpoint_format.total_fingerprint(running.state.shards(STEPS), world)
    differ = [kind for kind, expected in manifest["fingerprint"].items() if found[kind] != expected]
    figures = {"differ": differ, "probe": probe(running)}
    figures["losses"] = train(running, recipe, batch, world, range(STEPS, 2 * STEPS))
    kept.close()
    running.close()
    return figures


def work(recipe_file: str, folder: Path, names, sources) -> None:
    world = detect_world()
    process_group.join(world)
    recipe = load(recipe_file, ["optimizer.learning_rate=1e-3"])
    figures = {}
    for number, config in enumerate(names):
        if sources is None:
            figures[f"{world.size}-{config}"] = save(recipe, folder, config, world, asynchronous=number % 2 == 0)
        else:
            for source in sources:
                figures[f"{source} {world.size}-{config}"] = read(recipe, folder, source, config, world)
    if world.is_first:
        (folder / f"{'save' if sources is None else 'read'}-{world.size}.json").write_text(json.dumps(figures))
    process_group.leave()


def main() -> None:
    recipe_file, which, folder = sys.argv[1], {"some": SOME, "all": ALL}[sys.argv[2]], Path(sys.argv[3])
    for size, names in which.items():
        call_on(size, work, recipe_file, folder, names, None, seconds=WORLD_SECONDS)
    sources = [f"{size}-{config}" for size, names in which.items() for config in names]
    saved, found = {}, {}
    for size, names in which.items():
        call_on(size, work, recipe_file, folder, names, sources, seconds=WORLD_SECONDS)
        saved |= json.loads((folder / f"save-{size}.json").read_text())
        found |= json.loads((folder / f"read-{size}.json").read_text())
    (folder / "figures.json").write_text(json.dumps({"saved": saved, "read": found}))
    table(saved, found)


def table(saved: dict, found: dict) -> None:
    """Print every pair: probe loss when saved and once read, and how far the next three losses are apart."""
    for pair, figures in found.items():
        source, target = pair.split()
        then = saved[source]
        apart = max(abs(a - b) for a, b in zip(figures["losses"], then["losses"], strict=True))
        print(f"{source:<22} -> {target:<22} probe {then['probe']:.6f} {figures['probe']:.6f}  losses {apart:.1e}")


if __name__ == "__main__":
    main()

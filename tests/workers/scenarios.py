"""Inject faults into real trainings on forked ranks, one scenario after the other, and write what came of each.

    python scenarios.py RECIPE FOLDER_OF_ALONE|- NAME... OUT

Some scenarios go on from the run of the scenario `alone`, whose folder is given. test_survival.py judges the outcomes.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from configs import configuration, content_of
from limits import limit, wait_until
from on_disk import flip, records
from ranks import around, before_step, ended, forked, kill, sends
from tensorboard.summary.writer.record_writer import RecordWriter

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.config.recipe import load
from scaler.core import charts
from scaler.core.errors import ScalerError
from scaler.distributed.world import detect_world
from scaler.evaluation import heldout
from scaler.model import masked_lm
from scaler.training import loop, metrics, run_folder
from scaler.training import run as training_run

STEPS = 24
SETTINGS = [f"training.steps={STEPS}", "training.log_every=1", "training.evaluate_every=12", "checkpoint.every=6"]
SETTINGS += ["training.max_micro_rows=6", "checkpoint.keep_last=4", "objective.final_mask_probability=0.125"]


class Scene:
    """One scenario's folder, and starts of a run in it."""

    def __init__(self, folder: Path, recipe: Path) -> None:
        self.folder, self.recipe, self.log = folder, recipe, folder / "log.txt"
        folder.mkdir()

    def arguments(self, *settings: str, run: str = "run", config: str = "zero2") -> list[object]:
        """Those of a training."""
        path = configuration(self.folder, config)
        files = ["--recipe", self.recipe, "--run_dir", self.folder / run, "--deepspeed_config", path]
        return [*files, *SETTINGS, *settings]

    def start(self, *settings: str, ranks: int = 2, patch=lambda: None, **where: str):
        """Train, and return the ranks' exit statuses."""
        return ended(forked(ranks, self.arguments(*settings, **where), self.log, patch))

    def facts(self, *statuses: list[int | None], run: str = "run") -> dict[str, Any]:
        """What is there now."""
        folder = self.folder / run
        found: dict[str, Any] = {"statuses": statuses, "said": self.log.read_text()}
        for name in ("metrics.jsonl", "faults.jsonl"):
            found[name] = records(folder / name) if (folder / name).exists() else []
        for name in ("state.json", "environment.json"):
            found[name] = json.loads((folder / name).read_text()) if (folder / name).exists() else None
        found["checkpoints"] = [
            checkpoint_folder.step_of(path) for path in checkpoint_folder.found(folder / "checkpoints")
        ]
        with contextlib.suppress(ScalerError, IndexError):
            found["manifest"] = checkpoint_folder.read_manifest(checkpoint_folder.found(folder / "checkpoints")[0])
        exported = folder / "export" / "model.safetensors"
        found["exported"] = str(exported.parent) if exported.is_file() else None
        return found


# ---- left alone, and stopped politely


def started(*settings: str, **how: Any) -> Callable[[Scene], dict[str, Any]]:
    """A scenario: one start, with these settings."""
    return lambda scene: scene.facts(scene.start(*settings, **how))


def repeated(scene: Scene):
    """From the run folder's own recipe and configuration."""
    shutil.copytree(scene.folder.parent / "alone" / "run", scene.folder / "first")
    arguments = ["--recipe", scene.folder / "first" / "recipe.yaml", "--run_dir", scene.folder / "run"]
    return scene.facts(ended(forked(2, arguments, scene.log)))


def stopped(scene: Scene):
    """By each of the ways, one after the other, on another rank each time."""
    ways: list[tuple[int, Callable[[], None]]] = [
        (3, sends(signal.SIGTERM)),
        (8, sends(signal.SIGUSR1)),
        (12, sends(signal.SIGINT)),
        (15, sends(signal.SIGHUP)),
        (17, (scene.folder / "run" / "STOP").touch),
    ]
    statuses, states = [], []
    for number, (step, act) in enumerate(ways):
        statuses.append(scene.start(patch=both(before_step(step, act, rank=number % 2), no_wait_for_stop_file)))
        states.append(json.loads((scene.folder / "run" / "state.json").read_text()))
    again = scene.start()
    return {**scene.facts(*statuses, again), "states": states}


def no_wait_for_stop_file() -> None:
    loop.stop._FILE_SECONDS = 0.0


def both(*patches: Callable[[], None]) -> Callable[[], None]:
    def patch() -> None:
        for one in patches:
            one()

    return patch


def interrupted_with(*settings: str) -> Callable[[Scene], dict[str, Any]]:
    """A scenario: interrupted and not, at one world size, with these settings."""

    def scenario(scene: Scene) -> dict[str, Any]:
        scene.start(*settings, run="alone")
        interrupted = before_step(9, sends(signal.SIGTERM), rank=1)
        statuses = scene.start(*settings, patch=interrupted), scene.start(*settings)
        return {**scene.facts(*statuses), "alone": scene.facts(run="alone")["metrics.jsonl"]}

    return scenario


def second_ctrl_c(scene: Scene):
    ctrl_c = sends(signal.SIGINT)
    return scene.facts(scene.start(ranks=1, patch=before_step(8, both(ctrl_c, ctrl_c))))


def finished(scene: Scene):
    first = scene.start(ranks=1)
    return scene.facts(first, scene.start(ranks=1))


def longer(scene: Scene):
    """A finished run is given more steps."""
    first = scene.start("training.steps=12", ranks=1)
    return scene.facts(first, scene.start("--allow_changes", ranks=1))


def longer_and_killed(scene: Scene):
    """A finished run is given more steps, and killed before it has saved any."""
    first = scene.start("training.steps=12", ranks=1)
    killed = before_step(14, sends(signal.SIGKILL))
    second = scene.start("--allow_changes", ranks=1, patch=killed)
    state = json.loads((scene.folder / "run" / "state.json").read_text())
    return {**scene.facts(first, second, scene.start("--allow_changes", ranks=1)), "state": state}


def nobody_listens(scene: Scene):
    """What reads the run's words goes away: `| head -1`."""

    def patch() -> None:
        if detect_world().is_first:
            read, write = os.pipe()
            os.close(read)
            os.dup2(write, 1)

    return scene.facts(scene.start(patch=patch))


def occupied(scene: Scene):
    """Another start in the same folder, while one is at work."""
    first = forked(1, scene.arguments(), scene.folder / "first.txt", before_step(5, lambda: time.sleep(600)))
    wait_until((scene.folder / "run" / "state.json").exists)
    second = scene.start(ranks=1)
    kill(first)
    return scene.facts(second)


# ---- losses and gradients


def bad_losses(steps: range | set[int], rank: int = 1, factor: float = float("nan")) -> Callable[[], None]:
    """A patch: on one rank the loss is multiplied while it trains on the batches that first came with these steps."""

    rows: list[int] = []

    def told(inner, engine, this, progress, world):
        rows[:] = [progress.consumed_rows // this.recipe.training.rows]
        return inner(engine, this, progress, world)

    def spoilt(inner, model, batch):
        loss, scores = inner(model, batch)
        bad = torch.is_grad_enabled() and rows and rows[0] in steps and detect_world().rank == rank
        return (loss * factor if bad else loss), scores

    return both(around(masked_lm.MaskedLM, "forward", spoilt), around(loop, "train_batch", told))


SPIKE = bad_losses({25}, factor=100.0)


def early(scene: Scene):
    """The held-out loss rises after the second evaluation."""

    calls: list[int] = []

    def evaluate(inner, *arguments):
        calls.append(1)
        found = inner(*arguments)
        return replace(found, loss=found.loss + max(0, len(calls) - 2))

    settings = ["training.patience=2", "training.evaluate_every=3", "checkpoint.keep_last=1"]
    return scene.facts(scene.start(*settings, patch=around(heldout, "evaluate", evaluate)))


# ---- ranks


def sleep_for_ever() -> None:
    time.sleep(3600)


def hang(scene: Scene):
    facts = scene.facts(scene.start("faults.hang_seconds=3", patch=before_step(7, sleep_for_ever, rank=1)))
    reports = sorted((scene.folder / "run" / "hung").glob("*.txt"))
    return {**facts, "reports": {path.name: path.read_text() for path in reports}}


def frozen(scene: Scene):
    """A rank that cannot even run its watchdog."""
    act = before_step(7, sends(signal.SIGSTOP), rank=1)
    ranks = forked(2, scene.arguments("faults.hang_seconds=3"), scene.log, act)
    ranks[0].join(limit(400))
    facts = scene.facts([ranks[0].exitcode])
    kill(ranks)
    return facts


def killed(scene: Scene):
    first = scene.start(patch=before_step(15, sends(signal.SIGKILL), rank=1))
    return scene.facts(first, scene.start(ranks=3, config="zero3"))


# ---- disks


def failing_writes(times: int, error: int, rank: int = 1, after: int = 1) -> Callable[[], None]:
    """A patch: writes of checkpoints fail on one rank, `times` of them, after so many that went well."""

    calls: list[int] = []

    def write(inner, path, content):
        calls.append(1)
        if detect_world().rank == rank and after < len(calls) <= after + times:
            path.write_bytes(b"half")
            raise OSError(error, os.strerror(error))
        return inner(path, content)

    return around(checkpoint_format, "write_file", write)


def full(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def slow_disk(scene: Scene):
    """A checkpoint takes longer to write than a rank may hang."""

    def write(inner, path, content):
        time.sleep(3)
        return inner(path, content)

    settings = ["faults.hang_seconds=2", "training.steps=6", "checkpoint.asynchronous=false"]
    return scene.facts(scene.start(*settings, patch=around(checkpoint_format, "write_file", write)))


def folder_removed(scene: Scene):
    gone = before_step(8, lambda: shutil.rmtree(scene.folder / "run" / "checkpoints"), rank=0)
    return scene.facts(scene.start(patch=gone))


def file_in_the_way(scene: Scene):
    (scene.folder / "run").mkdir()
    shutil.copy(scene.folder.parent / "alone" / "run" / "recipe.yaml", scene.folder / "run")
    (scene.folder / "run" / "checkpoints").write_text("")
    return scene.facts(scene.start())


# ---- what is no part of the result, and the end itself


def log_on_a_full_disk(scene: Scene):
    """The disk takes no measurements from the evaluation before the first step to the fourth step."""
    calls: list[int] = []

    def some_fail(inner, path, *arguments, **options):
        if path.name == "metrics.jsonl" and not options:  # with which it is read
            calls.append(1)
            if 2 < len(calls) <= 10:
                full()
        return inner(path, *arguments, **options)

    patch = both(around(Path, "open", some_fail), around(metrics, "whole_file", some_fail))
    return scene.facts(scene.start("training.steps=12", patch=patch))


def curves_fail(scene: Scene):
    """A single write to TensorBoard's event file fails."""
    calls: list[int] = []

    def write(inner, this, data):
        calls.append(1)
        if len(calls) == 20:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return inner(this, data)

    return scene.facts(scene.start("training.steps=12", patch=around(RecordWriter, "write", write)))


def tracker_fails(scene: Scene):
    """The folder of DeepSpeed's csv_monitor goes away."""
    config, place = scene.folder / "mine.json", scene.folder / "csv"
    config.write_text(json.dumps({**content_of("zero2"), "csv_monitor": {"enabled": True, "output_path": str(place)}}))
    arguments = scene.arguments("training.steps=12", "--allow_untested_ds_keys", "--deepspeed_config", config)
    gone = before_step(6, lambda: shutil.rmtree(place), rank=0)
    return scene.facts(ended(forked(2, arguments, scene.log, gone)))


def no_picture(scene: Scene):
    return scene.facts(scene.start("training.steps=6", ranks=1, patch=around(charts, "save", full)))


def two_dollars(scene: Scene):
    """The name of the folder looks like a formula of matplotlib's."""
    statuses = scene.start("training.steps=6", ranks=1, run="$5_vs_$")
    drawn = (scene.folder / "$5_vs_$" / "loss.png").is_file()
    return {**scene.facts(statuses, run="$5_vs_$"), "drawn": drawn}


def nothing_is_removed(scene: Scene):
    """From the last step on the disk removes no file."""

    def patch() -> None:
        for name in ("unlink", "rmdir"):
            around(os, name, full)()

    return scene.facts(scene.start(patch=before_step(STEPS - 1, patch)))


def export_is_lost(scene: Scene):
    """A finished run is started again after its export was damaged, in one way after the other."""
    start = lambda: scene.start("training.steps=6", ranks=1)  # noqa: E731
    export, statuses, whole = scene.folder / "run" / "export", [start()], []
    weights = export / "model.safetensors"
    written = weights.read_bytes()
    (export / "notes.txt").write_text("mine")
    harms: list[Callable[[], Any]] = [
        lambda: os.truncate(weights, 0),
        lambda: os.truncate(weights, len(written) - 1),
        lambda: flip(weights),
        (export / "tokenizer.json").unlink,
        lambda: shutil.rmtree(export),
        lambda: None,
    ]
    for harm in harms:
        harm()
        statuses.append(start())
        whole.append(weights.read_bytes() == written and (export / "tokenizer.json").is_file())
    facts = scene.facts(*statuses)
    shutil.rmtree(scene.folder / "run" / "checkpoints")
    os.truncate(weights, 0)
    facts["last"] = start()
    aside = sorted(path.name for path in (scene.folder / "run").glob("export?*"))
    notes = (scene.folder / "run" / "export.damaged" / "notes.txt").read_text()
    return {**facts, "whole": whole, "aside": aside, "notes": notes, "in the end": scene.facts()}


def on_the_disk(scene: Scene):
    """What is flushed, and when state.json says what, in their order."""
    words = scene.folder / "flushed.txt"

    def note(word: str) -> None:
        with words.open("a", encoding="utf-8") as file:
            file.write(f"{word}\n")

    def fsync(inner, descriptor):
        note(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), scene.folder / "run"))
        return inner(descriptor)

    def set_state(inner, folder, state, **more):
        note(f"state {state}")
        return inner(folder, state, **more)

    patch = both(around(os, "fsync", fsync), around(run_folder, "set_state", set_state))
    facts = scene.facts(scene.start("training.steps=6", ranks=1, patch=patch))
    exported = sorted(path.name for path in (scene.folder / "run" / "export").iterdir())
    return {**facts, "flushed": words.read_text().splitlines(), "files": exported}


# ---- how it stands


def fails_as_it_starts(scene: Scene):
    """After the settings are written."""

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO), "metrics.jsonl")

    first = scene.start("training.steps=6", ranks=1, patch=around(training_run, "RunLog", fail))
    state = json.loads((scene.folder / "run" / "state.json").read_text())
    return {**scene.facts(first, scene.start("training.steps=6", ranks=1)), "state": state}


def dies_of_a_bug(scene: Scene):
    def act():
        raise ZeroDivisionError("a bug")

    return scene.facts(scene.start(ranks=1, patch=before_step(7, act)))


def two_without_a_name(scene: Scene):
    """Two starts of one recipe at the same time, without --run_dir."""
    arguments = ["--recipe", scene.recipe, "training.steps=2"]
    both_at_once = [
        process
        for number in range(2)
        for process in forked(1, arguments, scene.folder / f"{number}.txt", cwd=scene.folder)
    ]
    scene.log.write_text("")
    facts = scene.facts(ended(both_at_once))
    runs = sorted(path.name for path in (scene.folder / "runs").iterdir())
    exported = [(scene.folder / "runs" / name / "export" / "model.safetensors").is_file() for name in runs]
    return {**facts, "runs": runs, "all exported": all(exported)}


# ---- what cannot begin


def folder_of_something_else(scene: Scene):
    (scene.folder / "run").mkdir()
    (scene.folder / "run" / "metrics.jsonl").touch()
    return scene.facts(scene.start())


def below_a_file(scene: Scene):
    (scene.folder / "file").touch()
    return scene.facts(scene.start(run="file/run"), run="run")


def damaged_rows(scene: Scene):
    shutil.copytree(load(str(scene.recipe)).data.folder, scene.folder / "data")
    flip(next((scene.folder / "data").glob("rows-*/train-*.rows")))
    return scene.facts(scene.start(f"data.folder={scene.folder / 'data'}"))


# ---- checkpoints that are not what they were, or are another run's


def interrupted_copy(scene: Scene) -> Path:
    """A copy of the run that was left alone, as if it had been stopped after its last but one checkpoint."""
    run = unfinished_copy(scene)
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints" / f"step_{STEPS:08d}")
    return run / "checkpoints"


def unfinished_copy(scene: Scene) -> Path:
    run = Path(shutil.copytree(scene.folder.parent / "alone" / "run", scene.folder / "run", symlinks=True))
    (run / "state.json").unlink()
    return run


def damage(how: Callable[[Path], None]) -> Callable[[Scene], dict[str, Any]]:
    """A scenario: the newest checkpoint is damaged so, and the run is started again."""
    return resumed(before=lambda checkpoints: how(checkpoint_folder.found(checkpoints)[0]))


def resumed(*settings: str, before: Callable[[Path], Any] = lambda _: None, **how: Any):
    """A scenario: the interrupted copy goes on, with other settings or after something has been done to checkpoints."""

    def scenario(scene: Scene) -> dict[str, Any]:
        before(interrupted_copy(scene))
        return scene.facts(scene.start(*settings, **how))

    return scenario


def damage_all(checkpoints: Path) -> None:
    for path in checkpoint_folder.found(checkpoints):
        flip(path / "rank_00001.safetensors")


def cannot_read(file: str) -> Callable[..., Any]:
    """Return what stands in for a function: the machine of rank 1 cannot read a file."""

    def call(inner, *arguments):
        if detect_world().rank == 1:
            raise OSError(errno.EIO, os.strerror(errno.EIO), file)
        return inner(*arguments)

    return call


def not_removable(_, path, **more) -> None:
    """In place of `rmtree`: what a kill has left half-written lies in a folder that belongs to somebody else."""
    raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))


def other_clipping(scene: Scene):
    interrupted_copy(scene)
    config = scene.folder / "mine.json"
    config.write_text(json.dumps({**content_of("zero2"), "gradient_clipping": 0.5}))
    arguments = ["--run_dir", scene.folder / "run", "--deepspeed_config", config]
    return scene.facts(ended(forked(2, arguments, scene.log)))


def log_removed(scene: Scene):
    """The last checkpoint is there, the export and the log are not."""
    run = unfinished_copy(scene)
    (run / "metrics.jsonl").unlink()
    return scene.facts(ended(forked(2, ["--run_dir", run], scene.log)))


def checkpoint_of(*settings: str) -> Callable[[Scene], dict[str, Any]]:
    """A scenario: the checkpoint of a run with other settings lies in the folder of this one."""

    def scenario(scene: Scene) -> dict[str, Any]:
        scene.start("training.steps=1", *settings, ranks=1, run="other")
        shutil.rmtree(interrupted_copy(scene))
        shutil.copytree(scene.folder / "other" / "checkpoints", scene.folder / "run" / "checkpoints", symlinks=True)
        scene.log.write_text("")
        return scene.facts(scene.start())

    return scenario


def spoil(edit: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """A damage: the manifest says something else."""

    def how(path: Path) -> None:
        manifest = checkpoint_folder.read_manifest(path)
        edit(manifest)
        checkpoint_folder.write_manifest(path, manifest)

    return how


# beside those that are functions above
SCENARIOS: dict[str, Callable[[Scene], dict[str, Any]]] = {
    "alone": started(),
    "kept": started("checkpoint.every=2", "checkpoint.keep_last=2", "checkpoint.keep_every=10"),
    "three_ranks": started(ranks=3, config="zero3"),  # at another stage from the beginning on
    "skipped": started(patch=bad_losses({10})),
    "went_back": started(patch=bad_losses(range(8, 12))),  # four bad batches in a row, where three are borne
    "gave_up": started(patch=bad_losses(range(8, 1000))),
    # with one more return, and checkpoints in between
    "gave_up_later": started("checkpoint.every=2", "faults.rollbacks=3", patch=bad_losses(range(8, 1000))),
    "stopped_after_a_skip": started(patch=both(bad_losses({10}), before_step(10, sends(signal.SIGTERM), rank=1))),
    "spike": started("training.steps=30", patch=SPIKE),
    "spike_back": started("training.steps=30", "faults.spike_rollback=true", patch=SPIKE),
    "full_disk_once": started(patch=failing_writes(1, errno.ENOSPC)),
    "full_disk": started(patch=failing_writes(100, errno.ENOSPC)),
    "stopped_on_a_full_disk": started(
        patch=both(failing_writes(100, errno.ENOSPC, after=2), before_step(8, sends(signal.SIGTERM), rank=0))
    ),
    "read_only": started(patch=failing_writes(100, errno.EROFS, after=0)),
    "all_damaged": resumed(before=damage_all),
    "unreadable": resumed(patch=around(checkpoint_format, "fill", cannot_read("rank_00000.safetensors"))),
    # they were readable when they were checked, and are not once the unigram entropy is computed from them
    "unreadable_rows": started(patch=around(heldout, "unigram_entropy", cannot_read("heldout.rows"))),
    "not_removable": resumed(
        before=lambda path: (path / "step_00000024.partial").mkdir(),
        patch=around(checkpoint_folder.shutil, "rmtree", not_removable),
    ),
    "odd_batch": started("training.rows=7"),
    "misspelt_key": started("training.stepz=7"),
    "diverging": started("optimizer.learning_rate=1e30", "schedule.warmup_share=0"),
    "dropout": interrupted_with("model.hidden_dropout_prob=0.1", "model.attention_probs_dropout_prob=0.1"),
    "sgd": interrupted_with("optimizer.name=sgd", "optimizer.learning_rate=0.1"),
    "sgd_without_momentum": interrupted_with("optimizer.name=sgd", "optimizer.momentum=0"),
    "flipped_byte": damage(lambda path: flip(path / "rank_00001.safetensors")),
    "missing_file": damage(lambda path: (path / "rank_00000.safetensors").unlink()),
    "missing_manifest": damage(lambda path: (path / "manifest.json").unlink()),
    "cut_file": damage(lambda path: os.truncate(path / "rank_00000.safetensors", 1000)),
    "wrong_fingerprint": damage(spoil(lambda manifest: manifest["fingerprint"].update(exp_avg="0" * 16))),
    "wrong_probe_loss": damage(spoil(lambda manifest: manifest.update(probe_loss=1.5))),
    "other_tokenizer": damage(spoil(lambda manifest: manifest.update(tokenizer_xxh3="0" * 32))),
    "other_rows": damage(spoil(lambda manifest: manifest.update(rows_xxh3="0" * 32))),
    "flipped_digit": damage(lambda path: flip(path / "manifest.json")),
    "other_clipping": other_clipping,
    "log_removed": log_removed,
    "other_seed": resumed("seed=5"),
    "other_seed_allowed": resumed("seed=5", "--allow_changes"),
    "other_batch": resumed("training.rows=24"),
    "other_batch_allowed": resumed("training.rows=24", "--allow_changes"),
    "other_model_allowed": resumed("model.hidden_size=64", "--allow_changes"),
    "fewer_steps_allowed": resumed("training.steps=10", "--allow_changes"),
    "other_intervals": resumed("checkpoint.every=5", "training.log_every=2"),
    "checkpoint_of_another_model": checkpoint_of("model.intermediate_size=128"),
    "checkpoint_of_another_recipe": checkpoint_of("optimizer.learning_rate=1e-4"),
}


def main() -> None:
    recipe, alone, *names, folder = sys.argv[1:]
    if alone != "-":
        (Path(folder) / "alone").symlink_to(alone)
    outcomes = {}
    for name in names:
        clock = time.monotonic()
        try:
            outcomes[name] = (SCENARIOS.get(name) or globals()[name])(Scene(Path(folder) / name, Path(recipe)))
        except Exception:
            outcomes[name] = {"broken": traceback.format_exc()}
        print(f"{name}: {time.monotonic() - clock:.1f} s", flush=True)
    (Path(folder) / "figures.json").write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()

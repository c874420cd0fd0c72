"""Checkpoints: written beside, checksummed, renamed, then pointed to; read back at any world size and ZeRO stage.

A checkpoint is a folder `step_N`; checkpoint_format.py says what is in it.
"""

from __future__ import annotations

import math
import re
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from scaler import checkpoint_format
from scaler.checkpoint_format import Piece, fingerprint, read_manifest
from scaler.errors import ScalerError, in_a_line, naming_full_disk
from scaler.world import World, agree_or_raise, attempt, gathered

Result = TypeVar("Result")
PARTIAL, DAMAGED = ".partial", ".damaged"


@dataclass
class Progress:
    """What a run remembers beside its tensors.

    Attributes:
        step: optimizer steps done, skipped ones included; the learning rate hangs on it.
        consumed_rows: rows that are behind it; order and masks hang on it.
        updates: steps that moved the weights.
        digest: of all rows and masks that were read for training, 64 bits; between saves, this rank's part of the sum.
        best_loss, best_step: of the lowest held-out loss so far.
        worse: evaluations since then.
        recent_losses: of the last steps, which a spike is measured against.
    """

    step: int = 0
    consumed_rows: int = 0
    updates: int = 0
    digest: int = 0
    best_loss: float | None = None
    best_step: int | None = None
    worse: int = 0
    recent_losses: list[float] = field(default_factory=list)

    def judge_evaluation(self, loss: float) -> None:
        """Note a held-out loss of this step."""
        if math.isfinite(loss) and (self.best_loss is None or loss < self.best_loss):
            self.best_loss, self.best_step, self.worse = loss, self.step, 0
        else:
            self.worse += 1

    def waited(self, patience: int | None) -> bool:
        """The held-out loss has not fallen for so many evaluations."""
        return patience is not None and self.worse >= patience


class Checkpoints:
    """The folder of a run's checkpoints. What says so is a collective: every rank calls it.

    Args:
        folder: on a disk that all ranks see.
        keep_last: so many of the newest stay.
        keep_every: those whose step is a multiple of it stay, too.
        say: tells the user what is no error of the run.

    Attributes:
        best_step: of the checkpoint that stays beside them.
        watch: is told that it goes on while reading or writing takes long.
    """

    def __init__(
        self, folder: Path, world: World, keep_last: int, keep_every: int | None, say: Callable[[str], None] = print
    ) -> None:
        self.folder, self.world, self.say = folder, world, say
        self.keep_last, self.keep_every = keep_last, keep_every
        self.best_step: int | None = None
        self.watch: Callable[[str], None] = lambda doing: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._staged: dict[str, torch.Tensor] = {}
        self._write: Future[dict[str, Any]] | None = None
        self._about: dict[str, Any] = {}

    # ---- writing

    def begin(
        self, pieces: Sequence[Piece], about: Mapping[str, Any], probe: Mapping[str, torch.Tensor], asynchronous: bool
    ) -> None:
        """Copy what this rank holds and start to write it; `commit` ends it. Training may go on in between. Collective.

        Args:
            pieces: of this rank.
            about: goes into the manifest; `step` names the folder.
            probe: a batch whose loss is in `about`; the first rank writes it.
            asynchronous: copy first, so that the caller may change the tensors at once. Else the writing is over when
                this returns, and takes no memory for copies.
        """
        assert self._write is None, "commit first"
        self._about = {**about, "sizes": {piece.name: piece.size for piece in pieces}}
        shares = [share for piece in pieces if len(share := piece.share(self.world))]
        if asynchronous:
            shares = [self._stage(share) for share in shares]
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # for the copies into pinned memory
        self._write = self._thread.submit(
            self._write_files,
            shares,
            {name: tensor.contiguous() for name, tensor in probe.items()} if self.world.is_first else {},
        )
        if not asynchronous:
            self._wait()

    def _stage(self, piece: Piece) -> Piece:
        copies = {}
        for kind, tensor in piece.tensors.items():
            key = f"{kind}/{piece.name}"
            if key not in self._staged or len(self._staged[key]) != len(tensor):
                pinned = tensor.device.type == "cuda"
                self._staged[key] = torch.empty(len(tensor), dtype=torch.float32, pin_memory=pinned)
            copies[kind] = self._staged[key].copy_(tensor, non_blocking=True)
        return Piece(piece.name, piece.start, piece.size, copies)

    def _write_files(self, shares: Sequence[Piece], probe: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        partial = self.path(self._about["step"], PARTIAL)
        content = {
            f"{kind}/{share.name}/{share.start}": tensor.detach().float().cpu().contiguous()
            for share in shares
            for kind, tensor in share.tensors.items()
        }
        with naming_full_disk(self.folder):
            partial.mkdir(parents=True, exist_ok=True)
            files = [checkpoint_format.write_file(partial / f"rank_{self.world.rank:05d}.safetensors", content)]
            if probe:
                files.append(checkpoint_format.write_file(partial / checkpoint_format.PROBE, probe))
        elements: dict[str, int] = {}
        for share in shares:
            elements[share.name] = elements.get(share.name, 0) + len(share)
        return {"files": files, "fingerprint": fingerprint(shares), "elements": elements}

    def path(self, step: int, ending: str = "") -> Path:
        """Where the checkpoint of a step is, or will be."""
        return self.folder / f"step_{step:08d}{ending}"

    @property
    def pending(self) -> bool:
        """A checkpoint has begun and is not committed."""
        return self._write is not None

    @property
    def done(self) -> bool:
        """This rank has written its part, or failed to."""
        return self._write is None or self._write.done()

    def _wait(self) -> None:
        while not all(gathered(self.done, self.world)):
            self.watch("writing a checkpoint")
            futures.wait([self._write] if self._write else [], timeout=1.0)

    def commit(self) -> str | None:
        """Wait for all ranks' parts and make them a checkpoint, or remove them. Collective.

        Returns: what went wrong, the same on every rank, or None.
        """
        assert self._write is not None
        self._wait()
        write, self._write = self._write, None
        record: dict[str, Any] = {}
        try:
            record = write.result()
        except Exception as error:  # whatever it is, the other ranks wait to hear of it
            record = {"problem": f"rank {self.world.rank}: {error}"}
        records = gathered(record, self.world)
        problem = next((found["problem"] for found in records if "problem" in found), None)
        if self.world.is_first:
            step = self._about["step"]
            try:
                if problem is None:
                    with naming_full_disk(self.folder):
                        self._publish(step, records)
            except (ScalerError, OSError) as error:
                problem = in_a_line(error)
            if problem is not None:
                shutil.rmtree(self.path(step, PARTIAL), ignore_errors=True)
            else:
                self._tidy(step)
        return next((found for found in gathered(problem, self.world) if found), None)

    def _publish(self, step: int, records: Sequence[Mapping[str, Any]]) -> None:
        partial, final = self.path(step, PARTIAL), self.path(step)
        files = [file for record in records for file in record["files"]]
        for file in files:
            if not (partial / file["name"]).is_file():
                raise ScalerError(
                    f"{partial / file['name']}: a rank wrote it, and it is not here; the run folder must be on a disk "
                    "that all nodes share"
                )
        for name, size in self._about["sizes"].items():
            written = sum(record["elements"].get(name, 0) for record in records)
            if written != size:
                raise ScalerError(f"{partial}: {written:,} of the {size:,} elements of {name} were written")
        content = {
            **self._about,
            "fingerprint": checkpoint_format.sum_up([record["fingerprint"] for record in records]),
            "files": files,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        checkpoint_format.write_manifest(partial, content)
        checkpoint_format.flush(partial)
        if final.exists():  # a damaged one that a resume went back before
            self._remove(final)
        partial.rename(final)
        checkpoint_format.flush(self.folder)

    def _tidy(self, step: int) -> None:
        """Point to the newest and the best, and remove what is not kept; the checkpoint is there without that, too."""
        try:
            self._point("latest", step)
            self._point("best", self.best_step)
            paths = found(self.folder)
            # what a run that has to go back to one of the kept ones calls its best, stays, too
            best = {self.best_step, *map(_best_step, paths[: self.keep_last])}
            for path in paths[self.keep_last :]:
                is_nth = self.keep_every is not None and step_of(path) % self.keep_every == 0
                if not is_nth and step_of(path) not in best:
                    self._remove(path)
        except OSError as error:
            self.say(f"the checkpoint of step {step} is saved; its pointers or older ones: {in_a_line(error)}")

    def _remove(self, path: Path) -> None:
        doomed = path.with_name(path.name + ".removed" + PARTIAL)  # so that half of one never looks like a whole one
        path.rename(doomed)
        self._thread.submit(shutil.rmtree, doomed, ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Remove what was saved after a step that the run has gone back to, and is no part of it. Collective."""

        def forget() -> None:
            for path in found(self.folder):
                if step_of(path) > step:
                    self._remove(path)
            self._tidy(step)

        self._on_first(forget)

    def set_aside_after(self, step: int) -> None:
        """Rename what is newer than the step that the run goes on from, for it is damaged. Collective."""

        def set_aside() -> None:
            for path in found(self.folder):
                if step_of(path) > step:
                    aside = path.with_name(path.name + DAMAGED)
                    if aside.exists():
                        shutil.rmtree(aside)
                    path.rename(aside)

        self._on_first(set_aside)

    def _point(self, name: str, step: int | None) -> None:
        pointer, beside = self.folder / name, self.folder / (name + PARTIAL)
        if step is None or not self.path(step).exists():
            pointer.unlink(missing_ok=True)
            return
        beside.unlink(missing_ok=True)
        beside.symlink_to(self.path(step).name)
        beside.replace(pointer)

    def clear_partial(self) -> None:
        """Remove what a killed run left half-written. Collective."""

        def clear() -> None:
            for path in self.folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()

        self._on_first(clear)

    def _on_first(self, work: Callable[[], Result]) -> Result | None:
        return attempt(lambda: work() if self.world.is_first else None, self.world)

    # ---- reading

    def newest(self, skip: int = 0) -> Path | None:
        """The newest whole checkpoint but `skip`, or the oldest; None where there is none. Collective.

        Damaged ones are said.

        Raises: ScalerError where all are damaged.
        """
        paths = gathered(self._on_first(lambda: found(self.folder)), self.world)[0]
        whole: Path | None = None
        for path in paths:
            problem = self.damage(path)
            if problem is not None:
                self.say(f"{problem}; this checkpoint is left out, and the one before is used")
                continue
            whole = path
            skip -= 1
            if skip < 0:
                break
        if whole is not None:
            return whole
        nothing = f"{self.folder}: no checkpoint is whole; remove the folder to train from the beginning"
        agree_or_raise(nothing if paths else None, self.world)
        return None

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, or None; the ranks share the reading. Collective."""
        problem = None
        try:
            files = read_manifest(path)["files"]
            for number in range(self.world.rank, len(files), self.world.size):
                self.watch("reading a checkpoint")
                checkpoint_format.check_file(path / files[number]["name"], files[number])
        except (ScalerError, OSError) as error:
            problem = in_a_line(error)
        return next((found for found in gathered(problem, self.world) if found), None)

    def close(self) -> None:
        """End the writing thread."""
        self._thread.shutdown()


def found(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the newest first."""
    paths = folder.glob("step_*") if folder.is_dir() else []
    return sorted((path for path in paths if re.fullmatch(r"step_\d+", path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The optimizer step that a checkpoint's name says."""
    return int(path.name.partition("_")[2])


def _best_step(path: Path) -> int | None:
    try:
        progress = read_manifest(path).get("progress", {})
    except ScalerError:
        return None
    return cast("int | None", progress.get("best_step"))

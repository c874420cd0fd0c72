"""Checkpoints: written beside, checksummed, renamed, then pointed to; read back at any world size and ZeRO stage.

A checkpoint is a folder `step_N` with one safetensors file a rank and a manifest. A file holds stretches of parameters
and of their optimizer state, flat and in fp32, each named by what it is, the parameter, and where in the flattened
parameter it starts. So a rank of another run reads the stretches that it holds itself, whatever wrote them.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scaler.errors import ScalerError, naming_full_disk
from scaler.manifests import MANIFEST, checksum, write_json
from scaler.world import World, agree_or_raise, gathered

FORMAT = 1
WEIGHT, FROZEN = "weight", "frozen"  # kinds of parameters: fp32 ones that train, and those that do not, in the run's
# precision; other kinds are the optimizer's names of its state
MOMENTUM = "momentum_buffer"  # of SGD, which can be switched on and off
PARTIAL = ".partial"
PROBE = "probe.safetensors"
_CHUNK = 1 << 20  # elements that are hashed at once


@dataclass(frozen=True)
class Piece:
    """A stretch of one flattened parameter that this rank holds.

    Attributes:
        name: of the parameter.
        start: of the stretch, in elements of the flattened parameter.
        size: elements of the whole parameter.
        tensors: kind -> flat tensor, all of one length: "weight" and the optimizer's state, or "frozen". Views of what
            the engine holds.
        everywhere: each rank holds this same stretch; then each writes a part of it.
    """

    name: str
    start: int
    size: int
    tensors: dict[str, torch.Tensor]
    everywhere: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def share(self, world: World) -> Piece:
        """What this rank writes of the piece: all of it, or a part where every rank holds the same."""
        if not self.everywhere:
            return self
        begin, end = (len(self) * number // world.size for number in (world.rank, world.rank + 1))
        cut = {kind: tensor[begin:end] for kind, tensor in self.tensors.items()}
        return Piece(self.name, self.start + begin, self.size, cut)


@dataclass
class Progress:
    """What a run remembers beside its tensors.

    Attributes:
        step: optimizer steps done, skipped ones included; the learning rate hangs on it.
        consumed_rows: rows that are behind it; order and masks hang on it.
        updates: steps that moved the weights.
        digest: of all rows and masks that were trained on, 64 bits; between saves, this rank's part of the sum.
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


def fingerprint(pieces: Iterable[Piece]) -> dict[str, int]:
    """A 64-bit hash of the elements of each kind; hashes of a parameter's stretches add up to that of the whole.

    The sum over all elements of (bits + 1) * (2 * position + 1), times an odd number of the parameter's name, modulo
    2**64: it depends on every bit and its place, and not on how stretches are cut. It finds damage and mistakes; it is
    no signature.
    """
    found: dict[str, int] = {}
    for piece in pieces:
        of_name = xxhash.xxh3_64_intdigest(piece.name.encode()) | 1
        for kind, tensor in piece.tensors.items():
            total = 0
            for begin in range(0, len(tensor), _CHUNK):
                bits = tensor[begin : begin + _CHUNK].float().contiguous().view(torch.int32).long()
                first = 2 * (piece.start + begin) + 1
                places = torch.arange(first, first + 2 * len(bits), 2, device=bits.device)
                total += int(((bits + 1) * places).sum())  # int64 wraps around
            found[kind] = (found.get(kind, 0) + total * of_name) % (1 << 64)
    return found


def _sum(fingerprints: Sequence[Mapping[str, int]]) -> dict[str, str]:
    kinds = sorted({kind for found in fingerprints for kind in found})
    return {kind: f"{sum(found.get(kind, 0) for found in fingerprints) % (1 << 64):016x}" for kind in kinds}


def total_fingerprint(pieces: Sequence[Piece], world: World) -> dict[str, str]:
    """The fingerprint of the whole model and optimizer, from what all ranks hold; every rank must call it."""
    return _sum(gathered(fingerprint(piece.share(world) for piece in pieces), world))


class Checkpoints:
    """The folder of a run's checkpoints. All methods but `done` are collectives: every rank calls them.

    Args:
        folder: on a disk that all ranks see.
        keep_last: so many of the newest stay.
        keep_every: those whose step is a multiple of it stay, too.

    Attributes:
        best_step: of the checkpoint that stays beside them.
        watch: is told that it goes on while a write takes long.
    """

    def __init__(self, folder: Path, world: World, keep_last: int, keep_every: int | None) -> None:
        self.folder, self.world = folder, world
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
        """Copy what this rank holds and start to write it; `commit` ends it. Training may go on in between.

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
            files = [_write(partial / f"rank_{self.world.rank:05d}.safetensors", content)]
            if probe:
                files.append(_write(partial / PROBE, probe))
        return {"files": files, "fingerprint": fingerprint(shares)}

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
        """Wait for all ranks' parts and make them a checkpoint, or remove them.

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
                problem = str(error)
            if problem is not None:
                shutil.rmtree(self.path(step, PARTIAL), ignore_errors=True)
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
        manifest = {
            "kind": "checkpoint",
            "format": FORMAT,
            **self._about,
            "fingerprint": _sum([record["fingerprint"] for record in records]),
            "files": files,
            "written": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        }
        write_json(partial / MANIFEST, manifest)
        _sync(partial)
        if final.exists():  # a damaged one that a resume went back before
            self._remove(final)
        partial.rename(final)
        _sync(self.folder)
        self._point("latest", final)
        if self.best_step is not None and self.path(self.best_step).exists():
            self._point("best", self.path(self.best_step))
        paths = found(self.folder)
        # what a run that has to go back to one of the kept ones calls its best, stays, too
        best = {self.best_step, *map(_best_step, paths[: self.keep_last])}
        for path in paths[self.keep_last :]:
            is_nth = self.keep_every is not None and step_of(path) % self.keep_every == 0
            if not is_nth and step_of(path) not in best:
                self._remove(path)

    def _remove(self, path: Path) -> None:
        doomed = path.with_name(path.name + ".removed" + PARTIAL)  # so that half of one never looks like a whole one
        path.rename(doomed)
        self._thread.submit(shutil.rmtree, doomed, ignore_errors=True)

    def forget_after(self, step: int) -> None:
        """Remove what was saved after a step that the run has gone back to: it is no longer a part of it."""
        if self.world.is_first:
            for path in found(self.folder):
                if step_of(path) > step:
                    self._remove(path)
        gathered(None, self.world)

    def _point(self, name: str, target: Path) -> None:
        beside = self.folder / (name + PARTIAL)
        beside.unlink(missing_ok=True)
        beside.symlink_to(target.name)
        beside.replace(self.folder / name)

    def clear_partial(self) -> None:
        """Remove what a killed run left half-written."""
        if self.world.is_first and self.folder.is_dir():
            for path in self.folder.glob(f"*{PARTIAL}"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        gathered(None, self.world)

    # ---- reading

    def newest(self, say: Callable[[str], None], skip: int = 0) -> Path | None:
        """The newest whole checkpoint but `skip`, or the oldest. None: there are none. Damaged ones are said.

        Raises: ScalerError where all are damaged.
        """
        paths = gathered(found(self.folder) if self.world.is_first else None, self.world)[0]
        whole: Path | None = None
        for path in paths:
            problem = self.damage(path)
            if problem is not None:
                say(f"{problem}; this checkpoint is left out, and the one before is used")
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
        """What is wrong with a checkpoint, the same on every rank, or None; the ranks share the reading."""
        problem = None
        try:
            files = read_manifest(path)["files"]
            for number in range(self.world.rank, len(files), self.world.size):
                _check(path / files[number]["name"], files[number])
        except ScalerError as error:
            problem = str(error)
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


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises ScalerError when it is missing, damaged or of another format."""
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ScalerError(f"{path / MANIFEST}: missing or damaged") from error
    if not isinstance(content, dict) or content.get("kind") != "checkpoint" or content.get("format") != FORMAT:
        raise ScalerError(f"{path / MANIFEST}: no checkpoint of format {FORMAT}")
    missing = [name for name in ("step", "sizes", "fingerprint", "files") if name not in content]
    if missing:
        raise ScalerError(f"{path / MANIFEST}: has no {missing[0]!r}")
    return content


def _best_step(path: Path) -> int | None:
    try:
        progress = read_manifest(path).get("progress", {})
    except ScalerError:
        return None
    return cast("int | None", progress.get("best_step"))


def _check(path: Path, record: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise ScalerError(f"{path}: missing")
    if path.stat().st_size != record["bytes"]:
        raise ScalerError(f"{path}: {path.stat().st_size} bytes where {record['bytes']} belong")
    if checksum(path) != record["xxh3"]:
        raise ScalerError(f"{path}: its checksum is not the manifest's, the file is damaged")


def fill(pieces: Iterable[Piece], path: Path, manifest: Mapping[str, Any]) -> None:
    """Read a checkpoint into this rank's pieces, in place, from whichever files hold their stretches.

    Raises: ScalerError when the parameters are others, or a stretch is in no file.
    """
    pieces = list(pieces)
    stored: dict[tuple[str, str], list[tuple[int, int, Any, str]]] = {}
    for record in manifest["files"]:
        if record["name"] == PROBE:
            continue
        try:
            file = safe_open(path / record["name"], framework="pt")
        except (OSError, SafetensorError) as error:
            raise ScalerError(f"{path / record['name']}: not readable ({error}); start again") from error
        for key in file.keys():  # noqa: SIM118  (no mapping)
            kind, _, rest = key.partition("/")
            name, _, start = rest.rpartition("/")
            length = file.get_slice(key).get_shape()[0]
            stored.setdefault((kind, name), []).append((int(start), length, file, key))
    sizes = manifest["sizes"]
    for piece in pieces:
        if sizes.get(piece.name) != piece.size:
            raise ScalerError(
                f"{path}: {piece.name} has {sizes.get(piece.name, 'no')} elements there and {piece.size} in this "
                "model; it is another model's checkpoint: use the recipe that the run began with"
            )
        for kind, tensor in piece.tensors.items():
            if kind == MOMENTUM and kind not in manifest["fingerprint"]:
                tensor.zero_()
                continue
            missing = len(tensor)
            for start, length, file, key in stored.get((kind, piece.name), []):
                begin, end = max(start, piece.start), min(start + length, piece.start + len(tensor))
                if begin < end:
                    part = file.get_slice(key)[begin - start : end - start]
                    tensor[begin - piece.start : end - piece.start].copy_(part)
                    missing -= end - begin
            if missing:
                raise ScalerError(f"{path}: {missing} elements of {kind} of {piece.name} are in none of its files")


def _write(path: Path, content: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    try:
        save_file(dict(content), path)
    except SafetensorError as error:  # a full disk among others, and no OSError
        raise ScalerError(f"{path}: cannot be written ({error}); look at the disk, and free some space") from error
    _sync(path)
    # the checksum is of what the disk gives back
    return {"name": path.name, "bytes": path.stat().st_size, "xxh3": checksum(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Write checkpoints on all ranks together, and find the newest complete one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.checkpoint.folder import CheckpointFolder, read_manifest
from scaler.checkpoint.format import ParameterShard, fingerprint
from scaler.core.errors import ScalerError, explain_disk_errors, one_line
from scaler.distributed.collectives import agree_or_raise, all_gather, all_or_none
from scaler.distributed.world import World

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Checkpoints:
    """The checkpoints of a run, which all ranks write and read together.

    The docstring of a method says whether it is a collective.

    Args:
        folder: on a disk that all ranks see.
        keep_last: so many of the newest stay.
        keep_every: those whose step is a multiple of it stay, too.

    Attributes:
        watch: called with what is being done, again and again, while reading or writing takes long.
    """

    def __init__(self, folder: Path, world: World, keep_last: int, keep_every: int | None) -> None:
        self.world = world
        self.folder = CheckpointFolder(folder, keep_last, keep_every)
        self.watch: Callable[[str], None] = lambda doing: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._staged: dict[str, torch.Tensor] = {}
        self._write: Future[dict[str, Any]] | None = None
        self._about: dict[str, Any] = {}

    # ---- writing

    def begin(
        self,
        shards: Sequence[ParameterShard],
        about: Mapping[str, Any],
        probe: Mapping[str, torch.Tensor],
        asynchronous: bool,
    ) -> None:
        """Start to write a checkpoint, which `commit` completes. Training may go on in between. Collective.

        Args:
            shards: of this rank.
            about: the content of the manifest; its `step` names the folder.
            probe: a batch whose loss is in `about`; the first rank writes it.
            asynchronous: copy the shards first, so that the caller may change them at once. Otherwise the writing is
                over when this returns, and takes no memory for copies.
        """
        assert self._write is None, "commit first"
        self._about = {**about, "sizes": {shard.name: shard.size for shard in shards}}
        parts = [part for shard in shards if len(part := shard.part_for(self.world.rank, self.world.size))]
        if asynchronous:
            parts = [self._stage(part) for part in parts]
            if torch.cuda.is_available():
                torch.cuda.synchronize()  # the copies into pinned memory are asynchronous
        self._write = self._thread.submit(
            self._write_files,
            parts,
            {name: tensor.contiguous() for name, tensor in probe.items()} if self.world.is_first else {},
        )
        if not asynchronous:
            self._wait()

    def _stage(self, shard: ParameterShard) -> ParameterShard:
        copies = {}
        for kind, tensor in shard.tensors.items():
            key = f"{kind}/{shard.name}"
            if key not in self._staged or len(self._staged[key]) != len(tensor):
                pinned = tensor.device.type == "cuda"
                self._staged[key] = torch.empty(len(tensor), dtype=torch.float32, pin_memory=pinned)
            copies[kind] = self._staged[key].copy_(tensor, non_blocking=True)
        return ParameterShard(shard.name, shard.start, shard.size, copies)

    def _write_files(self, parts: Sequence[ParameterShard], probe: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        partial = self.folder.partial(self._about["step"])
        content = {
            f"{kind}/{part.name}/{part.start}": tensor.detach().float().cpu().contiguous()
            for part in parts
            for kind, tensor in part.tensors.items()
        }
        with explain_disk_errors(self.folder.root):
            partial.mkdir(parents=True, exist_ok=True)
            files = [checkpoint_format.write_file(partial / f"rank_{self.world.rank:05d}.safetensors", content)]
            if probe:
                files.append(checkpoint_format.write_file(partial / checkpoint_format.PROBE, probe))
        elements: dict[str, int] = {}
        for part in parts:
            elements[part.name] = elements.get(part.name, 0) + len(part)
        return {"files": files, "fingerprint": fingerprint(parts), "elements": elements}

    @property
    def pending(self) -> bool:
        """Return True while a checkpoint has begun and is not committed."""
        return self._write is not None

    @property
    def done(self) -> bool:
        """Return True once this rank has written its files, or failed to."""
        return self._write is None or self._write.done()

    def _wait(self) -> None:
        while not all(all_gather(self.done, self.world)):
            self.watch("writing a checkpoint")
            futures.wait([self._write] if self._write else [], timeout=1.0)

    def commit(self) -> str | None:
        """Wait for the files of all ranks and turn them into a checkpoint, or remove them. Collective.

        Returns: the problem, the same on every rank, or None.
        """
        assert self._write is not None
        self._wait()
        write, self._write = self._write, None
        record: dict[str, Any] = {}
        try:
            record = write.result()
        except Exception as error:  # of any kind, because the other ranks wait for this rank's record
            record = {"problem": f"rank {self.world.rank}: {error}"}
        records, problem = all_gather(record, self.world), None
        if self.world.is_first:
            try:
                with explain_disk_errors(self.folder.root):
                    self._publish(records)
            except (ScalerError, OSError) as error:
                problem = one_line(error)
                shutil.rmtree(self.folder.partial(self._about["step"]), ignore_errors=True)
        return cast("str | None", all_gather(problem, self.world)[0])

    def _publish(self, records: Sequence[Mapping[str, Any]]) -> None:
        partial = self.folder.partial(self._about["step"])
        for record in records:
            if "problem" in record:
                raise ScalerError(record["problem"])
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
        checkpoint_folder.write_manifest(partial, content)
        self.folder.publish(self._about["step"])
        self.folder.tidy(self._about["step"])

    def on_first_rank(self, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """Call a method of `folder` on the first rank alone; where it fails, all ranks fail. Collective.

        Returns: its result on the first rank, None on the others.
        """
        return all_or_none(lambda: work(*arguments) if self.world.is_first else None, self.world)

    # ---- reading

    def newest(self, skip: int = 0) -> Path | None:
        """Return the newest complete checkpoint after leaving out `skip` of them, or the oldest. Collective.

        Returns: None where there is no checkpoint. Damaged ones are reported and left out.

        Raises: ScalerError where all are damaged.
        """
        paths = all_gather(self.on_first_rank(checkpoint_folder.found, self.folder.root), self.world)[0]
        whole: Path | None = None
        for path in paths:
            problem = self.damage(path)
            if problem is None:
                whole, skip = path, skip - 1
                if skip < 0:
                    return whole
            elif self.world.is_first:
                logger.warning(f"{problem}; this checkpoint is left out, and the one before is used")
        if paths and whole is None:
            nothing = f"{self.folder.root}: no checkpoint is whole; remove the folder to train from the beginning"
            agree_or_raise(nothing, self.world)
        return whole

    def damage(self, path: Path) -> str | None:
        """Return what is wrong with a checkpoint, or None. The ranks divide its files among them. Collective."""
        problem = None
        try:
            files = read_manifest(path)["files"]
            for number in range(self.world.rank, len(files), self.world.size):
                self.watch("reading a checkpoint")
                checkpoint_folder.check_file(path / files[number]["name"], files[number])
        except (ScalerError, OSError) as error:
            problem = one_line(error)
        return next((found for found in all_gather(problem, self.world) if found), None)

    def close(self) -> None:
        """End the threads that write and remove files."""
        self._thread.shutdown()
        self.folder.close()

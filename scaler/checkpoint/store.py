"""Checkpoints: every rank writes its part, and together they commit a checkpoint or take the newest whole one."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch

from scaler.checkpoint import folder as checkpoint_folder
from scaler.checkpoint import format as checkpoint_format
from scaler.checkpoint.folder import CheckpointFolder, read_manifest
from scaler.checkpoint.format import ParameterShard, fingerprint
from scaler.core import files as core_files
from scaler.core.errors import ScalerError, explain_disk_errors, one_line
from scaler.distributed.collectives import agree_or_raise, all_gather, all_or_none
from scaler.distributed.world import World

Result = TypeVar("Result")
logger = logging.getLogger(__name__)


class Checkpoints:
    """The folder of a run's checkpoints. What says so is a collective: every rank calls it.

    Args:
        folder: on a disk that all ranks see.
        keep_last: so many of the newest stay.
        keep_every: those whose step is a multiple of it stay, too.

    Attributes:
        watch: is told that it goes on while reading or writing takes long.
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
        """Copy what this rank holds and start to write it; `commit` ends it. Training may go on in between. Collective.

        Args:
            shards: of this rank.
            about: goes into the manifest; `step` names the folder.
            probe: a batch whose loss is in `about`; the first rank writes it.
            asynchronous: copy first, so that the caller may change the tensors at once. Else the writing is over when
                this returns, and takes no memory for copies.
        """
        assert self._write is None, "commit first"
        self._about = {**about, "sizes": {shard.name: shard.size for shard in shards}}
        shares = [share for shard in shards if len(share := shard.part_for(self.world.rank, self.world.size))]
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

    def _stage(self, shard: ParameterShard) -> ParameterShard:
        copies = {}
        for kind, tensor in shard.tensors.items():
            key = f"{kind}/{shard.name}"
            if key not in self._staged or len(self._staged[key]) != len(tensor):
                pinned = tensor.device.type == "cuda"
                self._staged[key] = torch.empty(len(tensor), dtype=torch.float32, pin_memory=pinned)
            copies[kind] = self._staged[key].copy_(tensor, non_blocking=True)
        return ParameterShard(shard.name, shard.start, shard.size, copies)

    def _write_files(self, shares: Sequence[ParameterShard], probe: Mapping[str, torch.Tensor]) -> dict[str, Any]:
        partial = self.folder.partial(self._about["step"])
        content = {
            f"{kind}/{share.name}/{share.start}": tensor.detach().float().cpu().contiguous()
            for share in shares
            for kind, tensor in share.tensors.items()
        }
        with explain_disk_errors(self.folder.root):
            partial.mkdir(parents=True, exist_ok=True)
            files = [checkpoint_format.write_file(partial / f"rank_{self.world.rank:05d}.safetensors", content)]
            if probe:
                files.append(checkpoint_format.write_file(partial / checkpoint_format.PROBE, probe))
        elements: dict[str, int] = {}
        for share in shares:
            elements[share.name] = elements.get(share.name, 0) + len(share)
        return {"files": files, "fingerprint": fingerprint(shares), "elements": elements}

    @property
    def pending(self) -> bool:
        """A checkpoint has begun and is not committed."""
        return self._write is not None

    @property
    def done(self) -> bool:
        """This rank has written its part, or failed to."""
        return self._write is None or self._write.done()

    def _wait(self) -> None:
        while not all(all_gather(self.done, self.world)):
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
        records = all_gather(record, self.world)
        problem = next((found["problem"] for found in records if "problem" in found), None)
        if self.world.is_first:
            step = self._about["step"]
            try:
                if problem is None:
                    with explain_disk_errors(self.folder.root):
                        self._publish(records)
            except (ScalerError, OSError) as error:
                problem = one_line(error)
            if problem is not None:
                shutil.rmtree(self.folder.partial(step), ignore_errors=True)
            else:
                self.folder.tidy(step)
        return next((found for found in all_gather(problem, self.world) if found), None)

    def _publish(self, records: Sequence[Mapping[str, Any]]) -> None:
        partial = self.folder.partial(self._about["step"])
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
        core_files.flush(partial)
        self.folder.publish(self._about["step"])

    def on_first_rank(self, work: Callable[..., Result], *arguments: Any) -> Result | None:
        """Call a method of `folder` on the first rank alone; where it fails, all ranks fail. Collective.

        Returns: its result on the first rank, None on the others.
        """
        return all_or_none(lambda: work(*arguments) if self.world.is_first else None, self.world)

    # ---- reading

    def newest(self, skip: int = 0) -> Path | None:
        """The newest whole checkpoint but `skip`, or the oldest; None where there is none. Collective.

        Damaged ones are said.

        Raises: ScalerError where all are damaged.
        """
        paths = all_gather(self.on_first_rank(self.folder.found), self.world)[0]
        whole: Path | None = None
        for path in paths:
            problem = self.damage(path)
            if problem is not None:
                if self.world.is_first:
                    logger.warning(f"{problem}; this checkpoint is left out, and the one before is used")
                continue
            whole = path
            skip -= 1
            if skip < 0:
                break
        if whole is not None:
            return whole
        nothing = f"{self.folder.root}: no checkpoint is whole; remove the folder to train from the beginning"
        agree_or_raise(nothing if paths else None, self.world)
        return None

    def damage(self, path: Path) -> str | None:
        """What is wrong with a checkpoint, or None; the ranks share the reading. Collective."""
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
        """End the threads that write and remove."""
        self._thread.shutdown()
        self.folder.close()

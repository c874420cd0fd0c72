"""Keep the folder of a run's checkpoints: names, pointers, manifests, and which checkpoints stay.

A checkpoint is a folder `step_N`; format.py describes its files.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import xxhash

from scaler.core import files
from scaler.core.errors import ScalerError, one_line
from scaler.core.files import MANIFEST, checksum, write_json
from scaler.core.folders import remove

logger = logging.getLogger(__name__)
PARTIAL, DAMAGED = ".partial", ".damaged"


class CheckpointFolder:
    """The folder of a run's checkpoints. No method is a collective, and only one rank may call those that write.

    Args:
        folder: on a disk that all ranks see.
        keep_last: so many of the newest stay.
        keep_every: those whose step is a multiple of it stay, too.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int | None) -> None:
        self.root, self.keep_last, self.keep_every = folder, keep_last, keep_every
        self._remover = ThreadPoolExecutor(1, thread_name_prefix="checkpoint removal")

    def path(self, step: int) -> Path:
        """Return the path of a step's checkpoint, which need not exist."""
        return self.root / f"step_{step:08d}"

    def partial(self, step: int) -> Path:
        """Return the path in which a step's checkpoint is written."""
        return self.root / (self.path(step).name + PARTIAL)

    def publish(self, step: int) -> None:
        """Turn a written folder into a checkpoint, by renaming it."""
        partial, final = self.partial(step), self.path(step)
        files.flush(partial)
        if final.exists():  # a damaged one; the run was resumed from an earlier step
            self._remove(final)
        partial.rename(final)
        files.flush(self.root)

    def tidy(self, step: int) -> None:
        """Point to a step as the newest and to the best one that it knows, and remove what is not kept.

        An error is only reported, because the checkpoint is complete without its pointers.
        """
        try:
            self._point("latest", step)
            self._point("best", _best_step(self.path(step)))
            paths = found(self.root)
            # a run that goes back to one of the newest needs the best one that it knew then
            best = set(map(_best_step, paths[: self.keep_last]))
            for path in paths[self.keep_last :]:
                is_nth = self.keep_every is not None and step_of(path) % self.keep_every == 0
                if not is_nth and step_of(path) not in best:
                    self._remove(path)
        except OSError as error:
            logger.warning(f"the checkpoint of step {step} is saved; its pointers or older ones: {one_line(error)}")

    def forget_after(self, step: int) -> None:
        """Remove the checkpoints after a step that the run has gone back to."""
        for path in self._after(step):
            self._remove(path)
        self.tidy(step)

    def set_aside_after(self, step: int) -> None:
        """Rename the checkpoints after the step from which the run goes on, because they are damaged."""
        for path in self._after(step):
            aside = path.with_name(path.name + DAMAGED)
            if aside.exists():
                shutil.rmtree(aside)
            path.rename(aside)

    def clear_partial(self) -> None:
        """Remove the folders that a killed run was writing."""
        for path in self.root.glob(f"*{PARTIAL}"):
            if re.fullmatch(r"(step_\d+(\.removed)?|latest|best)", path.name.removesuffix(PARTIAL)):
                remove(path)

    def close(self) -> None:
        """Wait until all removals are done."""
        self._remover.shutdown()

    def _after(self, step: int) -> list[Path]:
        return [path for path in found(self.root) if step_of(path) > step]

    def _remove(self, path: Path) -> None:
        doomed = path.with_name(path.name + ".removed" + PARTIAL)  # so that a half-removed one never looks complete
        path.rename(doomed)
        self._remover.submit(shutil.rmtree, doomed, ignore_errors=True)

    def _point(self, name: str, step: int | None) -> None:
        pointer, beside = self.root / name, self.root / (name + PARTIAL)
        if step is None or not self.path(step).exists():
            pointer.unlink(missing_ok=True)
            return
        beside.unlink(missing_ok=True)
        beside.symlink_to(self.path(step).name)
        beside.replace(pointer)


def found(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest first."""
    paths = folder.glob("step_*") if folder.is_dir() else []
    return sorted((path for path in paths if re.fullmatch(r"step_\d+", path.name)), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Return the optimizer step in a checkpoint's name."""
    return int(path.name.partition("_")[2])


def _best_step(path: Path) -> int | None:
    try:
        progress = read_manifest(path).get("progress", {})
    except ScalerError:
        return None
    return cast("int | None", progress.get("best_step"))


FORMAT = 2


def write_manifest(folder: Path, content: Mapping[str, Any]) -> None:
    """Write the manifest of a checkpoint, with a checksum of itself."""
    whole = {"kind": "checkpoint", "format": FORMAT, **content}
    write_json(folder / MANIFEST, {**whole, "xxh3": _checksum_of(whole)})


def read_manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a checkpoint.

    Raises: ScalerError when it is missing, damaged or of another format.
    """
    try:
        content = json.loads((path / MANIFEST).read_text(encoding="utf-8"))
        kind, found, xxh3 = content["kind"], content["format"], content.pop("xxh3", None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScalerError(f"{path / MANIFEST}: missing or damaged") from error
    if (kind, found) != ("checkpoint", FORMAT):
        raise ScalerError(
            f"{path / MANIFEST}: is a {kind} of format {found}; a checkpoint of format {FORMAT} is needed"
        )
    if xxh3 != _checksum_of(content):
        raise ScalerError(f"{path / MANIFEST}: its checksum is another, the file is damaged")
    return cast(dict[str, Any], content)


def _checksum_of(content: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(content, sort_keys=True).encode())


def check_file(path: Path, record: Mapping[str, Any]) -> None:
    """Check a file against its record in the manifest.

    Raises: ScalerError when it is missing, or has another length or checksum.
    """
    if not path.is_file():
        raise ScalerError(f"{path}: missing")
    if path.stat().st_size != record["bytes"]:
        raise ScalerError(f"{path}: {path.stat().st_size} bytes where {record['bytes']} belong")
    if checksum(path) != record["xxh3"]:
        raise ScalerError(f"{path}: its checksum is not the manifest's, the file is damaged")

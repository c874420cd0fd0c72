"""Write, read and hash the tensors of a checkpoint: one safetensors file for each rank, and a manifest.

A file holds shards of parameters and of their optimizer state, flat and in fp32. The name of each gives its kind, its
parameter, and where in the flattened parameter it starts. So any rank can read the elements that it holds, whatever
world size and ZeRO stage wrote them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from scaler.core.errors import ScalerError
from scaler.core.files import checksum, flush, take_umask
from scaler.distributed.collectives import all_gather
from scaler.distributed.world import World

# Kinds of tensors: trained parameters in fp32, and frozen ones in the run's precision. Other kinds are the names that
# the optimizer gives to its state.
WEIGHT, FROZEN = "weight", "frozen"
MOMENTUM = "momentum_buffer"  # of SGD; a run can switch it on and off
PROBE = "probe.safetensors"
_CHUNK = 1 << 20  # elements that are hashed at once


@dataclass(frozen=True)
class ParameterShard:
    """The part of one flattened parameter that this rank holds.

    Attributes:
        name: of the parameter.
        start: of the part, in elements of the flattened parameter.
        size: elements of the whole parameter.
        tensors: kind -> flat tensor, all of one length: "weight" and the optimizer's state, or "frozen". They are
            views of what the engine holds.
        everywhere: every rank holds this same part, so each writes a fraction of it.
    """

    name: str
    start: int
    size: int
    tensors: dict[str, torch.Tensor]
    everywhere: bool = False

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def part_for(self, rank: int, ranks: int) -> ParameterShard:
        """Return what a rank writes: the whole shard, or a part of it where every rank holds the same."""
        if not self.everywhere:
            return self
        begin, end = (len(self) * number // ranks for number in (rank, rank + 1))
        cut = {kind: tensor[begin:end] for kind, tensor in self.tensors.items()}
        return ParameterShard(self.name, self.start + begin, self.size, cut)


def fingerprint(shards: Iterable[ParameterShard]) -> dict[str, int]:
    """Return a 64-bit hash of the elements of each kind; the hashes of a parameter's parts add up to that of the whole.

    It is the sum over all elements of (bits + 1) * (2 * position + 1), times an odd hash of the parameter's name,
    modulo 2**64. So it depends on every bit and its place, and not on how parameters are sharded. It finds damage and
    mistakes; it is no signature.
    """
    found: dict[str, int] = {}
    for shard in shards:
        of_name = xxhash.xxh3_64_intdigest(shard.name.encode()) | 1
        for kind, tensor in shard.tensors.items():
            total = 0
            for begin in range(0, len(tensor), _CHUNK):
                bits = tensor[begin : begin + _CHUNK].float().contiguous().view(torch.int32).long()
                first = 2 * (shard.start + begin) + 1
                places = torch.arange(first, first + 2 * len(bits), 2, device=bits.device)
                total += int(((bits + 1) * places).sum())  # int64 wraps around
            found[kind] = (found.get(kind, 0) + total * of_name) % (1 << 64)
    return found


def sum_up(fingerprints: Sequence[Mapping[str, int]]) -> dict[str, str]:
    """Return the fingerprint of the whole, as hexadecimal digits by kind, from those of its parts."""
    kinds = sorted({kind for found in fingerprints for kind in found})
    return {kind: f"{sum(found.get(kind, 0) for found in fingerprints) % (1 << 64):016x}" for kind in kinds}


def total_fingerprint(shards: Sequence[ParameterShard], world: World) -> dict[str, str]:
    """Return the fingerprint of the whole model and optimizer, from the shards of all ranks. Collective."""
    return sum_up(all_gather(fingerprint(shard.part_for(world.rank, world.size) for shard in shards), world))


def fill(shards: Iterable[ParameterShard], path: Path, manifest: Mapping[str, Any]) -> None:
    """Read a checkpoint into this rank's shards, in place, from all files that have elements of them.

    Raises: ScalerError when the checkpoint has other parameters, or an element is in no file.
    """
    shards = list(shards)
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
    for shard in shards:
        if sizes.get(shard.name) != shard.size:
            raise ScalerError(
                f"{path}: {shard.name} has {sizes.get(shard.name, 'no')} elements there and {shard.size} in this "
                "model; it is another model's checkpoint: use the recipe that the run began with"
            )
        for kind, tensor in shard.tensors.items():
            if kind == MOMENTUM and kind not in manifest["fingerprint"]:
                tensor.zero_()
                continue
            missing = len(tensor)
            for start, length, file, key in stored.get((kind, shard.name), []):
                begin, end = max(start, shard.start), min(start + length, shard.start + len(tensor))
                if begin < end:
                    part = file.get_slice(key)[begin - start : end - start]
                    tensor[begin - shard.start : end - shard.start].copy_(part)
                    missing -= end - begin
            if missing:
                raise ScalerError(f"{path}: {missing} elements of {kind} of {shard.name} are in none of its files")


def write_file(path: Path, content: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Write a safetensors file through to the disk, and return its record for the manifest."""
    try:
        save_file(dict(content), path)
    except SafetensorError as error:  # a full disk among others, and no OSError
        raise ScalerError(f"{path}: cannot be written ({error}); look at the disk, and free some space") from error
    take_umask(path)
    flush(path)
    # of the file as it is read again, which after a failed write differs from what was written
    return {"name": path.name, "bytes": path.stat().st_size, "xxh3": checksum(path)}

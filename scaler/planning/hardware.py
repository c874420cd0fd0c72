"""Nodes that a plan is made for: known ones from a table, or ones that a file describes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import yaml

from scaler.config import typed
from scaler.config.typed import Count, NotNegative, Positive, require, settings
from scaler.core.errors import ScalerError, nearest
from scaler.planning.failures import MTBF_NODE_HOURS

TABLE = Path(__file__).parent.parent / "hardware.yaml"

PRECISIONS = ("fp32", "fp16", "bf16")  # that the makers' tables give figures for
# names of keys in older files, read for one release
RENAMED = {"micro_seconds": "micro_batch_overhead_seconds"}

# The fraction of the makers' figures that is reached, where nothing was measured:
COMPUTE_REACHED = 0.43  # MPT-125M on A100, 512 tokens: 42.6 % (llm-foundry's table of throughputs)
# of a link: NCCL's ring among eight A100, large messages (github.com/stas00/ml-engineering, network)
LINK_REACHED = 0.78
NETWORK_REACHED = 0.74  # NCCL over four nodes of eight B200, 4 GiB messages (the same); far less below 256 MiB
LATENCY = 10e-6  # seconds of a hop: NCCL needs 44 us for 32 KiB among eight A100 (the same), which is 14 hops
# ours, not measured: some 300 kernels of six layers, forward and backward, each 10 us to launch
MICRO_BATCH_OVERHEAD_SECONDS = 3e-3
HOST_LINK = 25e9  # PCIe 4 x16 has 31 GB/s


@settings("", document="hardware")
class Hardware:
    """Nodes of one kind, each with equal devices, and one rank on each device."""

    name: str
    """Name in tables and reports."""
    devices: Count
    """Devices of a node."""
    memory_bytes: Positive
    """Memory of a device in bytes."""
    flops: dict[str, Positive]
    """Matrix-multiply operations per second that a training step reaches on one device, by precision."""
    memory_bandwidth: Positive
    """Bytes per second that a device reads or writes."""
    inside: Positive
    """Bytes per second between devices of a node, as NCCL's "bus bandwidth" counts. On CPUs: without a network."""
    between: Positive
    """Bytes per second between nodes, all links of a node together, counted in the same way."""
    latency: NotNegative = LATENCY
    """Seconds of a hop."""
    micro_batch_overhead_seconds: NotNegative = 0.0
    """Seconds that a micro-batch takes however few rows it has."""
    host_link: Positive = HOST_LINK
    """Bytes per second between a device and the memory of its host."""
    spread: NotNegative = 0.0
    """Standard deviation of a rank's step time, as a fraction of that time."""
    price: NotNegative | None = None
    """Price of a node for an hour, in any one currency; null: unknown."""
    mtbf_node_hours: Positive = MTBF_NODE_HOURS
    """Mean time between failures of a node in hours."""
    on_cpu: bool = False
    """Whether the devices are parts of a CPU's cores, connected by gloo."""
    measured: tuple[str, ...] = ()
    """Keys that were measured; the others are a maker's figures, or assumed."""

    def __post_init__(self) -> None:
        for key in self.flops:
            require(key in PRECISIONS, "flops", key, f"precisions are {', '.join(PRECISIONS)}")
        known = {member.name for member in dataclasses.fields(self)}
        for key in self.measured:
            require(key in known, "measured", key, nearest(key, known))

    def bandwidth(self, nodes: int) -> float:
        """Return the bytes per second of a ring through all devices of that many nodes: those of its narrowest part.

        On CPUs the cores that fill the links and the links between nodes take turns, so their times add up
        (measured: docs/log/2026-11.md).
        """
        if nodes == 1:
            return self.inside
        if self.on_cpu:
            return 1 / (1 / self.inside + 1 / self.between)
        return min(self.inside, self.between)


def load(name_or_path: str) -> Hardware:
    """Read a known kind of node by name, or a YAML file of `Hardware`'s keys.

    Raises: ScalerError for an unknown name, and for keys and values that are refused.
    """
    path = Path(name_or_path)
    known = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    if name_or_path in known["nodes"]:
        return _of_table(name_or_path, known)
    if not path.is_file():
        raise ScalerError(f"no known hardware and no file {name_or_path!r}; {nearest(name_or_path, known['nodes'])}")
    return typed.build(
        Hardware, _renamed(typed.read_yaml(path), path), "", f"hardware {path}", remedy="add {it} to the file"
    )


def _renamed(content: Any, path: Path) -> Any:
    """Replace the keys that had another name, also where `measured` lists them."""
    if not isinstance(content, dict):
        return content
    for old, new in RENAMED.items():
        if old in content and new in content:
            raise ScalerError(f"hardware {path}: {old} and {new} are one key; remove {old}, its old name")
    measured = content.get("measured")
    if isinstance(measured, list):
        measured = [RENAMED.get(name, name) if isinstance(name, str) else name for name in measured]
        content = {**content, "measured": measured}
    return {RENAMED.get(name, name): value for name, value in content.items()}


def _of_table(name: str, known: dict[str, Any]) -> Hardware:
    node = known["nodes"][name]
    device = known["devices"][node["device"]]
    flops = {key: device[key] * 1e12 * COMPUTE_REACHED for key in PRECISIONS if device[key] is not None}
    return Hardware(
        name=name,
        devices=node["devices"],
        memory_bytes=device["memory"] * 1e9,
        flops=flops,
        memory_bandwidth=device["memory_bandwidth"] * 1e12,
        inside=device["link"] * 1e9 * LINK_REACHED,
        between=node["network"] * 1e9 * NETWORK_REACHED,
        micro_batch_overhead_seconds=MICRO_BATCH_OVERHEAD_SECONDS,
        price=node["price"],
    )

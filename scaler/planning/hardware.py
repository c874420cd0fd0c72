"""Nodes that a plan is made for: known ones from a table, or those that a file describes."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from scaler.config import typed
from scaler.config.deepspeed import PRECISIONS
from scaler.core.errors import ScalerError, nearest
from scaler.planning.failures import MTBF_NODE_HOURS

TABLE = Path(__file__).parent.parent / "hardware.yaml"

# What is reached of the makers' figures, where nothing was measured:
COMPUTE_REACHED = 0.43  # MPT-125M on A100, 512 tokens: 42.6 % (llm-foundry's table of throughputs)
# of a link, NCCL's ring among eight A100, large messages (github.com/stas00/ml-engineering, network)
LINK_REACHED = 0.78
NETWORK_REACHED = 0.74  # NCCL over four nodes of eight B200, 4 GiB messages (the same); far less below 256 MiB
LATENCY = 10e-6  # seconds a hop; NCCL needs 44 us for 32 KiB among eight A100 (the same), which is 14 hops
MICRO_SECONDS = 3e-3  # ours, not measured: some 300 kernels of six layers, forward and backward, each 10 us to launch
HOST_LINK = 25e9  # PCIe 4 x16 has 31 GB/s


@dataclass(frozen=True)
class Hardware:
    """Nodes of one kind, each with so many devices, and one rank a device.

    Attributes:
        name: for people.
        devices: of a node.
        memory_bytes: of a device.
        flops: matrix-multiply operations a second that a training step reaches on one device, by precision.
        memory_bandwidth: bytes a second that a device reads or writes.
        inside: bytes a second between devices of a node, as NCCL's "bus bandwidth" counts; of CPUs what their cores
            bring about without a network.
        between: the same between nodes, all links of a node together.
        latency: seconds of a hop.
        micro_seconds: of a micro-batch, however few rows it has.
        host_link: bytes a second between a device and the memory of its host.
        spread: standard deviation of a rank's time for a step, as a share of it.
        price: of a node an hour, in any one currency; None: unknown.
        mtbf_node_hours: mean time between failures of a node.
        on_cpu: the devices are shares of a CPU's cores, and gloo connects them.
        measured: names of the attributes that were measured; the others are a maker's, or assumed.
    """

    name: str
    devices: int
    memory_bytes: float
    flops: dict[str, float]
    memory_bandwidth: float
    inside: float
    between: float
    latency: float = LATENCY
    micro_seconds: float = 0.0
    host_link: float = HOST_LINK
    spread: float = 0.0
    price: float | None = None
    mtbf_node_hours: float = MTBF_NODE_HOURS
    on_cpu: bool = False
    measured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _require(self.devices >= 1, self.name, "devices", self.devices, "it is at least 1")
        for key in ("memory_bytes", "memory_bandwidth", "inside", "between", "host_link", "mtbf_node_hours"):
            _require(getattr(self, key) > 0, self.name, key, getattr(self, key), "it is above 0")
        for key in ("latency", "micro_seconds", "spread"):
            _require(getattr(self, key) >= 0, self.name, key, getattr(self, key), "it is at least 0")
        _require(self.price is None or self.price >= 0, self.name, "price", self.price, "it is at least 0")
        known = {member.name for member in dataclasses.fields(self)}
        for key, value in self.flops.items():
            _require(key in PRECISIONS, self.name, "flops", key, f"precisions are {', '.join(PRECISIONS)}")
            _require(isinstance(value, float | int) and value > 0, self.name, f"flops.{key}", value, "it is above 0")
        for key in self.measured:
            _require(key in known, self.name, "measured", key, nearest(key, known))

    def bandwidth(self, nodes: int) -> float:
        """Bytes a second of a ring through all devices of so many nodes: its narrowest part.

        On CPUs the cores that fill the links and the links between nodes take turns, so their times add up: measured,
        docs/log.md.
        """
        if nodes == 1:
            return self.inside
        if self.on_cpu:
            return 1 / (1 / self.inside + 1 / self.between)
        return min(self.inside, self.between)


def _require(holds: bool, name: str, key: str, value: object, rule: str) -> None:
    if not holds:
        raise ScalerError(f"hardware {name}: {key}={value!r}, but {rule}")


def load(name_or_path: str) -> Hardware:
    """A known kind of node by name, or a YAML file of `Hardware`'s keys.

    Raises: ScalerError for an unknown name, or keys and values that are none.
    """
    path = Path(name_or_path)
    known = yaml.safe_load(TABLE.read_text(encoding="utf-8"))
    if name_or_path in known["nodes"]:
        return _of_table(name_or_path, known)
    if not path.is_file():
        raise ScalerError(f"no known hardware and no file {name_or_path!r}; {nearest(name_or_path, known['nodes'])}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScalerError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    found = typed.build(Hardware, content, "", f"hardware {path}")
    assert isinstance(found, Hardware)
    return found


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
        micro_seconds=MICRO_SECONDS,
        price=node["price"],
    )

"""What benchmarks leave behind: benchmarks/results/NAME.json, a list of figures with the machine and the commit."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import cpuinfo
import torch

from scaler.core import provenance
from scaler.distributed import devices

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Measurement:
    """One figure.

    Attributes:
        measure: what was measured, ours and the peer's.
        ours, peer: medians, in `unit`.
        runs: how many single measurements each median is of.
    """

    measure: str
    ours: float
    peer: float
    unit: str
    runs: int

    @property
    def ratio(self) -> float:
        """Ours by the peer's."""
        return self.ours / self.peer


def machine() -> str:
    """Of what these are."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    bf16 = "bf16" if devices.bf16_is_native(torch.device("cpu")) else "no bf16"
    abilities = "AMX" if torch.cpu.get_capabilities().get("amx_bf16") else bf16
    name = cpuinfo.get_cpu_info().get("brand_raw", "CPU")
    return f"{name}, {os.cpu_count()} cores, {abilities}, torch {torch.__version__}"


def write(name: str, found: list[Measurement]) -> Path:
    """Keep the figures, in place of earlier ones of the same measures; the file."""
    RESULTS.mkdir(exist_ok=True)
    common = {"machine": machine(), "commit": provenance.commit()}
    lines = [{**asdict(line), "ratio": line.ratio, **common} for line in found]
    path = RESULTS / f"{name}.json"
    new = {line.measure for line in found}
    earlier = json.loads(path.read_text()) if path.is_file() else []
    lines = [*(line for line in earlier if line["measure"] not in new), *lines]
    path.write_text(json.dumps(lines, indent=1) + "\n")
    return path

"""The folder of a scaling study: the recipe, the points to measure, and what came of each.

FOLDER/recipe.yaml                    the experiment, the same for all points
       points/NAME/point.json         what to run
                   ds_config.json     with which configuration of DeepSpeed; batches are "auto"
                   measured.json      what was measured; absent before, and after a failure
                   failures.jsonl     one line for each attempt that failed
       logs/NAME-ATTEMPT.txt          what the ranks said
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scaler.config import typed
from scaler.core.cli import Parser, at_least
from scaler.core.errors import ScalerError
from scaler.core.files import read_json, write_json

RECIPE, POINTS, POINT, DS_CONFIG = "recipe.yaml", "points", "point.json", "ds_config.json"
MEASURED, FAILURES, LOGS = "measured.json", "failures.jsonl", "logs"
SERIES = ("strong", "weak")


def add_steps(parser: Parser) -> None:
    """Add the options for the length of a measurement."""
    option = parser.add_argument
    option("--steps", type=at_least(1), default=10, help="optimizer steps that are measured (default: %(default)s)")
    option("--warmup", type=at_least(0), default=3, help="optimizer steps before them (default: %(default)s)")


@dataclass(frozen=True)
class Point:
    """One setting of a study.

    Attributes:
        series: "strong", the batch is that of the recipe; "weak", it grows with the ranks.
        nodes, ranks_per_node: on which it runs.
        stage, offload, bucket: of ZeRO; `reduce_bucket_size` in numbers.
        rows, micro_rows: of the global batch, and of a micro-batch.
    """

    series: str
    nodes: int
    ranks_per_node: int
    stage: int
    offload: bool
    bucket: int
    rows: int
    micro_rows: int

    def __post_init__(self) -> None:
        if self.series not in SERIES:
            raise ScalerError(f"point: series={self.series!r}, but it is {' or '.join(SERIES)}")
        for name in ("nodes", "ranks_per_node", "rows", "micro_rows"):
            if getattr(self, name) < 1:
                raise ScalerError(f"point: {name}={getattr(self, name)}, but it is at least 1")
        if self.rows % (self.micro_rows * self.ranks):
            raise ScalerError(
                f"point: {self.rows} rows are no multiple of {self.ranks} ranks x {self.micro_rows} rows; change one"
            )

    @property
    def ranks(self) -> int:
        """On all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def accumulation(self) -> int:
        """Micro-batches of a rank and step."""
        return self.rows // (self.micro_rows * self.ranks)

    @property
    def setting(self) -> tuple[str, int, bool, int]:
        """What points of one curve have in common: series, stage, offload and bucket."""
        return self.series, self.stage, self.offload, self.bucket

    @property
    def name(self) -> str:
        """Of its folder."""
        return (
            f"{self.series}-n{self.nodes}x{self.ranks_per_node}-zero{self.stage}{'-offload' * self.offload}"
            f"-bucket{self.bucket}-rows{self.rows}-micro{self.micro_rows}"
        )


@dataclass(frozen=True)
class Measured:
    """What the ranks of a point found. Lists of ranks are in their order; the warm-up is left out.

    Attributes:
        hosts: of the ranks.
        warmup: steps before the measured ones.
        step_seconds: by rank, of each measured step, from its begin to its end.
        own_seconds: by rank, of steps of their own, where each collective is waited for: what is outside them, which
            tells a straggler.
        communication_seconds: by rank, the median of those steps' time in collectives.
        peak_bytes: by rank, of the device, or on a CPU resident beyond the process before it had a model.
        tokens_per_row: of text, on the average of all rows.
        precision: "bf16" or "fp32".
        versions: of the packages, by name.
        commit: of the project; None: unknown.
        started: when, in ISO 8601.
        device: of the ranks, "cpu" or "cuda".
        threads: of a rank on its CPU.
    """

    hosts: tuple[str, ...]
    warmup: int
    step_seconds: tuple[tuple[float, ...], ...]
    own_seconds: tuple[tuple[float, ...], ...]
    communication_seconds: tuple[float, ...]
    peak_bytes: tuple[int, ...]
    tokens_per_row: float
    precision: str
    versions: dict[str, str]
    commit: str | None
    started: str
    device: str
    threads: int

    def __post_init__(self) -> None:
        for values in (*self.step_seconds, *self.own_seconds, self.communication_seconds):
            if not all(math.isfinite(value) and value >= 0 for value in values):
                raise ScalerError("measured: a time is negative or not finite")


@dataclass(frozen=True)
class Entry:
    """A point with what is known of it. `failures` are the reasons of attempts, the latest last."""

    point: Point
    measured: Measured | None
    failures: tuple[str, ...]


def folder_of(study: Path, point: Point) -> Path:
    """Where a point is kept."""
    return study / POINTS / point.name


def write_point(study: Path, point: Point, ds_config: dict[str, Any]) -> None:
    """Ask for a point; whatever was measured of it stays."""
    folder = folder_of(study, point)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DS_CONFIG, ds_config)
    write_json(folder / POINT, dataclasses.asdict(point))  # the last, for it makes the folder a point


def write_measured(study: Path, point: Point, measured: Measured) -> None:
    """Keep what was measured."""
    write_json(folder_of(study, point) / MEASURED, dataclasses.asdict(measured))


def note_failure(study: Path, point: Point, reason: str) -> None:
    """Keep why an attempt failed."""
    with (folder_of(study, point) / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"reason": reason}) + "\n")


def step_seconds(measured: Measured) -> float:
    """Of a step, the median: a step takes as long as on the rank where it takes longest."""
    return float(statistics.median(map(max, zip(*measured.step_seconds, strict=True))))


def read_point(folder: Path) -> Point:
    """The point of a folder. Raises ScalerError where it is none."""
    found = _built(Point, folder / POINT)
    assert isinstance(found, Point)
    if found.name != folder.name:
        raise ScalerError(f"{folder}: holds the point {found.name}; rename the folder, or delete it")
    return found


def read_measured(folder: Path) -> Measured | None:
    """What was measured of the point of a folder, or None. Raises ScalerError for a damaged file."""
    path = folder / MEASURED
    if not path.is_file():
        return None
    found = _built(Measured, path)
    assert isinstance(found, Measured)
    return found


def _built(kind: type, path: Path) -> Any:
    try:
        return typed.build(kind, read_json(path), "", str(path))
    except ScalerError as error:
        raise error if str(path) in str(error) else ScalerError(f"{path}: {error}; measure the point again") from error


def failures(folder: Path) -> tuple[str, ...]:
    """Why attempts at the point of a folder have failed, the latest last."""
    path = folder / FAILURES
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return tuple(map(_reason, lines))


def _reason(line: str) -> str:
    try:
        return str(json.loads(line)["reason"])
    except (KeyError, TypeError, ValueError):  # half a line, after a power cut
        return f"a damaged line of {FAILURES}"


def read(study: Path) -> list[Entry]:
    """All points of a study, by series, stage, bucket and ranks. Raises ScalerError where it is no study."""
    if not (study / RECIPE).is_file() or not (study / POINTS).is_dir():
        raise ScalerError(f"{study}: no study here (no {RECIPE} and {POINTS}/); python -m scaler.study makes one")
    folders = [path.parent for path in (study / POINTS).glob(f"*/{POINT}")]
    entries = [Entry(read_point(path), read_measured(path), failures(path)) for path in folders]
    return sorted(entries, key=lambda entry: (*entry.point.setting, entry.point.ranks, entry.point.micro_rows))

"""Keep the folder of a scaling study: the recipe, the points to measure, and the outcome of each.

FOLDER/recipe.yaml                    the experiment, the same for all points
       points/NAME/point.json         what to run
                   ds_config.json     the DeepSpeed configuration; batches are "auto"
                   measured.json      the measurements; absent before, and after a failure
                   failures.jsonl     one line for each attempt that failed
       logs/NAME-ATTEMPT.txt          output of the ranks
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from scaler.config import typed
from scaler.config.typed import Count
from scaler.core.cli import Parser, at_least
from scaler.core.errors import ScalerError
from scaler.core.files import read_json, write_json
from scaler.core.text import quantity

RECIPE, POINTS, POINT, DS_CONFIG = "recipe.yaml", "points", "point.json", "ds_config.json"
MEASURED, FAILURES, LOGS = "measured.json", "failures.jsonl", "logs"
Kind = TypeVar("Kind")
Series = Literal["strong", "weak"]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


def add_steps(parser: Parser) -> None:
    """Add the options for the length of a measurement."""
    option = parser.add_argument
    option("--steps", type=at_least(1), default=10, help="optimizer steps that are measured (default: %(default)s)")
    option("--warmup", type=at_least(0), default=3, help="optimizer steps before them (default: %(default)s)")


@dataclass(frozen=True)
class Point:
    """One setting of a study.

    Attributes:
        series: "strong": the batch is that of the recipe; "weak": it grows with the ranks.
        nodes, ranks_per_node: on which it runs.
        stage, offload: ZeRO stage; whether the optimizer's state is on the CPU.
        bucket: `reduce_bucket_size` in elements.
        rows, micro_rows: of the global batch, and of a micro-batch.
    """

    series: Series
    nodes: Count
    ranks_per_node: Count
    stage: int
    offload: bool
    bucket: int
    rows: Count
    micro_rows: Count

    def __post_init__(self) -> None:
        if self.rows % (self.micro_rows * self.ranks):
            shared = f"{quantity(self.ranks, 'rank')} x {quantity(self.micro_rows, 'row')}"
            raise ScalerError(f"point: {quantity(self.rows, 'row')} are no multiple of {shared}; change one")

    @property
    def ranks(self) -> int:
        """Return the number of ranks on all nodes."""
        return self.nodes * self.ranks_per_node

    @property
    def place(self) -> str:
        """Return what it runs on, such as "4 nodes (8 ranks)"."""
        ranks = quantity(self.ranks, "rank")
        return f"{ranks} on 1 node" if self.nodes == 1 else f"{self.nodes:,} nodes ({ranks})"

    @property
    def accumulation(self) -> int:
        """Return the micro-batches of a rank in a step."""
        return self.rows // (self.micro_rows * self.ranks)

    @property
    def setting(self) -> tuple[str, int, bool, int]:
        """Return what points of one curve have in common: series, stage, offload and bucket."""
        return self.series, self.stage, self.offload, self.bucket

    @property
    def name(self) -> str:
        """Return the name of the point's folder."""
        return (
            f"{self.series}-n{self.nodes}x{self.ranks_per_node}-zero{self.stage}{'-offload' * self.offload}"
            f"-bucket{self.bucket}-rows{self.rows}-micro{self.micro_rows}"
        )


@dataclass(frozen=True)
class Measured:
    """The measurements of a point. Lists over ranks are in the order of ranks; the warm-up is left out.

    Attributes:
        hosts: by rank.
        warmup: steps before the measured ones.
        step_seconds: by rank, the duration of each measured step.
        own_seconds: by rank, the time outside collectives in each step of a separate series, in which each collective
            is waited for. It shows stragglers.
        communication_seconds: by rank, the median time in collectives of those steps.
        peak_bytes: by rank, peak memory of the device; on a CPU the resident memory that training adds to the process.
        tokens_per_row: mean over all rows, without padding.
        precision: "bf16" or "fp32".
        versions: of the packages, by name.
        commit: of the project; None if unknown.
        started: time in ISO 8601.
        device: "cpu" or "cuda".
        threads: CPU threads of a rank.
    """

    hosts: tuple[str, ...]
    warmup: int
    step_seconds: tuple[tuple[Seconds, ...], ...]
    own_seconds: tuple[tuple[Seconds, ...], ...]
    communication_seconds: tuple[Seconds, ...]
    peak_bytes: tuple[int, ...]
    tokens_per_row: float
    precision: str
    versions: dict[str, str]
    commit: str | None
    started: str
    device: str
    threads: int


@dataclass(frozen=True)
class Entry:
    """A point with its measurements and the reasons of failed attempts, the latest last."""

    point: Point
    measured: Measured | None
    failures: tuple[str, ...]


def folder_of(study: Path, point: Point) -> Path:
    """Return the folder of a point."""
    return study / POINTS / point.name


def write_point(study: Path, point: Point, ds_config: dict[str, Any]) -> None:
    """Write what a point is to run; its measurements stay."""
    folder = folder_of(study, point)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / DS_CONFIG, ds_config)
    write_json(folder / POINT, dataclasses.asdict(point))  # last, because it makes the folder a point


def write_measured(study: Path, point: Point, measured: Measured) -> None:
    """Write the measurements of a point."""
    write_json(folder_of(study, point) / MEASURED, dataclasses.asdict(measured))


def note_failure(study: Path, point: Point, reason: str) -> None:
    """Append the reason of a failed attempt."""
    with (folder_of(study, point) / FAILURES).open("a", encoding="utf-8") as file:
        file.write(json.dumps({"reason": reason}) + "\n")


def step_seconds(measured: Measured) -> float:
    """Return the median duration of a step; a step takes as long as on its slowest rank."""
    return float(statistics.median(map(max, zip(*measured.step_seconds, strict=True))))


def read_point(folder: Path) -> Point:
    """Read the point of a folder. Raises ScalerError where there is none."""
    point = _read(Point, folder / POINT)
    if point.name != folder.name:
        raise ScalerError(f"{folder}: holds the point {point.name}; rename the folder, or delete it")
    return point


def read_measured(folder: Path) -> Measured | None:
    """Read the measurements of the point of a folder; None without any. Raises ScalerError for a damaged file."""
    path = folder / MEASURED
    return _read(Measured, path) if path.is_file() else None


def _read(kind: type[Kind], path: Path) -> Kind:
    try:
        return typed.build(kind, read_json(path), "", str(path))
    except ScalerError as error:
        raise error if str(path) in str(error) else ScalerError(f"{path}: {error}; measure the point again") from error


def failures(folder: Path) -> tuple[str, ...]:
    """Read the reasons of failed attempts at the point of a folder, the latest last."""
    path = folder / FAILURES
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return tuple(map(_reason, lines))


def _reason(line: str) -> str:
    try:
        return str(json.loads(line)["reason"])
    except (KeyError, TypeError, ValueError):  # half a line, after a power cut
        return f"a damaged line of {FAILURES}"


def read(study: Path) -> list[Entry]:
    """Read all points of a study, sorted by series, stage, bucket and ranks.

    Raises: ScalerError where it is no study.
    """
    if not (study / RECIPE).is_file() or not (study / POINTS).is_dir():
        raise ScalerError(f"{study}: no study here (no {RECIPE} and {POINTS}/); scaler study makes one")
    folders = [path.parent for path in (study / POINTS).glob(f"*/{POINT}")]
    entries = [Entry(read_point(path), read_measured(path), failures(path)) for path in folders]
    return sorted(entries, key=lambda entry: (*entry.point.setting, entry.point.ranks, entry.point.micro_rows))

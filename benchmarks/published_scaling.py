"""Published multi-node results put through the model of `scaler.plan`: `python benchmarks/published_scaling.py`.

Each table is calibrated on its smallest row alone: the seconds of one row's forward and backward pass are chosen so
that this row comes out; network and memory are the makers' figures of scaler/hardware.yaml. The others are predicted.

Sources: NVIDIA/DeepLearningExamples, PyTorch/LanguageModeling/BERT/README.md, commits a07d20a1 (A100) and 78ec6802
(V100); MLPerf Training v3.1, logs of NVIDIA's and CoreWeave's BERT; DeepSpeed's post "Microsoft DeepSpeed achieves the
fastest BERT training time" (2020), Table 1. BERT-Large has 336 M parameters.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from scaler.config.batch import SolvedBatch
from scaler.planning.hardware import Hardware, load
from scaler.planning.memory import Activations, Layout, Sharding
from scaler.planning.step_time import Workload, time_of_step

BERT_LARGE = Layout(((336_226_108,),))


@dataclass(frozen=True)
class Row:
    """A published result: rows a second of a global batch, of so many micro-batches, on so many nodes."""

    nodes: int
    batch: int
    accumulation: int
    speed: float


@dataclass(frozen=True)
class Table:
    """Results of one system, whose gradients are reduced once a step."""

    name: str
    hardware: str
    precision: str
    rows: tuple[Row, ...]


def strong(batch: int, accumulation: int, speeds: dict[int, float]) -> tuple[Row, ...]:
    """Rows of a table whose accumulation falls as nodes are added."""
    return tuple(Row(nodes, batch, accumulation // nodes, speed) for nodes, speed in speeds.items())


A100_128 = {1: 4553, 2: 9191, 4: 18119, 8: 35774, 16: 70555, 32: 138294}
A100_512 = {1: 1648, 2: 3291, 4: 6464, 8: 13005, 16: 25570, 32: 49663}
TF32_128 = {1: 2486, 2: 4979, 4: 9859, 8: 19815, 16: 38866, 32: 75706}
TF32_512 = {1: 854, 2: 1684, 4: 3293, 8: 6515, 16: 12131, 32: 21298}
V100_128 = {1: 3379.2, 4: 12709.88, 16: 51937.28, 64: 188088.32}
V100_512 = {1: 625.66, 4: 2386.38, 16: 9932.8, 64: 37478.4}
H100 = {1: (768, 7767), 8: (4608, 53349), 64: (3072, 137886), 96: (4608, 191043), 384: (12288, 600083)}
H100 |= {434: (13888, 760139)}
MLPERF = tuple(Row(nodes, batch, 1, speed) for nodes, (batch, speed) in H100.items())
TABLES = (
    Table("NVIDIA A100, 128 tokens, fp16", "dgx-a100", "bf16", strong(65536, 32, A100_128)),
    Table("NVIDIA A100, 512 tokens, fp16", "dgx-a100", "bf16", strong(32768, 128, A100_512)),
    Table("NVIDIA A100, 128 tokens, TF32", "dgx-a100", "fp32", strong(65536, 64, TF32_128)),
    Table("NVIDIA A100, 512 tokens, TF32", "dgx-a100", "fp32", strong(32768, 256, TF32_512)),
    Table("NVIDIA V100, 128 tokens, fp16", "dgx-2h", "bf16", strong(65536, 64, V100_128)),
    Table("NVIDIA V100, 512 tokens, fp16", "dgx-2h", "bf16", strong(32768, 256, V100_512)),
    Table("MLPerf v3.1 H100, 96 to 4 rows a GPU", "dgx-h100", "bf16", MLPERF),
)

# DeepSpeed gives the minutes of both phases together, by nodes of 16 V100. Each phase: batch, accumulation on one node,
# samples, and the published speed of one GPU, by which the minutes on one node are shared out.
MINUTES = {1: 1993, 4: 521, 16: 144, 64: 44}
PHASES = ((65536, 64, 403e6, 272), (32768, 256, 20e6, 52))


def seconds(row: Row, hardware: Hardware, precision: str, row_seconds: float) -> float:
    """Of a step."""
    ranks = row.nodes * hardware.devices
    work = Workload(BERT_LARGE, lambda rows: Activations(0, 0, 0), row_seconds, 0, row.batch, 1)
    batch = SolvedBatch(row.batch, row.batch // ranks // row.accumulation, row.accumulation, ranks)
    return time_of_step(work, Sharding(0, precision, 50_000_000), batch, row.nodes, hardware).seconds


def predicted(table: Table) -> list[float]:
    """Rows a second, of each row of the table."""
    hardware = replace(load(table.hardware), flops={"bf16": 1.0, "fp32": 1.0}, micro_batch_overhead_seconds=0.0)
    first = table.rows[0]
    beside = seconds(first, hardware, table.precision, 0.0)
    row_seconds = (first.batch / first.speed - beside) * first.nodes * hardware.devices / first.batch
    return [row.batch / seconds(row, hardware, table.precision, row_seconds) for row in table.rows]


def deepspeed_minutes() -> dict[int, float]:
    """By nodes, calibrated on one."""
    parts = [samples / speed for _, _, samples, speed in PHASES]
    minutes = dict.fromkeys(MINUTES, 0.0)
    for (batch, accumulation, samples, _), part in zip(PHASES, parts, strict=True):
        speed = samples / (60 * MINUTES[1] * part / sum(parts))
        rows = tuple(Row(nodes, batch, accumulation // nodes, speed) for nodes in MINUTES)
        for row, found in zip(rows, predicted(Table("", "dgx-2h", "bf16", rows)), strict=True):
            minutes[row.nodes] += samples / found / 60
    return minutes


def main() -> None:
    """Print predicted and published, and the error."""
    for table in TABLES:
        print(f"{table.name} ({table.hardware})")
        for row, found in zip(table.rows, predicted(table), strict=True):
            print(
                f"  {row.nodes:>4} nodes  batch {row.batch:>6,}, accumulation {row.accumulation:>3}"
                f"  published {row.speed:>9,.0f}  predicted {found:>9,.0f} rows/s  {found / row.speed - 1:+6.1%}"
            )
    print("DeepSpeed 2020, V100 (dgx-2h)")
    for nodes, found in deepspeed_minutes().items():
        print(
            f"  {nodes:>4} nodes  published {MINUTES[nodes]:>6,} min  predicted {found:>6,.0f} min  "
            f"{found / MINUTES[nodes] - 1:+6.1%}"
        )


if __name__ == "__main__":
    main()

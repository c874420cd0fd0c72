"""What a run shows: metrics.jsonl, TensorBoard, a progress line, a picture of the loss."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import matplotlib
import psutil
import torch
from torch.utils.tensorboard import SummaryWriter

from scaler.errors import naming_full_disk

matplotlib.use("Agg")
import matplotlib.pyplot as plt

CEILING_SIZE = 1024  # rows and columns of the matrices that measure the ceiling


def measure_matmul_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """The most floating-point operations a second that this rank reached in plain square matrix multiplications.

    All ranks should measure at the same time, for they share the machine.
    """
    size = CEILING_SIZE * (8 if device.type == "cuda" else 1)
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best, end = 0.0, time.perf_counter() + seconds
    while time.perf_counter() < end or not best:
        start = time.perf_counter()
        left @ right
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def memory_bytes(device: torch.device) -> int:
    """This rank's memory: the peak allocated on its GPU, or the process's resident set."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return int(psutil.Process().memory_info().rss)


def duration(seconds: float) -> str:
    """Seconds as people say them.

    >>> duration(4000), duration(75), duration(9.4)
    ('1h07m', '1m15s', '9s')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours else f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"


class RunLog:
    """Writes the metrics of one run; only the first rank has one."""

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.records: list[dict[str, Any]] = []
        self._file = (run_dir / "metrics.jsonl").open("a", encoding="utf-8", buffering=1)
        self._board = SummaryWriter(str(run_dir / "tensorboard"))

    def write(self, step: int, **values: float) -> None:
        """Record named values at an optimizer step; "train_loss" becomes TensorBoard's "train/loss"."""
        record = {"step": step, **values}
        self.records.append(record)
        with naming_full_disk(self.run_dir):
            self._file.write(json.dumps(record) + "\n")
            for name, value in values.items():
                self._board.add_scalar(name.replace("_", "/", 1), value, step)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Show text in TensorBoard."""
        with naming_full_disk(self.run_dir):
            self._board.add_text(tag, markdown, step)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Steps and values of one metric."""
        found = [(record["step"], record[name]) for record in self.records if name in record]
        return [step for step, _ in found], [value for _, value in found]

    def draw(self, unigram: float) -> Path:
        """Draw the loss curves as a PNG and return its path."""
        figure, axes = plt.subplots(figsize=(8, 4.5), dpi=120)
        axes.plot(*self.series("train_loss"), color="0.6", linewidth=1, label="training")
        steps, losses = self.series("heldout_loss")
        axes.plot(steps, losses, color="tab:blue", marker="o", markersize=3, label=f"held-out: {losses[-1]:.2f} nats")
        axes.axhline(unigram, color="tab:red", linestyle="--", label=f"unigram entropy: {unigram:.2f} nats")
        axes.set(xlabel="optimizer step", ylabel="masked-LM loss (nats)", title=self.run_dir.name)
        axes.legend()
        axes.grid(alpha=0.3)
        path, beside = self.run_dir / "loss.png", self.run_dir / "loss.partial.png"
        figure.tight_layout()
        figure.savefig(beside)
        plt.close(figure)
        beside.replace(path)
        return path

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._board.close()

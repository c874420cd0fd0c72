"""Record a run's metrics in metrics.jsonl, TensorBoard and a picture of the loss."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from scaler.core.errors import ScalerError, explain_disk_errors, one_line
from scaler.core.files import FAULTS, METRICS, records, write_whole


class RunLog:
    """A writer of the metrics of one run; only rank 0 has one.

    Args:
        run_dir: folder of the run.
        step: step that the run goes on from. What an earlier start recorded of later steps is removed, because those
            are done again; None removes all, because the run begins.

    Attributes:
        problem: why something could not be written, once that has happened; all ranks have to agree on it.
    """

    def __init__(self, run_dir: Path, step: int | None) -> None:
        self.run_dir = run_dir
        self.problem: str | None = None
        self._open(step)

    def _open(self, step: int | None) -> None:
        path = self.run_dir / METRICS
        with explain_disk_errors(self.run_dir):
            last = -1 if step is None else step
            self.records = [record for record in records(path) if record["step"] <= last]
            write_whole(path, "".join(json.dumps(record) + "\n" for record in self.records))
            self._file = path.open("a", encoding="utf-8", buffering=1)
            self._board = SummaryWriter(str(self.run_dir / "tensorboard"), purge_step=last + 1)

    def go_back(self, step: int) -> None:
        """Remove what was recorded of steps after this one, because the run has gone back to it."""
        self.close()
        self._open(step)

    def write(self, step: int, **values: float) -> None:
        """Record named values at an optimizer step; "train_loss" becomes TensorBoard's "train/loss"."""
        record = {"step": step, **values}
        self.records.append(record)
        with self.noting_problem():
            self._file.write(json.dumps(record) + "\n")
            for name, value in values.items():
                self._board.add_scalar(name.replace("_", "/", 1), value, step)

    @contextlib.contextmanager
    def noting_problem(self) -> Iterator[None]:
        """Turn a full disk, or another error while writing, into the log's `problem`."""
        try:
            with explain_disk_errors(self.run_dir):
                yield
        except (ScalerError, OSError) as error:
            self.problem = one_line(error)

    def fault(self, **facts: Any) -> None:
        """Record a fault; records of faults stay when the run goes back."""
        with self.noting_problem(), (self.run_dir / FAULTS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Show text in TensorBoard."""
        with self.noting_problem():
            self._board.add_text(tag, markdown, step)

    def series(self, name: str) -> tuple[list[int], list[float]]:
        """Return steps and values of one metric."""
        found = [(record["step"], record[name]) for record in self.records if name in record]
        return [step for step, _ in found], [value for _, value in found]

    def draw(self, unigram: float) -> Path:
        """Draw the loss curves as a PNG and return its path."""
        from scaler.core import charts  # a second for matplotlib, which only the end of a run needs

        figure, axes = charts.one_panel(layout="tight")
        axes.plot(*self.series("train_loss"), color="0.6", linewidth=1, label="training")
        steps, losses = self.series("heldout_loss")
        axes.plot(steps, losses, color="tab:blue", marker="o", markersize=3, label=f"held-out: {losses[-1]:.2f} nats")
        axes.axhline(unigram, color="tab:red", linestyle="--", label=f"unigram entropy: {unigram:.2f} nats")
        axes.set(xlabel="optimizer step", ylabel="masked-LM loss (nats)", title=self.run_dir.name)
        path = self.run_dir / "loss.png"
        axes.legend()
        axes.grid(alpha=0.3)
        charts.save(figure, path)
        return path

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        self._board.close()

"""Record a run's metrics in metrics.jsonl, TensorBoard and a picture of the loss."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from scaler.core.board import Board
from scaler.core.errors import dispensable, explain_disk_errors
from scaler.core.files import FAULTS, METRICS, flush, records, whole_file

logger = logging.getLogger(__name__)


class Lines:
    """A file of JSON lines. What cannot be written costs a warning, and is written with a later line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = path.read_bytes().splitlines(keepends=True) if path.is_file() else []
        self._is_whole = True  # as far as the file has all lines
        self._problem: str | None = None

    def add(self, record: dict[str, Any]) -> None:
        """Write a record at the end."""
        self._lines.append(_line(record))
        self._write(self._lines[-1])

    def replace(self, records: Iterable[dict[str, Any]]) -> None:
        """Write these records in the place of all that are there."""
        self._lines, self._is_whole = [_line(record) for record in records], False
        self._write(b"")

    def close(self) -> None:
        """Write what is left, and wait until it is on the disk."""
        self._write(b"")
        if self._problem:
            logger.warning(f"{self.path}: records are missing, because it could not be written ({self._problem})")
        elif self.path.is_file():
            with dispensable(str(self.path)):
                flush(self.path)

    def _write(self, more: bytes) -> None:
        try:
            if not self._is_whole:
                with whole_file(self.path) as whole:
                    whole.write(b"".join(self._lines))
            elif more:
                with self.path.open("ab") as file:
                    file.write(more)
        except OSError as error:
            if self._problem is None:
                logger.warning(f"{self.path}: {error.strerror}; what is missing there is written with a later line")
            self._is_whole, self._problem = False, error.strerror  # there may be half a line
        else:
            self._is_whole, self._problem = True, None


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record).encode() + b"\n"


class RunLog:
    """A writer of the metrics of one run; only rank 0 has one. What it cannot write costs a warning.

    Args:
        run_dir: folder of the run.
        step: step that the run goes on from. What an earlier start recorded of later steps is removed, because those
            are done again; None removes all, because the run begins.

    Raises: ScalerError for a folder that cannot be written.
    """

    def __init__(self, run_dir: Path, step: int | None) -> None:
        self.run_dir = run_dir
        last = -1 if step is None else step
        with explain_disk_errors(run_dir):
            self.records = [record for record in records(run_dir / METRICS) if record["step"] <= last]
            with whole_file(run_dir / METRICS) as file:
                file.write(b"".join(map(_line, self.records)))
            self._metrics, self._faults = Lines(run_dir / METRICS), Lines(run_dir / FAULTS)
        self._board = self._new_board(last)

    def _new_board(self, last: int) -> Board:
        return Board(self.run_dir / "tensorboard", purge_step=last + 1)

    def go_back(self, step: int) -> None:
        """Remove what was recorded of steps after this one, because the run has gone back to it."""
        self.records = [record for record in self.records if record["step"] <= step]
        self._metrics.replace(self.records)
        self._board.close()
        self._board = self._new_board(step)

    def write(self, step: int, **values: float) -> None:
        """Record named values at an optimizer step; "train_loss" becomes TensorBoard's "train/loss"."""
        record = {"step": step, **values}
        self.records.append(record)
        self._metrics.add(record)
        for name, value in values.items():
            self._board.add_scalar(name.replace("_", "/", 1), value, step)

    def fault(self, **facts: Any) -> None:
        """Record a fault; records of faults stay when the run goes back."""
        self._faults.add(facts)

    def text(self, step: int, tag: str, markdown: str) -> None:
        """Show text in TensorBoard."""
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
        """Close the files, once they are on the disk."""
        self._metrics.close()
        self._faults.close()
        self._board.close()

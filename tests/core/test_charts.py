"""Pictures and curves: names are text in them, and what fails in them ends nothing."""

import errno
import os

import pytest
from matplotlib.text import Text
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from scaler.core import charts
from scaler.core.board import Board
from scaler.core.errors import dispensable

FORMULA = r"US$\_x$ $^$"  # of matplotlib's language, with errors in it


def shown(figure):
    return {text.get_text() for text in figure.findobj(Text)}


def test_two_dollars_are_no_formula_wherever_they_stand(tmp_path):
    figure, axes = charts.one_panel(layout="tight")
    axes.plot([1, 2], [3, 4], label=FORMULA)
    axes.set(title=FORMULA, xlabel=FORMULA)
    axes.set_yticks([3, 4], [FORMULA, "$"])
    axes.legend()
    charts.save(figure, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    drawn = [text for text in figure.findobj(Text) if text.get_text() == FORMULA]
    assert len(drawn) >= 4 and not any(text.get_parse_math() for text in drawn)


def test_ticks_of_logarithmic_axes_are_no_formulae_either(tmp_path):
    figure, axes = charts.one_panel()
    axes.plot([1e-5, 1e-3], [200, 400])
    axes.set(xscale="log", yscale="log")
    charts.save(figure, tmp_path / "a.png")
    found = {text.replace("\N{MINUS SIGN}", "-") for text in shown(figure)}
    assert {"1e-05", "1e-04", "1e-03", "200", "400"} <= found and not any("$" in text for text in found)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("no\nsuch colour"), "no such colour"),
        (OSError(errno.EIO, "lost", "a.png"), "[Errno 5] lost: 'a.png'"),
    ],
)
def test_what_no_result_depends_on_is_a_warning_of_one_line(error, said, caplog):
    with dispensable("no picture"):
        raise error
    (record,) = caplog.records
    assert record.levelname == "WARNING" and record.getMessage().startswith(f"no picture: {said}")


def test_a_write_that_fails_ends_the_curve_with_one_warning_and_nothing_else(tmp_path, monkeypatch, caplog, capfd):
    board, write, calls = Board(tmp_path), RecordWriter.write, []

    def fail_once(this, data):
        calls.append(1)
        if len(calls) == 5:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
        return write(this, data)

    monkeypatch.setattr(RecordWriter, "write", fail_once)
    for step in range(100):
        board.add_scalar("a/b", step, step)
    board.close()
    (said,) = (record.getMessage() for record in caplog.records)
    assert said.startswith(f"{tmp_path}: TensorBoard's curves end here (") and said.endswith("; all else goes on")
    assert "Disk quota exceeded" in said
    assert not capfd.readouterr().err  # of the thread that writes
    events = EventAccumulator(str(tmp_path))
    assert [event.step for event in events.Reload().Scalars("a/b")] == [0, 1, 2, 3]


def test_the_last_write_that_fails_is_told_too(tmp_path, monkeypatch, caplog):
    board = Board(tmp_path)
    board.add_scalar("a", 1.0, 1)
    board.flush()

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(RecordWriter, "write", fail)
    board.add_scalar("a", 2.0, 2)
    board.close()
    assert "TensorBoard's curves end here" in caplog.text


def test_where_no_event_file_can_be_made_there_is_none(tmp_path, caplog):
    (tmp_path / "file").touch()
    board = Board(tmp_path / "file" / "tensorboard")
    board.add_scalar("a", 1.0, 1)
    board.close()
    assert len(caplog.records) == 1 and "file/tensorboard: TensorBoard's curves end here" in caplog.text

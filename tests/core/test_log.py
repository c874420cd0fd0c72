"""What reaches the console, of which rank, and how a process shows that it is alive."""

import logging
import os
import re
import subprocess
import sys

import pytest
from conftest import without_console

from scaler.core import log

LINE = re.compile(r"\d\d-\d\d \d\d:\d\d:\d\d rank (\d+) \| (.*)")


@pytest.fixture(autouse=True)
def restored():
    """Leave the loggers as they were."""
    yield
    without_console()


def messages(text):
    return [LINE.fullmatch(line).groups() for line in text.splitlines()]


@pytest.mark.parametrize(
    ("verbosity", "rank", "out", "err"),
    [
        (0, 0, ["info", "result"], ["warning"]),
        (0, 3, [], ["warning"]),
        (1, 3, ["debug", "info", "result"], ["warning"]),
        (-1, 0, ["result"], ["warning"]),
    ],
)
def test_progress_goes_to_stdout_of_the_first_rank_and_warnings_to_stderr(capsys, verbosity, rank, out, err):
    log.set_up(verbosity, rank, on_stdout=True)
    logger = logging.getLogger("scaler.training.anything")
    logger.debug("debug")
    logger.info("info")
    logger.log(log.RESULT, "result")
    logger.warning("warning")
    written = capsys.readouterr()
    assert messages(written.out) == [(str(rank), word) for word in out]
    assert messages(written.err) == [(str(rank), word) for word in err]


def test_stdout_is_for_results_where_the_log_is_none(capsys):
    log.set_up(1)
    logging.getLogger("scaler.training.anything").info("info")
    written = capsys.readouterr()
    assert written.out == "" and messages(written.err) == [("0", "info")]


@pytest.mark.parametrize(("verbosity", "shown"), [(0, []), (1, ["a warning"])])
def test_warnings_of_deepspeed_are_shown_with_v_alone(verbosity, shown):
    log.set_up(verbosity, 0)
    deepspeed, seen = logging.getLogger("DeepSpeed"), []
    handler = logging.Handler()
    handler.emit = lambda record: seen.append(record.getMessage())
    deepspeed.addHandler(handler)
    deepspeed.warning("a warning")
    deepspeed.error("an error")
    deepspeed.removeHandler(handler)
    assert seen == [*shown, "an error"]


def test_a_reader_that_has_gone_ends_nothing():
    program = (
        "import logging; from scaler.core import log; log.set_up(0, 0, on_stdout=True)\n"
        "logger = logging.getLogger('scaler.x')\n"
        "for _ in range(3): logger.info('line')\n"
        "logger.warning('still here')"
    )
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-c", program], stdout=write, stderr=subprocess.PIPE, text=True, check=False, timeout=60
    )
    os.close(write)
    assert done.returncode == 0 and messages(done.stderr) == [("0", "still here")]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_a_console_cannot_encode_is_written_as_an_escape(encoding):
    program = (
        "import logging; from scaler.core import log; from scaler.core.cli import command\n"
        "@command\n"
        "def main():\n"
        "    log.set_up(0, 0, on_stdout=True)\n"
        "    print('caf\u00e9 \\u2588 \\udce9')\n"
        "    logging.getLogger('scaler.x').info('caf\u00e9 \\u2588 \\udce9')\n"
        "main()"
    )
    environ = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environ, check=False, timeout=60)
    shown = {
        "latin-1": b"caf\xe9 \\u2588 \\udce9",
        "ascii": b"caf\\xe9 \\u2588 \\udce9",
        "utf-8": "caf\u00e9 \u2588 \\udce9".encode(),
    }[encoding]
    printed, logged = done.stdout.splitlines()
    assert (done.returncode, printed, done.stderr) == (0, shown, b"")
    assert logged.endswith(b"| " + shown)


@pytest.mark.parametrize("closing", [">&- 2>&-", ""])
def test_a_console_that_was_never_there_or_is_closed_ends_nothing(closing, tmp_path):
    done = tmp_path / "done"
    program = (
        "import logging, pathlib, sys; from scaler.core import log; log.set_up(0, 0, on_stdout=True)\n"
        "logger = logging.getLogger('scaler.x')\n"
        "sys.stdout and sys.stdout.close()\n"
        "logger.info('line'); logger.warning('another')\n"
        f"pathlib.Path({str(done)!r}).touch()"
    )
    subprocess.run(
        ["sh", "-c", f'exec "$0" -c "$1" {closing}', sys.executable, program], env=os.environ, check=False, timeout=60
    )
    assert done.exists()


def test_a_console_that_takes_nothing_does_not_hold_the_end_of_a_heartbeat(monkeypatch):
    monkeypatch.setattr(log, "SILENT_SECONDS", 0.0)
    log.set_up(0, 0)
    writes, free = log.threading.Event(), log.threading.Event()
    monkeypatch.setattr(log.Console, "emit", lambda self, record: (writes.set(), free.wait(60)))
    with log.Heartbeat("checking the data") as heartbeat:
        assert writes.wait(60)
    assert not free.is_set() and heartbeat._thread.is_alive()
    free.set()


def test_a_silent_process_says_what_it_is_doing(monkeypatch):
    monkeypatch.setattr(log, "SILENT_SECONDS", 0.0)
    log.set_up(0, 0)
    seen = []
    with log.Heartbeat("checking the data") as heartbeat:
        monkeypatch.setattr(log.Console, "emit", lambda self, record: (seen.append(record.getMessage()), over.set()))
        over = log.threading.Event()
        assert over.wait(60)
        heartbeat.doing = "building the engine"
        while not any("building" in line for line in seen):
            over.clear()
            assert over.wait(60)
    assert seen[0].startswith("checking the data, for ")

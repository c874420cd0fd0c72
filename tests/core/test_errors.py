"""What a user sees when something is wrong: one line, and an exit status that a script can tell apart."""

import errno
import os
import platform
import re

import pytest
from conftest import without_console

from scaler.core import log
from scaler.core.cli import command
from scaler.core.errors import REMEDIES, ScalerError, explain_disk_errors, naming, nearest


def run(failure: BaseException) -> None:
    @command
    def main() -> None:
        raise failure

    main()


@pytest.mark.parametrize("message", ["training.stepz is unknown", "the words of a library\n  over\nthree lines"])
def test_a_bad_input_is_one_line_and_status_2(message, capsys):
    with pytest.raises(SystemExit) as ending:
        run(ScalerError(message))
    printed = capsys.readouterr()
    assert ending.value.code == 2
    assert printed.out == ""
    assert printed.err == f"error: {' '.join(message.split())}\n"


def test_ctrl_c_is_one_line_and_status_130(capsys):
    with pytest.raises(SystemExit) as ending:
        run(KeyboardInterrupt())
    assert ending.value.code == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_a_bug_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run(ZeroDivisionError())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_a_full_disk_is_named():
    refused = pytest.raises(ScalerError, match="/some/folder: the disk is full")
    with refused, explain_disk_errors("/some/folder"), open("/dev/full", "w", encoding="utf-8") as file:
        file.write("x")


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_a_folder_that_cannot_be_written_is_named(code):
    with pytest.raises(ScalerError, match="/some/folder: not writable"), explain_disk_errors("/some/folder"):
        raise OSError(code, os.strerror(code))


def test_a_full_disk_is_named_whatever_a_library_raises():
    """As tokenizers 0.23 does, and safetensors."""
    refused = pytest.raises(ScalerError, match=r"^/some/folder: the disk is full; nothing half-written")
    with refused, explain_disk_errors("/some/folder"):
        raise Exception("No space left on device (os error 28)")
    with pytest.raises(ZeroDivisionError), explain_disk_errors("/some/folder"):
        raise ZeroDivisionError


def test_other_errors_of_the_system_stay_as_they_are():
    with pytest.raises(FileNotFoundError), explain_disk_errors("/some/folder"):
        raise FileNotFoundError(errno.ENOENT, "no such file")


@pytest.mark.parametrize(("code", "status"), [(errno.ESTALE, 75), (errno.ETIMEDOUT, 75), (errno.EIO, 2)])
def test_a_shared_disk_that_is_away_for_a_while_is_worth_another_try(code, status, capsys):
    with pytest.raises(SystemExit) as ending:
        run(OSError(code, os.strerror(code), "/shared/rows"))
    assert ending.value.code == status and "/shared/rows: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        (errno.EIO, "run again"),
        (errno.EMFILE, "raise the limit of open files (`ulimit -n`), or use fewer processes"),
        (errno.ENOMEM, "free some memory, or use fewer processes"),
        (errno.ENOSPC, "the disk is full; nothing half-written counts; free some space and run again"),
        (errno.EROFS, "the disk is read-only; name a folder on another"),
        (errno.EAGAIN, "raise the limit of processes (`ulimit -u`, or the container's), or use fewer"),
    ],
)
@pytest.mark.parametrize("name", [None, "/shared/rows"])
def test_an_error_of_the_system_is_one_line_whether_it_names_a_file_or_not(code, remedy, name, capsys):
    with pytest.raises(SystemExit) as ending:
        run(OSError(code, os.strerror(code), name))
    said = capsys.readouterr().err
    assert ending.value.code == 2
    where = re.escape(name) if name else r"scaler/core/cli.py, line \d+"
    remedy = "look at the disk, and run again" if name and code == errno.EIO else remedy
    assert re.fullmatch(rf"error: {where}: {os.strerror(code)} \(on .*\); {re.escape(remedy)}\n", said)


def test_v_shows_where_an_error_of_the_system_came_from(capsys):
    log.set_up(1)
    with pytest.raises(SystemExit):
        run(OSError(errno.EIO, "Input/output error"))
    said = capsys.readouterr().err
    without_console()
    assert "Traceback" in said and "raise failure" in said


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError("Can't load\n the tokenizer"), "error: Can't load the tokenizer\n"),
        (MemoryError(), "error: no memory is left (on HOST); free some memory, or use fewer processes\n"),
        (
            RuntimeError("can't start new thread"),
            f"error: can't start new thread; {REMEDIES[errno.EAGAIN]}\n",
        ),
        (
            RuntimeError("alloc_cpu.cpp: DefaultCPUAllocator: can't allocate\nmemory"),
            f"error: alloc_cpu.cpp: DefaultCPUAllocator: can't allocate memory; {REMEDIES[errno.ENOMEM]}\n",
        ),
        (Exception("Too large (os error 27)"), f"error: Too large (os error 27); {REMEDIES[errno.EFBIG]}\n"),
        (MemoryError("3 GiB"), "error: 3 GiB (on HOST); free some memory, or use fewer processes\n"),
    ],
)
def test_errors_of_memory_and_of_libraries_are_one_line(failure, said, capsys):
    with pytest.raises(SystemExit) as ending:
        run(failure)
    assert ending.value.code == 2
    assert capsys.readouterr().err == said.replace("HOST", platform.node())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux has a device that is always full")
def test_what_is_written_and_read_is_named_in_errors_that_name_no_file(tmp_path):
    with pytest.raises(OSError, match="No space") as raised, naming("/a/file"), open("/dev/full", "wb", 0) as file:
        file.write(b"x")
    assert raised.value.filename == "/a/file"
    with pytest.raises(FileNotFoundError) as raised, naming("/a/file"):
        (tmp_path / "absent").open()
    assert raised.value.filename == str(tmp_path / "absent")


def test_nearest_names_what_was_meant_or_all_there_is():
    assert nearest("stepz", ["steps", "seed"]) == "did you mean 'steps'?"
    assert nearest("zebra", ["steps", "seed"]) == "known are seed, steps"

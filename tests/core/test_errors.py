"""What a user sees when something is wrong: one line, and an exit status that a script can tell apart."""

import errno
import os

import pytest

from scaler.core.cli import command
from scaler.core.errors import ScalerError, explain_disk_errors, nearest


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


def test_other_errors_of_the_system_stay_as_they_are():
    with pytest.raises(FileNotFoundError), explain_disk_errors("/some/folder"):
        raise FileNotFoundError(errno.ENOENT, "no such file")


@pytest.mark.parametrize(("code", "status"), [(errno.ESTALE, 75), (errno.ETIMEDOUT, 75), (errno.EIO, 2)])
def test_a_shared_disk_that_is_away_for_a_while_is_worth_another_try(code, status, capsys):
    with pytest.raises(SystemExit) as ending:
        run(OSError(code, os.strerror(code), "/shared/rows"))
    assert ending.value.code == status and "/shared/rows: " in capsys.readouterr().err


def test_nearest_names_what_was_meant_or_all_there_is():
    assert nearest("stepz", ["steps", "seed"]) == "did you mean 'steps'?"
    assert nearest("zebra", ["steps", "seed"]) == "known are seed, steps"

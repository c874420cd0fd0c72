"""What every refusal keeps to: one line, and of a command status 2."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import CompletedProcess

import pytest

from scaler.core.errors import ScalerError


@contextmanager
def refused(said: str) -> Iterator[pytest.ExceptionInfo[ScalerError]]:
    """Expect an error of one line that matches a pattern."""
    with pytest.raises(ScalerError, match=said) as raised:
        yield raised
    assert "\n" not in str(raised.value)


def refusal(result: tuple[int, str, str] | CompletedProcess[str], begun: bool = False) -> str:
    """The one line of error of a command that ended with status 2.

    Args:
        result: of `call` or `run_command`.
        begun: whether it may have said something before.
    """
    status, out, error = result if isinstance(result, tuple) else (result.returncode, result.stdout, result.stderr)
    assert status == 2 and (begun or out == "") and error.startswith("error: ") and error.count("\n") == 1, (out, error)
    return error


def error_of(action: Callable[..., object], *arguments: object, **options: object) -> str:
    """The error of one line that a call ends with."""
    with refused("") as raised:
        action(*arguments, **options)
    return str(raised.value)

"""What stands in for a function that fails."""

from typing import Any, NoReturn


def failing(*_: Any, **__: Any) -> NoReturn:
    """Fail as a library may, whatever is asked."""
    raise ValueError("no such colour")

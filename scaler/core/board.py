"""Write TensorBoard's event files; a failure costs a warning, and no result."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from scaler.core.errors import words_of

logger = logging.getLogger(__name__)


class Board:
    """A SummaryWriter that has all its methods. After the first failure it warns, and writes nothing more.

    Args:
        folder: for the event files.
        options: further arguments of SummaryWriter, such as purge_step.
    """

    def __init__(self, folder: Path, **options: Any) -> None:
        self._folder, self._works = folder, True

        def begin() -> None:
            from torch.utils.tensorboard import SummaryWriter  # seconds for torch

            self._writer = SummaryWriter(str(folder), **options)

        self._try(begin)

    def __getattr__(self, name: str) -> Callable[..., None]:
        return partial(self._call, name)

    def close(self) -> None:
        """Write what is left, and close the file."""
        self._call("flush")  # because closing alone does not tell what the writer's thread has met
        self._call("close")

    def _call(self, name: str, *arguments: Any, **options: Any) -> None:
        self._try(lambda: getattr(self._writer, name)(*arguments, **options))

    def _try(self, act: Callable[[], None]) -> None:
        if not self._works:
            return
        try:
            act()
        except Exception as error:  # of any kind, because no result is lost by it
            self._works = False
            logger.warning(f"{self._folder}: TensorBoard's curves end here ({words_of(error)}); all else goes on")


def _told(thread_ended: Callable[[threading.ExceptHookArgs], Any]) -> Callable[[threading.ExceptHookArgs], Any]:
    """Leave out tracebacks of the thread that writes event files, because the writer's next call raises the error."""

    def hook(ended: threading.ExceptHookArgs) -> None:
        if not type(ended.thread).__module__.startswith("tensorboard."):
            thread_ended(ended)

    return hook


threading.excepthook = _told(threading.excepthook)

"""Start ranks as processes of this machine, and wait for them."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from scaler.distributed.world import free_port

GRACE_SECONDS = 10.0  # that the other ranks have to end by themselves after one has failed


def _as_rank(facts: dict[str, object], main: Callable[[], None], arguments: list[str], log: Path) -> None:
    """Run a command as one rank; end when the process that started it ends."""
    end_with_parent()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.environ |= {name: str(value) for name, value in facts.items()}
    sys.argv = [main.__module__, *arguments]
    main()


def end_with_parent() -> None:
    """Have this process end once the one that started it is gone, killed perhaps."""
    parent = multiprocessing.parent_process()

    def wait_and_end() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=wait_and_end, daemon=True).start()


def start(ranks: int, main: Callable[[], None], arguments: list[str], log: Path, preload: list[str]) -> int:
    """Start a command on several ranks of this machine and wait for them; when one fails, all end.

    Args:
        main: the command, a function at the top of its module.
        preload: modules that are imported once, in the process that the ranks are forked from.

    Returns: 0, or the status of the first one that failed.
    """
    import torch  # here, so that data preparation can import `end_with_parent` without it

    processes = []
    # CUDA does not live through a fork; elsewhere the imports, which take longer than many a command, are made once
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(preload)
    # torchrun sets the same, but would outlive a study that is killed
    shared = {
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": free_port(),
        "TOKENIZERS_PARALLELISM": "false",
    }
    status = 0
    try:
        for rank in range(ranks):
            facts = {**shared, "RANK": rank, "LOCAL_RANK": rank}
            process = context.Process(target=_as_rank, args=(facts, main, arguments, log), daemon=True)
            process.start()  # one that Ctrl-C interrupts in here cannot be killed, but ends with this process
            processes.append(process)
        running, end = list(processes), None
        while running and (end is None or time.monotonic() < end):
            wait([process.sentinel for process in running], None if end is None else max(0.0, end - time.monotonic()))
            for process in [some for some in running if some.exitcode is not None]:
                running.remove(process)
                if process.exitcode and not status:
                    status, end = process.exitcode, time.monotonic() + GRACE_SECONDS
    finally:
        for process in processes:
            process.kill()
            process.join()
    return status


def reason_of(log: Path, status: int) -> str:
    """Why ranks failed: the first error that they said, or their last words.

    The first, because the ranks that lose another say so after it.
    """
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines() if log.is_file() else []
    said = [line for line in lines if line.strip()] or [""]
    line = next((line.removeprefix("error: ") for line in said if line.startswith("error: ")), said[-1])
    return line[:400] if line else f"killed by signal {-status}" if status < 0 else f"status {status}"

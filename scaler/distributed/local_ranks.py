"""Start ranks as processes of this machine, and wait for them or for what they return."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeVar

from scaler.core.errors import ScalerError, one_line
from scaler.distributed.world import World, forget_launch, free_port

GRACE_SECONDS = 10.0  # the time in which the other ranks may end by themselves after one has failed
Result = TypeVar("Result")


def _as_rank(facts: dict[str, object], main: Callable[[], None], arguments: list[str], log: Path) -> None:
    """Run a command as one rank; end when the process that started it ends."""
    end_with_parent()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(file, 1)
    os.dup2(file, 2)
    forget_launch()
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
        ranks: how many processes to start.
        main: the command, a function at the top of its module.
        arguments: its command line.
        log: the file to which the ranks' output is appended.
        preload: modules that are imported once, in the process from which the ranks are forked.

    Returns: 0, or the exit status of the first rank that failed.
    """
    import torch  # here, so that data preparation can import `end_with_parent` without it

    processes = []
    # CUDA does not survive a fork; elsewhere the imports, which take seconds, are made once
    context: Any = multiprocessing.get_context("spawn" if torch.cuda.is_available() else "forkserver")
    context.set_forkserver_preload(preload)
    # torchrun sets the same, but its ranks would outlive a study that is killed
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
            process.start()  # if Ctrl-C interrupts this call, the process cannot be killed, but ends with this one
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


def call(worlds: Sequence[World], function: Callable[..., Result], *arguments: Any) -> list[Result]:
    """Call `function(world, *arguments)` in a new process for each world, and return the results in their order.

    The processes can meet each other, and do not know the launcher of this one.

    Raises: ScalerError where a process raised one or a RuntimeError, or ended without a result.
    """
    context, port = multiprocessing.get_context("spawn"), free_port()
    processes: list[tuple[Any, Connection]] = []
    try:
        for world in worlds:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_send_result, args=(theirs, world, port, function, arguments), daemon=True)
            process.start()
            theirs.close()
            processes.append((process, mine))
        return [_result_of(*each) for each in processes]
    finally:
        for process, _ in processes:
            process.kill()
            process.join()


def _result_of(process: Any, pipe: Connection) -> Any:
    try:
        result, problem = pipe.recv()
    except EOFError:
        process.join()
        problem = f"a process of this machine ended with status {process.exitcode}; is there enough memory?"
    if problem is not None:
        raise ScalerError(problem)
    process.join()
    return result


def _send_result(
    pipe: Connection, world: World, port: int, function: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    end_with_parent()
    forget_launch()
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        pipe.send((function(world, *arguments), None))
    except (ScalerError, RuntimeError, OSError) as error:
        pipe.send((None, one_line(error)))


def reason_of(log: Path, status: int, begin: int = 0) -> str:
    """Return why ranks failed: the first error in their log from byte `begin` on, or its last line.

    The first one is the cause, because ranks report the loss of another rank after it.
    """
    text = log.read_bytes()[begin:].decode(errors="replace") if log.is_file() else ""
    written = [line for line in text.splitlines() if line.strip()] or [""]
    line = next((line.removeprefix("error: ") for line in written if line.startswith("error: ")), written[-1])
    return line[:400] if line else f"killed by signal {-status}" if status < 0 else f"status {status}"

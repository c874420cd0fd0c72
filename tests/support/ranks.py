"""Ranks of real trainings, forked from one process, for their imports take longer than most of these trainings.

Never imported by pytest's own process, whose threads a fork would leave behind; see scenarios.py, chaos.py and
resume_worker.py.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401  (which imports a compiler, for seconds, at every start)
import torch
from limits import limit

from scaler import train
from scaler.distributed.world import free_port
from scaler.training import loop

ROOT = Path(__file__).resolve().parents[2]


def forked(ranks: int, arguments: list[object], log: Path, patch: Callable[[], None] = lambda: None, cwd: Path = ROOT):
    """Start `train.py` with these arguments on so many ranks; each calls `patch` first. Their words go to `log`."""
    return forked_calls(ranks, _train, [str(argument) for argument in arguments], log, patch, cwd)


def forked_calls(ranks: int, work: Callable[..., None], *arguments: object):
    """Call `work` in so many new processes that know which ranks they are, as from a launcher."""
    port, processes = free_port(), []
    for rank in range(ranks):
        facts = {"RANK": rank, "WORLD_SIZE": ranks, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": ranks}
        facts |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": 1}
        processes.append(multiprocessing.get_context("fork").Process(target=_be_rank, args=(facts, work, arguments)))
        processes[-1].start()
    return processes


def ended(processes, seconds: float = 400.0) -> list[int | None]:
    """The exit statuses of ranks that end by themselves; what does not within a set time is killed, and None."""
    for process in processes:
        process.join(limit(seconds))
    statuses = [process.exitcode for process in processes]
    kill(processes)
    return statuses


def call_on(ranks: int, work: Callable[..., None], *arguments: object, seconds: float = 400.0) -> None:
    """Call `work` in so many new processes; fails unless each of them ends well."""
    assert ended(forked_calls(ranks, work, *arguments), seconds) == [0] * ranks


def kill(processes) -> None:
    """All of them at once, with no time to say anything."""
    for process in processes:
        process.kill()


def _be_rank(facts: dict[str, object], work: Callable[..., None], arguments: tuple[object, ...]) -> None:
    os.environ |= {name: str(value) for name, value in facts.items()}
    torch.set_num_threads(1)
    work(*arguments)


def _train(arguments: list[str], log: Path, patch: Callable[[], None], cwd: Path) -> None:
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.chdir(cwd)
    patch()
    sys.argv = ["train.py", *arguments]
    train.main()


def sends(number: signal.Signals) -> Callable[[], None]:
    """An act: a rank sends itself a signal."""
    return lambda: os.kill(os.getpid(), number)


def around(owner: Any, name: str, call: Callable[..., Any]) -> Callable[[], None]:
    """A patch: `call` stands in for a function, which it gets before the arguments."""

    def patch() -> None:
        inner = getattr(owner, name)
        setattr(owner, name, lambda *arguments, **options: call(inner, *arguments, **options))

    return patch


def before_step(step: int, act: Callable[[], None], rank: int | None = None) -> Callable[[], None]:
    """A patch: call `act` on one rank (or all) as it first begins a step, counted from 0."""
    over: list[bool] = []

    def train_batch(inner, engine, this, progress, world):
        if progress.step == step and not over and rank in (None, world.rank):
            over.append(True)
            act()
        return inner(engine, this, progress, world)

    return around(loop, "train_batch", train_batch)

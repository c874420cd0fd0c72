"""Wait for the ranks of a launch at the store of the first one, and say which of them are missing."""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any, NoReturn, cast

import torch.distributed as dist
from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]

from scaler.core import slurm
from scaler.core.errors import ScalerError
from scaler.core.log import Reminder
from scaler.core.text import duration, quantity
from scaler.distributed.world import AGENT_STORE, World

logger = logging.getLogger(__name__)
PREFIX = "scaler"  # of what is here written into the store
ANSWER_SECONDS = 60.0  # in which a store that can be reached must answer
POLL_SECONDS = (0.01, 0.5)  # the first pause, and the longest
SOON_SECONDS = 1.0  # after which a rank that waits has told the others so
MOST_HOSTS = 8  # that a line names
REMEDY = "set MASTER_ADDR and MASTER_PORT"


class Meeting:
    """The ranks of a launch, and how far each has come. A thread says for which this one waits, while it waits.

    Raises: ScalerError when the ranks have not all come within the limit, or contradict each other.
    """

    def __init__(self, world: World, seconds: float) -> None:
        self.world, self.limit, self.where = world, seconds, f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        self._hosts: list[str] | None = None
        self._number, self._wait = 0, cast("Reminder | None", None)
        self._told: set[int] = set()
        self._over = threading.Event()
        try:
            self._store = self._opened()
            self._arrive()
        except (dist.DistError, ValueError) as error:
            said = str(error).splitlines()[0][:200]
            raise self._failed(f"({said}); the port must be free, and its rank 0 alive: {REMEDY}") from error
        self._thread = threading.Thread(target=self._watch, name="meeting", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End the thread."""
        self._over.set()
        self._thread.join()

    # ---- all ranks come to the store

    def _failed(self, why: str) -> ScalerError:
        return ScalerError(f"rank {self.world.rank}: {self.world.size} ranks could not meet at {self.where} {why}")

    def _opened(self) -> Store:
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if self.world.is_first and os.environ.get(AGENT_STORE) != "True":
            # several stores of a process share a server, so that torch's own will find it
            options: dict[str, Any] = {"is_master": True, "wait_for_workers": False, "multi_tenant": True}
            self._server = TCPStore("localhost", port, timeout=timedelta(seconds=ANSWER_SECONDS), **options)
        wait, reason = Reminder(), self._unreachable(address, port)
        while reason is not None:
            if wait.seconds > self.limit:
                raise self._failed(
                    f"(timed out after {duration(self.limit)}, trying to connect: {reason}); all nodes must reach that "
                    f"address of rank 0: {REMEDY}"
                )
            if self.world.local_rank == 0 and wait.is_due():
                logger.warning(
                    f"rank {self.world.rank} of {self.world.size} on {slurm.node_name()} waits for rank 0 at "
                    f"{self.where}, for {wait.seconds:.0f} s ({reason}); {self._gives_up()}"
                )
            time.sleep(POLL_SECONDS[1])
            reason = self._unreachable(address, port)
        store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=ANSWER_SECONDS))
        return PrefixStore(PREFIX, store)

    def _unreachable(self, address: str, port: int) -> str | None:
        """Return why nothing answers at the address; None where something does. torch's client would say much more."""
        try:
            socket.create_connection((address, port), timeout=ANSWER_SECONDS).close()
        except OSError as error:
            return error.strerror or str(error)
        return None

    def _gives_up(self) -> str:
        return f"it gives up after {duration(self.limit)}"

    def _arrive(self) -> None:
        """Tell the others that this rank is there, and wait for them."""
        world, here, wait, pause = self.world, slurm.node_name(), Reminder(), POLL_SECONDS[0]
        if self._store.add(f"came/{world.rank}", 1) > 1:
            other = self._store.get(f"host/{world.rank}").decode()
            self._refuse(
                f"rank {world.rank} was started twice, on {other} and on {here}; give each node a number of its own, "
                "such as --node_rank"
            )
        self._store.set(f"host/{world.rank}", here)
        size = self._store.compare_set("size", "", str(world.size)).decode()
        if size != str(world.size):
            self._refuse(
                f"rank {world.rank} on {here} is one of {world.size} ranks, and others are of {size}; tell all nodes "
                "the same numbers of nodes and ranks"
            )
        if self._store.add("arrived", 1) == world.size:
            self._store.set("all", "")
        while not self._store.check(["all"]):
            if self._store.check(["refused"]):
                self._refuse(self._store.get("refused").decode())
            if wait.seconds > self.limit:
                self._refuse(
                    f"timed out after {duration(self.limit)}: {self._who_is_missing('host')}; start those, or give the "
                    "number of ranks that there are"
                )
            if world.local_rank == 0 and wait.is_due():
                logger.warning(f"waiting for {wait.seconds:.0f} s: {self._who_is_missing('host')}; {self._gives_up()}")
            time.sleep(pause)
            pause = min(2 * pause, POLL_SECONDS[1])

    def _refuse(self, why: str) -> NoReturn:
        self._store.set("refused", why)
        time.sleep(2 * POLL_SECONDS[1])  # in which the others hear of it, because the store ends with its rank
        raise self._failed(f"({why})")

    def _who_is_missing(self, key: str) -> str:
        """Say how many ranks have written a key, and which have not."""
        ranks = range(self.world.size)
        here = [rank for rank in ranks if self._store.check([f"{key}/{rank}"])]
        missing = sorted(set(ranks) - set(here))
        if not missing:
            return f"all {len(here)} ranks have come, and wait for the network between them"
        hosts = self._host_of_each()
        return (
            f"{len(here)} of {quantity(len(ranks), 'rank')} have come ({by_host(here, hosts)}), missing: "
            f"{by_host(missing, hosts)}"
        )

    def _host_of_each(self) -> list[str]:
        if self._hosts is None:
            known = slurm.step_hosts() if self.world.launcher == "srun" else []
            self._hosts = known if len(known) == self.world.size else [""] * self.world.size
        for rank, host in enumerate(self._hosts):
            if not host and self._store.check([f"host/{rank}"]):
                self._hosts[rank] = self._store.get(f"host/{rank}").decode()
        return self._hosts

    # ---- all ranks come to the same place

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark a block in which this rank waits for all others to come to the same block."""
        self._number += 1
        self._wait = Reminder()
        try:
            yield
        finally:
            self._wait = None

    def _watch(self) -> None:
        with contextlib.suppress(dist.DistError):  # the store has gone with its rank, which the main thread hears, too
            while not self._over.wait(SOON_SECONDS / 2):
                wait, number = self._wait, self._number
                if wait is not None and wait.seconds > SOON_SECONDS:
                    self._look(number, wait)

    def _look(self, number: int, wait: Reminder) -> None:
        key = f"at/{number}"
        if number not in self._told:
            self._told = {number}
            self._store.set(f"{key}/{self.world.rank}", "")
        if wait.is_due():
            first = next(rank for rank in range(self.world.size) if self._store.check([f"{key}/{rank}"]))
            if first == self.world.rank:
                said = f"waiting for {wait.seconds:.0f} s: {self._who_is_missing(key)}; {self._gives_up()}"
                logger.warning(said)


def by_host(ranks: list[int], hosts: list[str]) -> str:
    """Write ranks by host.

    >>> by_host([0, 1, 2, 5], ["a", "a", "b", "b", "b", "b"])
    'ranks 0-1 on a, ranks 2, 5 on b'
    """
    of_host: dict[str, list[int]] = {}
    for rank in ranks:
        of_host.setdefault(hosts[rank], []).append(rank)
    named = [
        f"{'ranks' if len(some) > 1 else 'rank'} {_ranges(some)}{f' on {host}' if host else ''}"
        for host, some in of_host.items()
    ]
    more = f" and those of {len(named) - MOST_HOSTS} more hosts" if len(named) > MOST_HOSTS else ""
    return ", ".join(named[:MOST_HOSTS]) + more


def _ranges(numbers: list[int]) -> str:
    runs = [[number for _, number in run] for _, run in itertools.groupby(enumerate(numbers), lambda at: at[1] - at[0])]
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


_meeting: Meeting | None = None


def begin(world: World, seconds: float) -> None:
    """Wait until all ranks have come, and say from then on for which of them a collective waits."""
    global _meeting  # noqa: PLW0603  (as torch's process group, one for the process)
    end()
    if world.size > 1:
        _meeting = Meeting(world, seconds)


def end() -> None:
    """Say nothing any more."""
    global _meeting  # noqa: PLW0603
    if _meeting is not None:
        _meeting.close()
        _meeting = None


def waiting() -> contextlib.AbstractContextManager[None]:
    """Return a context in which this rank waits for all others to come to the same place."""
    return contextlib.nullcontext() if _meeting is None else _meeting.waiting()

"""Do tasks in this process, in several of this machine, or on the MPI ranks of many; each task once.

A stage cuts its work into tasks that depend on the input alone, so its output is the same whoever does them. A task
that is done leaves a record, and is not done again.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tqdm import tqdm

from data_prep.pipeline.folders import TASKS
from scaler.core import limits
from scaler.core.errors import ScalerError, place_of
from scaler.core.files import write_json
from scaler.distributed import mpi
from scaler.distributed.local_ranks import end_with_parent

PARALLELISM = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Task:
    """A piece of work: `function(*arguments)` returns a record that JSON can hold.

    Attributes:
        name: names the record's file.
        size: for the progress bar, in its unit.
    """

    name: str
    size: int
    function: Callable[..., dict[str, Any]]
    arguments: tuple[Any, ...]


class WorkerPool:
    """Processes that do tasks: those of an executor, or this one where there is none.

    Args:
        stop: ends the executor's processes at once.
    """

    def __init__(self, executor: Executor | None = None, stop: Callable[[], None] = lambda: None) -> None:
        self.executor, self.stop = executor, stop

    def run(self, tasks: Sequence[Task], partial: Path, what: str, unit: str = "B") -> list[dict[str, Any]]:
        """Do the tasks whose record is not yet in `partial`/tasks; return all records, in the order of the tasks."""
        records = {task.name: partial / TASKS / f"{task.name}.json" for task in tasks}
        left = [task for task in tasks if not records[task.name].exists()]
        done = sum(task.size for task in tasks) - sum(task.size for task in left)
        total = sum(task.size for task in tasks)
        # disable=None: no bar without a terminal
        with tqdm(total=total, initial=done, unit=unit, unit_scale=True, desc=what, disable=None) as bar:
            if self.executor is None:
                for task in left:
                    _do(task, records[task.name])
                    bar.update(task.size)
            elif left:
                try:
                    for size in self._finished(left, records):
                        bar.update(size)
                except BrokenProcessPool as error:
                    raise ScalerError(
                        f"{partial}: a process died while {what} (out of memory?); run again, it goes on where it "
                        f"was, perhaps with fewer --processes"
                    ) from error
        return [json.loads(path.read_text(encoding="utf-8")) for path in records.values()]

    def _finished(self, tasks: Sequence[Task], records: dict[str, Path]) -> Iterator[int]:
        """Do tasks in other processes, and yield the size of each as it ends. The largest begin first."""
        assert self.executor is not None
        jobs: dict[Future[None], int] = {}
        try:
            with _ignoring_ctrl_c():
                for task in sorted(tasks, key=lambda task: -task.size):
                    jobs[self.executor.submit(_do, task, records[task.name])] = task.size
                # the executor watches over a worker that it starts only from the next job on
                self.executor.submit(int)
            for job in as_completed(jobs):
                job.result()
                yield jobs[job]
        except BaseException:
            for job in jobs:
                job.cancel()
            self.stop()
            raise


def _do(task: Task, record: Path) -> None:
    before = os.environ.get(PARALLELISM)
    os.environ[PARALLELISM] = "false"  # the tasks are the parallelism
    try:
        write_json(record, task.function(*task.arguments))
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = place_of(error)  # which another process cannot tell
        raise
    finally:
        if before is None:
            del os.environ[PARALLELISM]
        else:
            os.environ[PARALLELISM] = before


@contextmanager
def worker_pool(processes: int | None = None) -> Iterator[WorkerPool]:
    """Yield the workers of this run: MPI's ranks where it has several, else `processes` of this machine (one a core).

    Under MPI only rank 0 enters the block: it plans, and the others work until it is done.

    Raises: ScalerError for fewer than one process, or where MPI cannot be used.
    """
    if mpi.ranks() > 1:
        with _mpi() as executor:
            yield WorkerPool(executor)
        return
    if int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1:
        raise ScalerError(
            f"srun started {os.environ['SLURM_STEP_NUM_TASKS']} tasks that do not see each other; "
            "start them with `srun --mpi=pmi2`"
        )
    processes = limits.cores() if processes is None else processes
    if processes < 1:
        raise ScalerError(f"processes={processes}, but at least 1 is needed")
    if processes == 1:
        yield WorkerPool()
        return
    others = set(multiprocessing.active_children())
    try:
        workers = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), initializer=end_with_parent)
    except (OSError, ImportError, NotImplementedError) as error:  # its locks need shared memory
        raise ScalerError(
            f"{processes} processes cannot share locks ({getattr(error, 'strerror', None) or error}); mount /dev/shm "
            "writable and with some space, or say --processes 1"
        ) from error

    def stop() -> None:
        thread = vars(workers)["_executor_manager_thread"]  # of the executor, which forgets it at shutdown
        workers.shutdown(wait=False, cancel_futures=True)
        for process in set(multiprocessing.active_children()) - others:
            process.terminate()
            process.join()  # or it might write on while its folder is removed
        # an interpreter that ends while that thread closes its pipes prints an OSError, because CPython's _python_exit
        # wakes it by a pipe that may just have been closed
        if thread is not None:
            thread.join()

    try:
        yield WorkerPool(workers, stop)
    finally:
        stop()


@contextmanager
def _mpi() -> Iterator[Executor | None]:
    """Yield an executor over the other ranks of MPI, or None where there is one rank."""
    MPI = mpi.load()
    from mpi4py.futures import MPICommExecutor

    if MPI.COMM_WORLD.Get_size() == 1:
        for name in ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE"):
            if os.environ.get(name, "1") not in ("", "1"):
                raise ScalerError(
                    f"MPI sees one rank where several were started ({name}={os.environ[name]}): mpi4py uses another "
                    "MPI than this mpiexec; load the MPI module of that launcher, or unset the variable"
                )
        yield None
        return
    with MPICommExecutor(MPI.COMM_WORLD, root=0) as found:
        executor: Executor | None = cast("Executor | None", found)
        if executor is not None:
            try:
                yield executor
            except BaseException:
                executor.shutdown(wait=True, cancel_futures=True)
                raise
    if executor is None:  # a worker, and the work is over
        sys.exit(0)


@contextmanager
def _ignoring_ctrl_c() -> Iterator[None]:
    """Have workers that start in the block ignore Ctrl-C: it reaches the first process alone, which ends them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, heard)

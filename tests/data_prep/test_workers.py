"""A pool does each task once, tells of errors in one line, and two runs never write one folder."""

import errno
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from limits import limit, wait_until
from on_disk import names
from refusals import refused

from data_prep.pipeline import folders, workers
from data_prep.pipeline.workers import PARALLELISM, Task, WorkerPool, worker_pool
from scaler.core.errors import ScalerError
from scaler.distributed import mpi

PATIENCE = 200  # seconds that another process may take to get where a test waits for it


@pytest.fixture(autouse=True)
def _no_mpi(monkeypatch):
    for name in (*mpi.VARIABLES, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def partial(tmp_path):
    (tmp_path / folders.TASKS).mkdir()
    return tmp_path


def double(number: int, journal: str) -> dict:
    """Write down that it ran, and where."""
    with Path(journal).open("a") as file:
        file.write(f"{number} {os.getpid()}\n")
    return {"double": 2 * number}


def wait_and_double(number: int, seconds: float) -> dict:
    time.sleep(seconds)
    return {"double": 2 * number}


def fail(kind: type, message: str) -> dict:
    raise kind(message)


def fail_after(paths: list[str], message: str) -> dict:
    wait_until(lambda: all(Path(path).exists() for path in paths), seconds=PATIENCE)
    raise ScalerError(message)


def meet_an_error() -> dict:
    raise OSError(errno.EIO, "Input/output error")


def kill_itself() -> dict:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError


def say_parallelism() -> dict:
    return {"parallelism": os.environ.get(PARALLELISM)}


def doubles(folder, numbers):
    return [Task(f"task-{number}", number + 1, double, (number, str(folder / "journal"))) for number in numbers]


def journal(folder):
    return [tuple(map(int, line.split())) for line in (folder / "journal").read_text().splitlines()]


def records(folder):
    return sorted(path.stem for path in (folder / folders.TASKS).glob("*.json"))


@pytest.fixture(params=[1, 2])
def pool(request):
    """One that works here, and one of two processes."""
    if request.param == 1:
        yield WorkerPool()
    else:
        with worker_pool(2) as pool:
            yield pool


def test_records_come_back_in_the_order_of_the_tasks_whichever_ends_first(partial, pool):
    waits = [0.2, 0.0, 0.1, 0.0, 0.05]
    tasks = [Task(f"task-{n}", n, wait_and_double, (n, wait)) for n, wait in enumerate(waits)]
    assert pool.run(tasks, partial, "doubling") == [{"double": 2 * n} for n in range(5)]
    assert pool.run(tasks[::-1], partial, "doubling") == [{"double": 2 * n} for n in reversed(range(5))]


def test_a_task_with_a_record_is_not_done_again(partial, pool):
    pool.run(doubles(partial, [3, 1]), partial, "doubling")
    (partial / folders.TASKS / "task-1.json").write_text('{"double": "as it was recorded"}')
    again = pool.run(doubles(partial, [1, 2, 3]), partial, "doubling")
    assert again == [{"double": "as it was recorded"}, {"double": 4}, {"double": 6}]
    assert sorted(number for number, _ in journal(partial)) == [1, 2, 3]


def test_no_tasks_give_no_records(partial, pool):
    assert pool.run([], partial, "doing nothing") == []


def test_work_is_done_here_or_in_other_processes(partial, pool):
    pool.run(doubles(partial, range(6)), partial, "doubling")
    workers = {pid for _, pid in journal(partial)}
    assert workers == {os.getpid()} if pool.executor is None else os.getpid() not in workers


def test_an_error_keeps_the_records_of_the_tasks_that_are_done(partial):
    bad = Task("bad", 1, fail, (ScalerError, "the disk of task 2"))
    with refused("the disk of task 2"):
        WorkerPool().run([*doubles(partial, [0, 1]), bad, *doubles(partial, [3])], partial, "doubling")
    assert records(partial) == ["task-0", "task-1"]
    assert WorkerPool().run(doubles(partial, [0, 1, 3]), partial, "doubling") == [{"double": 2 * n} for n in (0, 1, 3)]
    assert [number for number, _ in journal(partial)] == [0, 1, 3]


def test_an_error_in_a_worker_keeps_the_records_of_the_tasks_that_are_done(partial):
    first = [str(partial / folders.TASKS / f"task-{n}.json") for n in (0, 1)]
    with worker_pool(2) as pool, refused("too late"):
        bad = Task("bad", 100, fail_after, (first, "too late"))
        pool.run([bad, *doubles(partial, [0, 1])], partial, "doubling")
    assert records(partial) == ["task-0", "task-1"]


@pytest.mark.parametrize("kind", [ScalerError, ValueError])
def test_an_error_in_a_worker_is_the_same_error_here(partial, kind):
    with worker_pool(2) as pool, pytest.raises(kind, match=r"^b\.txt: not UTF-8$"):
        pool.run([Task("bad", 1, fail, (kind, "b.txt: not UTF-8"))], partial, "reading")
    assert records(partial) == []


def test_after_an_error_no_worker_is_left_that_could_write_on(partial):
    others = set(multiprocessing.active_children())
    with worker_pool(2) as pool:
        with refused("stop"):
            slow = Task("slow", 9, wait_and_double, (1, PATIENCE))
            pool.run([slow, Task("bad", 1, fail, (ScalerError, "stop"))], partial, "doubling")
        assert not set(multiprocessing.active_children()) - others
    assert records(partial) == []


@pytest.mark.parametrize("error", [None, ScalerError("stop")])
def test_the_thread_of_the_pool_ends_with_the_team(error):
    others = set(threading.enumerate())
    with nullcontext() if error is None else refused("stop"), worker_pool(2) as pool:
        pool.executor.submit(int).add_done_callback(lambda _: time.sleep(1))  # which the pool's thread does
        if error is not None:
            raise error
    # one that the interpreter itself had to wait for might end with a traceback
    assert not [thread for thread in set(threading.enumerate()) - others if not thread.daemon]


def test_a_thread_of_a_library_is_not_waited_for():
    release = threading.Event()
    thread = threading.Thread(target=release.wait, args=(PATIENCE,))
    with worker_pool(2) as pool:
        pool.executor.submit(int).result()
        thread.start()
    assert thread.is_alive()
    release.set()
    thread.join()


@pytest.mark.parametrize("_again", range(4))  # whether the pool watches over a worker was once a matter of chance
def test_a_killed_worker_is_one_clear_line_and_no_hang(partial, _again):
    with worker_pool(2) as pool:
        pool.run(doubles(partial, [0]), partial, "doubling")
        with refused(rf"^{partial}: a process died while counting words \(out of memory\?\); run again"):
            slow = Task("slow", 9, wait_and_double, (1, PATIENCE))
            pool.run([slow, Task("killed", 1, kill_itself, ())], partial, "counting words")
    assert records(partial) == ["task-0"]


@pytest.mark.parametrize("before", [None, "true"])
def test_the_parallelism_of_tokenizers_is_off_in_tasks_and_restored_after(partial, monkeypatch, before):
    monkeypatch.delenv(PARALLELISM, raising=False)
    if before is not None:
        monkeypatch.setenv(PARALLELISM, before)
    tasks = [Task("say", 1, say_parallelism, ()), Task("bad", 1, fail, (ScalerError, "stop"))]
    with refused("stop"):
        WorkerPool().run(tasks, partial, "asking")
    assert json.loads((partial / folders.TASKS / "say.json").read_text()) == {"parallelism": "false"}
    assert os.environ.get(PARALLELISM) == before


@pytest.mark.parametrize("processes", [0, -2])
def test_fewer_than_one_process_is_refused(processes):
    with refused(rf"processes={processes}, but at least 1"), worker_pool(processes):
        raise AssertionError


def test_tasks_of_srun_that_know_nothing_of_each_other_are_refused(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with refused(r"srun started 4 tasks .* `srun --mpi=pmi2`"), worker_pool(1):
        raise AssertionError


def test_one_task_of_srun_works_alone(monkeypatch):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    with worker_pool(1) as pool:
        assert pool.executor is None


@pytest.mark.parametrize(
    ("environ", "ranks"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, 4),
        ({"PMI_SIZE": "1", "PMI_RANK": "0"}, 1),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "1"}, 1),
        ({"PMIX_RANK": "0", "SLURM_STEP_NUM_TASKS": "4"}, 4),
        ({"PMIX_RANK": "0", "OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"}, 2),
    ],
)
def test_mpi_has_started_as_many_ranks_as_its_variables_say(environ, ranks):
    assert mpi.ranks(environ) == ranks


@pytest.mark.parametrize("name", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
def test_a_size_that_is_no_number_is_refused(name):
    with pytest.raises(ScalerError, match=f"{name}=two: a number of ranks is needed"):
        mpi.ranks({name: "two"})


LEFT_BY_SRUN = {"PMIX_RANK": "0", "PMIX_NAMESPACE": "slurm.pmix.1.0"}


@pytest.mark.parametrize("of_the_step", [{"SLURM_STEP_NUM_TASKS": "1"}, {}])
def test_variables_that_a_shell_has_inherited_start_no_mpi(tmp_path, run_command, of_the_step):
    """What `srun --pty bash` leaves where MpiDefault is pmix; mpich aborts a process that calls its MPI_Init."""
    (tmp_path / "a.txt").write_text("\n\n".join(f"the document {number}" for number in range(300)))
    command = ["-m", "data_prep.corpus", tmp_path / "a.txt", "--out", tmp_path / "corpus", "--processes", 2]
    environ = {**LEFT_BY_SRUN, **of_the_step, "PYTHONPATH": str(Path(__file__).parent.parent.parent)}
    options = ["--heldout_percent", 12, "--test_percent", 5]
    done = run_command(sys.executable, *command, *options, cwd=tmp_path, **environ)
    assert done.returncode == 0, done.stderr
    splits = json.loads((tmp_path / "corpus" / "manifest.json").read_text())["splits"]
    assert sum(entry["documents"] for entries in splits.values() for entry in entries) == 300
    warned = ["PMIX_RANK is set, but no MPI starts; it is taken for a variable that was inherited"]
    assert [line.partition(" | ")[2] for line in done.stderr.splitlines()] == ([] if of_the_step else warned)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EROFS, "Read-only file system"), ImportError("no sem_open"), NotImplementedError("too few")],
)
def test_processes_without_shared_memory_are_refused_in_one_line(monkeypatch, error):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(workers, "ProcessPoolExecutor", refuse)
    with pytest.raises(ScalerError, match=r"^2 processes cannot share locks \(.*\); mount /dev/shm"), worker_pool(2):
        raise AssertionError
    with worker_pool(1) as pool:
        assert pool.executor is None


def test_a_machine_whose_shared_memory_is_read_only_is_told_of_in_one_line(tmp_path):
    enter = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs -o ro,size=1k none /dev/shm && exec "$@"', "sh"]
    if subprocess.run([*enter, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount")
    (tmp_path / "a.txt").write_text("a document")
    command = [sys.executable, "-m", "data_prep.corpus", tmp_path / "a.txt", "--out", tmp_path / "corpus"]
    root = Path(__file__).parent.parent.parent
    done = subprocess.run([*enter, *command, "--processes", "2"], capture_output=True, text=True, check=False, cwd=root)
    said = "error: 2 processes cannot share locks (Read-only file system); mount /dev/shm writable and with some space"
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.startswith(said) and done.stderr.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_error_of_the_system_in_a_task_is_named(partial, pool):
    """Which line met it, because neither the system nor another process tells."""
    with pytest.raises(OSError, match="Input/output error") as raised:
        pool.run([Task("bad", 1, meet_an_error, ())], partial, "reading")
    assert raised.value.filename.startswith("data_prep/pipeline/workers.py, line ")


@pytest.mark.parametrize("name", mpi.SIZES)
def test_mpi_without_mpi4py_is_refused(monkeypatch, name):
    monkeypatch.setenv(name, "2")
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with refused(rf"{name}=2\), but mpi4py cannot be loaded .*MPI module"), worker_pool():
        raise AssertionError


HOLD = """
import sys, time
from pathlib import Path
from data_prep.pipeline.folders import staged, write_manifest
with staged(Path(sys.argv[1]), "corpus", {"number": 1}) as partial:
    (partial / "tasks" / "a.json").write_text("{}")
    print("writing", flush=True)
    sys.stdin.readline()
    write_manifest(partial, "corpus", {"number": 1})
"""


@pytest.fixture
def another_run(start_command):
    """Another process that writes tmp_path/out until it reads a line."""
    process = start_command(sys.executable, "-c", HOLD, "out", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdout.readline() == "writing\n"
    return process


@pytest.mark.parametrize("number", [1, 2])
def test_a_second_run_on_a_folder_is_refused_while_the_first_writes(tmp_path, another_run, number):
    said = r"out\.partial: another run is writing here; wait"
    with refused(said), folders.staged(tmp_path / "out", "corpus", {"number": number}):
        raise AssertionError
    another_run.communicate("go on\n", timeout=limit(PATIENCE))
    assert another_run.returncode == 0
    assert folders.is_current(tmp_path / "out", "corpus", {"number": 1})
    assert names(tmp_path) == ["out"]
    assert not (tmp_path / "out" / folders.LOCK).exists()


def test_no_other_run_can_begin_while_the_folder_takes_its_place(tmp_path, monkeypatch):
    rename, moved = Path.rename, []

    def rename_while_another_run_begins(path, target):
        with refused("another run is"), folders.staged(tmp_path / "out", "corpus", {}):
            raise AssertionError
        moved.append(path.name)
        return rename(path, target)

    with folders.staged(tmp_path / "out", "corpus", {"number": 1}) as partial:
        folders.write_manifest(partial, "corpus", {"number": 1})
        monkeypatch.setattr(Path, "rename", rename_while_another_run_begins)
    assert moved == ["out.partial"]
    assert folders.is_current(tmp_path / "out", "corpus", {"number": 1})


def test_the_lock_of_a_killed_run_is_free_and_its_work_goes_on(tmp_path, another_run):
    another_run.kill()
    another_run.wait()
    with folders.staged(tmp_path / "out", "corpus", {"number": 1}) as partial:
        assert records(partial) == ["a"]


def begin(folder, made_from, kind="corpus"):
    """Begin to write `folder`, do one task, and fail."""
    with refused("half-way"), folders.staged(folder, kind, made_from) as partial:
        (partial / "file.jsonl.zst").write_text("half of it")
        (partial / "folder").mkdir(exist_ok=True)
        (partial / folders.TASKS / "a.json").write_text("{}")
        raise ScalerError("half-way")


def test_the_same_settings_go_on_where_a_failed_run_was(tmp_path):
    begin(tmp_path / "out", {"share": (1, 2)})
    assert not (tmp_path / "out").exists()
    with folders.staged(tmp_path / "out", "corpus", {"share": (1, 2)}) as partial:
        assert records(partial) == ["a"]
        assert (partial / "file.jsonl.zst").read_text() == "half of it"
        folders.write_manifest(partial, "corpus", {"share": (1, 2)})
    assert names(tmp_path) == ["out"]
    assert not {folders.TASKS, folders.STARTED_FROM, folders.LOCK} & set(names(tmp_path / "out"))
    assert folders.is_current(tmp_path / "out", "corpus", {"share": (1, 2)})


@pytest.mark.parametrize(("kind", "made_from"), [("corpus", {"share": (1, 3)}), ("clean", {"share": (1, 2)})])
def test_what_a_run_of_other_settings_began_is_emptied(tmp_path, kind, made_from):
    begin(tmp_path / "out", {"share": (1, 2)})
    with folders.staged(tmp_path / "out", kind, made_from) as partial:
        assert names(partial) == ["lock", "made_from.json", "tasks"]
        assert records(partial) == []


def test_a_failure_before_the_first_task_is_done_leaves_nothing(tmp_path):
    with refused("at once"), folders.staged(tmp_path / "out", "corpus", {}) as partial:
        (partial / "file.jsonl.zst").write_text("half of it")
        raise ScalerError("at once")
    assert names(tmp_path) == []


def test_a_failure_leaves_what_was_there_before(tmp_path):
    with folders.staged(tmp_path / "out", "corpus", {"number": 1}) as partial:
        folders.write_manifest(partial, "corpus", {"number": 1})
    begin(tmp_path / "out", {"number": 2})
    assert folders.is_current(tmp_path / "out", "corpus", {"number": 1})

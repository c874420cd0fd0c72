"""Under MPI the same command makes the same bytes at any number of ranks, and ends as a whole."""

import _ctypes
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from conftest import ROOT, make_documents
from limits import wait_until
from on_disk import content
from refusals import refusal
from small_data import write_documents, write_recipe

from data_prep.pipeline.workers import WorkerPool, worker_pool
from data_prep.prepared.prepare import prepare
from scaler.config.recipe import load
from scaler.distributed import mpi

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
PIPS_MPICH = f"{sys.prefix}/lib/libmpi.so.12"
PATIENCE = 60  # seconds in which a job with a dead rank has to end
pytestmark = [
    pytest.mark.skipif(MPIEXEC is None, reason="no mpiexec here: load an MPI module, or `pip install mpich`"),
    pytest.mark.skipif(importlib.util.find_spec("mpi4py") is None, reason="no mpi4py here: `pip install mpi4py`"),
]


def command(recipe, data, ranks):
    return [MPIEXEC, "-n", ranks, sys.executable, "-m", "data_prep", "--recipe", recipe, f"data.folder={data}"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A recipe over four sources, cleaning and dedup on."""
    folder = tmp_path_factory.mktemp("mpi")
    for number in range(4):
        documents = make_documents(400) + make_documents(800, seed=number) + ["<p>caf\u00c3\u00a9 &amp; bar</p> " * 9]
        write_documents(folder / f"source{number}.txt", documents)
    cleaning = "{unicode_repair: true, markup: true, normalise: NFC, min_characters: 20}"
    return write_recipe(folder, *sorted(folder.glob("source*")), cleaning=cleaning, dedup="{}")


@pytest.fixture(scope="module")
def reference(recipe):
    """What two processes make without MPI: the bytes of all files by path."""
    data = recipe.parent / "reference"
    with worker_pool(2) as pool:
        prepare(load(str(recipe), [f"data.folder={data}"]), pool)
    made = content(data)
    assert {stage_of(path) for path in made} == {"corpus", "clean", "dedup", "tokenizer", "shards", "rows-32"}
    assert sum(path.endswith(".rows") for path in made) == 12
    return made


def stage_of(path):
    return path.partition("/")[0]


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_any_number_of_ranks_makes_the_bytes_that_processes_make(recipe, reference, tmp_path, run_command, ranks):
    done = run_command(*command(recipe, tmp_path / "data", ranks), cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("data/corpus: written") == 1
    assert content(tmp_path / "data") == reference


@pytest.mark.parametrize(("rank", "stage"), [(0, "dedup"), (1, "clean")])
def test_a_killed_rank_ends_the_job_and_the_next_run_makes_the_same_bytes(
    recipe, reference, tmp_path, start_command, rank, stage
):
    data = tmp_path / "data"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    job = start_command(*command(recipe, data, 2), cwd=ROOT, **silent)
    ranks = ranks_of(job)
    others = psutil.Process(job.pid).children(recursive=True)
    wait_until(lambda: list(data.glob(f"{stage}.partial/tasks/*.json")), job, 2 * PATIENCE)
    ranks[rank].send_signal(signal.SIGKILL)
    assert job.wait(PATIENCE) != 0
    assert psutil.wait_procs(others, PATIENCE)[1] == []
    assert not (data / "rows-32").exists()
    assert list(data.glob("*.partial"))
    whole = {path: some for path, some in content(data).items() if not stage_of(path).endswith(".partial")}
    begun = {stage_of(path) for path in whole}
    assert whole == {path: some for path, some in reference.items() if stage_of(path) in begun}
    prepare(load(str(recipe), [f"data.folder={data}"]), WorkerPool())
    assert content(data) == reference


def ranks_of(job):
    """The processes of the ranks, by rank."""

    def found():
        ranks = {}
        for process in psutil.Process(job.pid).children(recursive=True):
            try:
                environ = process.environ()
            except psutil.Error:  # it is about to begin or to end
                continue
            if "data_prep" in process.cmdline():
                ranks[int(environ.get("PMI_RANK", environ.get("OMPI_COMM_WORLD_RANK", -1)))] = process
        return ranks if {0, 1} <= ranks.keys() else None

    return wait_until(found, job, 2 * PATIENCE)


def test_bad_input_under_mpi_is_one_line_and_a_non_zero_exit(recipe, tmp_path, run_command):
    (tmp_path / "bad.txt").write_bytes(b"caf\xe9")
    text = recipe.read_text().replace(str(recipe.parent / "source2.txt"), str(tmp_path / "bad.txt"))
    (tmp_path / "bad.yaml").write_text(text)
    done = run_command(*command(tmp_path / "bad.yaml", tmp_path / "data", 2), cwd=ROOT)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line]
    assert [line for line in errors if "error" in line.lower()] == errors[:1]
    assert errors[0].startswith(f"error: {tmp_path / 'bad.txt'}: ") and "not UTF-8" in errors[0]
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "data" / "corpus").exists()


@pytest.mark.parametrize("module", [["data_prep"], ["scaler.distributed.mpi", "2"]])
@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE"])
@pytest.mark.parametrize("library", ["absent", "no_library", "another_library"])
def test_an_mpi_library_that_cannot_be_loaded_is_one_line(tmp_path, run_command, module, variable, library):
    path = {"absent": tmp_path / "libmpi.so", "no_library": ROOT / "README.md", "another_library": _ctypes.__file__}
    named = {variable: "2", "MPI4PY_LIBMPI": str(path[library])}
    said = refusal(run_command(sys.executable, "-m", *module, cwd=ROOT, **named))
    assert said.startswith(f"error: started by MPI ({variable}=2), but mpi4py cannot be loaded (")
    assert str(path[library]) in said and "load the MPI module" in said


@pytest.mark.parametrize("module", [["data_prep"], ["scaler.distributed.mpi", "2"]])
def test_ranks_of_another_mpi_than_the_launchers_are_refused(run_command, module):
    """Whether Open MPI is installed or not, without its mpirun no rank sees another."""
    done = run_command(sys.executable, "-m", *module, cwd=ROOT, status=2, OMPI_COMM_WORLD_SIZE="2")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]  # Open MPI may warn before
    refused = ("MPI sees one rank where several were started", "mpi4py sees 1 of 2 ranks", "mpi4py cannot be loaded")
    assert len(errors) == 1 and any(reason in errors[0] for reason in refused)
    assert "Traceback" not in done.stderr


@pytest.mark.skipif(not Path(PIPS_MPICH).exists(), reason="no MPICH of pip here: `pip install mpich`")
@pytest.mark.parametrize("module", [["data_prep"], ["scaler.distributed.mpi", "2"]])
def test_ranks_that_do_not_see_each_other_are_refused(run_command, module):
    named = {"PMI_SIZE": "2", "MPI4PY_LIBMPI": PIPS_MPICH}
    said = refusal(run_command(sys.executable, "-m", *module, cwd=ROOT, **named))
    reasons = ("MPI sees one rank where several were started (PMI_SIZE=2)", "mpi4py sees 1 of 2 ranks")
    assert said.startswith(tuple(f"error: {reason}" for reason in reasons))


def test_pips_mpich_tells_addresses_that_fit_a_line_of_slurms(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    (tmp_path / "lib").mkdir()
    of_the_site: dict[str, str] = {}
    mpi.use_launchers_library(of_the_site)
    assert of_the_site == {"MPI4PY_LIBMPI": f"{tmp_path}/lib/libmpi.so.12:libmpi.so.12"}
    (tmp_path / "lib" / "libmpi.so.12").touch()
    for wished, expected in (({}, "ofi"), ({"MPIR_CVAR_CH4_NETMOD": "ucx"}, "ucx")):
        environ = dict(wished)
        mpi.use_launchers_library(environ)
        assert environ["MPIR_CVAR_CH4_NETMOD"] == expected

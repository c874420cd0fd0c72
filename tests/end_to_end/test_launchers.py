"""The same training under every launcher, on two virtual nodes: the same losses; a wrong number of ranks is refused."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from on_disk import metric
from slurm_cluster import PACKAGES, SEARCH, Cluster, missing

pytestmark = pytest.mark.skipif(missing() is not None, reason=str(missing()))
BIN = Path(sys.prefix) / "bin"
TRAIN = [ROOT / "scaler" / "train.py"]
OVER_NODES = [BIN / "deepspeed", "-H", "hostfile", "--no_ssh_check", "--master_addr", "node1", "--launcher"]
OPEN_MPI = shutil.which("mpirun.openmpi", path=SEARCH) or "mpirun.openmpi"
NO_SSH = [BIN / "deepspeed", "-H", "hostfile", "--no_ssh", "--master_addr", "node1", "--node_rank", "$SLURM_NODEID"]
# name: the command on the first node, and what it needs that not every machine has
LAUNCHERS = {
    "srun": (["srun", "-N2", "--ntasks-per-node=1", sys.executable, *TRAIN], []),
    "torchrun": ([BIN / "torchrun", "--standalone", "--nproc-per-node=2", *TRAIN], []),
    "deepspeed": ([BIN / "deepspeed", "--num_gpus=2", *TRAIN], []),
    "deepspeed --no_ssh": (["srun", "-N2", "--ntasks-per-node=1", "bash", "-c", *NO_SSH, *TRAIN], []),
    "deepspeed --launcher pdsh": ([*OVER_NODES, "pdsh", *TRAIN], ["pdsh", "sshd"]),
    "deepspeed --launcher slurm": ([*OVER_NODES, "slurm", "--launcher_args=--ntasks-per-node=1", *TRAIN], []),
    "deepspeed --launcher mpich": ([*OVER_NODES, "mpich", *TRAIN], ["sshd"]),
    "deepspeed --launcher openmpi": ([*OVER_NODES, "openmpi", *TRAIN], ["sshd", "mpirun.openmpi"]),
    "mpiexec of MPICH": ([BIN / "mpiexec", "-hosts", "node1,node2", "-n", "2", sys.executable, *TRAIN], ["sshd"]),
    "mpirun of Open MPI": ([OPEN_MPI, "--host", "node1,node2", sys.executable, *TRAIN], ["sshd", "mpirun.openmpi"]),
}


@pytest.fixture(scope="module")
def cluster():
    has_ssh = bool(shutil.which("sshd", path=SEARCH))
    with Cluster(Path(f"/tmp/scaler-launch-{os.getpid()}"), nodes=2, with_ssh=has_ssh) as on:
        yield on


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Where all of them run; it has DeepSpeed's list of nodes, and mpirun as Open MPI's."""
    made = tmp_path_factory.mktemp("launchers")
    (made / "hostfile").write_text("node1 slots=1\nnode2 slots=1\n")
    # other launchers hand the variable on; with other threads bf16 rounds otherwise
    (made / ".deepspeed_env").write_text("OMP_NUM_THREADS=1\n")
    (made / "openmpi").mkdir()
    for name in ("mpirun", "ompi_info"):
        (made / "openmpi" / name).symlink_to(shutil.which(f"{name}.openmpi", path=SEARCH) or f"/usr/bin/{name}")
    return made


def start(cluster, folder: Path, name: str, *arguments: object):
    """Run a launcher on the first node with the arguments of a training: status, and all that was said."""
    command, needed = LAUNCHERS[name]
    lacking = [program for program in needed if not shutil.which(program, path=SEARCH)]
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}; apt-get install {PACKAGES}")
    environ = {"SLURM_CONF": cluster.environ["SLURM_CONF"], "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    environ |= {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "CUDA_VISIBLE_DEVICES": ""}
    search = f"{folder}/openmpi:{BIN}:{SEARCH}" if "openmpi" in name else f"{BIN}:{SEARCH}"
    words = [str(word) for word in (*command, *arguments)]
    if "-c" in words:  # for the shell of each node
        words[words.index("-c") + 1 :] = [" ".join(words[words.index("-c") + 1 :])]
    return cluster.inside(cluster.nodes[0], *words, cwd=folder, **environ, PATH=search)


@pytest.fixture(scope="module")
def losses(cluster, folder, tiny_recipe_file):
    """What a training of three steps logs, by launcher; each is started once."""
    found = {}

    def of(name: str) -> list[float]:
        if name not in found:
            run = folder / "runs" / name.replace(" ", "-")
            settings = ["training.steps=3", "training.log_every=1", "training.evaluate_every=3"]
            files = ("--recipe", tiny_recipe_file, "--run_dir", run)
            done = start(cluster, folder, name, *files, "--ranks", 2, *settings)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
            found[name] = metric(run, "train_loss")
        return found[name]

    return of


# of those that need ssh or another MPI each takes half a minute
QUICK = ("srun", "torchrun", "deepspeed", "mpiexec of MPICH")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in LAUNCHERS]
)
def test_losses_are_the_same_under_every_launcher(losses, name):
    assert len(losses(name)) == 3
    assert losses(name) == pytest.approx(losses("srun"), rel=1e-6)


def test_tasks_that_do_not_know_of_each_other_are_refused(cluster, folder, tiny_recipe_file):
    train = [*map(str, (sys.executable, *TRAIN)), "--recipe", str(tiny_recipe_file), "--run_dir", "runs/alone"]
    forgetful = ["srun", "-N2", "--ntasks-per-node=1", "env", "-u", "SLURM_STEP_NUM_TASKS", *train]
    done = cluster.inside("node1", *forgetful, cwd=folder)
    assert done.returncode == 2
    for task in (0, 1):
        assert f"error: SLURM_NTASKS=2, SLURM_PROCID={task}: the job is for several tasks, but srun has" in done.stderr
    assert not (folder / "runs" / "alone").exists()


def test_a_batch_script_that_forgets_srun_is_refused_and_one_rank_can_be_asked_for(cluster, folder, tiny_recipe_file):
    train = [*map(str, (sys.executable, *TRAIN)), "--recipe", str(tiny_recipe_file), "--run_dir", "runs/batch"]
    words = " ".join([*train, "training.steps=3", "training.evaluate_every=3"])
    log, environ = folder / "batch.txt", {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    for prefix, state in (("", "FAILED"), ("srun --ntasks=1 --nodes=1 ", "COMPLETED")):
        options = ("--parsable", "--nodes=2", f"--output={log}", "--wrap", prefix + words)
        job = cluster.submit(*options, cwd=folder, **environ).stdout.strip()
        found = cluster.wait(job, "COMPLETED", "FAILED")
        assert found["JobState"] == state, log.read_text()
        if not prefix:
            assert found["ExitCode"] == "2:0" and not (folder / "runs" / "batch").exists()
            assert "error: SLURM_NNODES=2, SLURM_PROCID=0: the job is for several tasks" in log.read_text()
    assert "1 rank, ZeRO-2" in log.read_text()

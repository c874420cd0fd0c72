"""Rank facts from every launcher, and ranks that give up together."""

import socket
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from limits import limit
from refusals import refused

from scaler.core import slurm
from scaler.core.errors import ScalerError
from scaler.distributed import collectives, devices
from scaler.distributed.world import World, detect_world, forget_launch, publish
from scaler.engine import process_group

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4", "MASTER_ADDR": "a"}
DEEPSPEED = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_SIZE": "4"}
SRUN = {
    **{"SLURM_PROCID": "5", "SLURM_STEP_NUM_TASKS": "8", "SLURM_LOCALID": "1"},
    **{"SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_NTASKS": "16"},
}
OPEN_MPI = {
    **{"OMPI_COMM_WORLD_RANK": "5", "OMPI_COMM_WORLD_SIZE": "8"},
    **{"OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "4"},
}
MPICH = {"PMI_RANK": "5", "PMI_SIZE": "8", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "4"}


@pytest.mark.parametrize(
    "environ, launcher",
    [
        *((TORCHRUN, "torchrun"), (DEEPSPEED, "deepspeed"), (SRUN, "srun"), (OPEN_MPI, "Open MPI")),
        (MPICH, "MPICH or Intel MPI"),
        ({**SRUN, **TORCHRUN}, "torchrun"),  # torchrun under srun: the inner one started this process
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "4,3,1"}, "srun"),
        ({**SRUN, "SLURM_STEP_TASKS_PER_NODE": "1,4,3", "SLURM_NODEID": "1"}, "srun"),
        ({**SRUN, "PMI_RANK": "5", "PMI_SIZE": "8"}, "srun"),  # srun --mpi=pmi2
        # in a job, srun starts the daemons of MPI, and their ranks inherit its variables
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", **OPEN_MPI}, "Open MPI"),
        ({**SRUN, "SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "2", **MPICH}, "MPICH or Intel MPI"),
    ],
)
def test_every_launcher_is_understood(environ, launcher):
    assert detect_world(environ) == World(rank=5, size=8, local_rank=1, local_size=4, launcher=launcher)


INTERACTIVE = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "1", "PMIX_RANK": "0"}
ACCELERATE = {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_USE_CPU": "True"}


@pytest.mark.parametrize(
    "environ",
    [
        *({}, {"RANK": "0"}, {"LOCAL_RANK": "0"}, {"PMIX_RANK": "0", "PMI_SIZE": "1"}, ACCELERATE),
        {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "1", "SLURM_PROCID": "0"},
        {"MASTER_ADDR": "node7", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"},
    ],
)
def test_without_a_launcher_there_is_one_rank_that_waits_for_nobody(environ):
    world = detect_world(environ)
    assert world == World(0, 1, 0, 1, "none")
    now = dict(environ)
    publish(world, now)
    assert now["MASTER_ADDR"] == "127.0.0.1" and now["MASTER_PORT"] != "29500"
    assert "TORCHELASTIC_USE_AGENT_STORE" not in now
    assert {now[name] for name in ("RANK", "LOCAL_RANK")} == {"0"}
    assert {now[name] for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE")} == {"1"}


def test_a_shell_of_an_interactive_step_is_one_rank():
    assert detect_world(INTERACTIVE) == World(0, 1, 0, 1, "srun")


BATCH = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NNODES": "2"}  # of `sbatch --nodes=2`


@pytest.mark.parametrize(
    "environ, said",
    [
        # left over of another launch, or of one that is unknown
        (
            {"WORLD_SIZE": "8"},
            r"WORLD_SIZE=8 contradicts the launcher \(none\), by which this process is the only rank",
        ),
        ({"RANK": "3"}, "RANK=3 contradicts"),
        ({"LOCAL_RANK": "3"}, "LOCAL_RANK=3 contradicts"),
        ({"RANK": "0", "WORLD_SIZE": "1", "PMI_SIZE": "2"}, r"PMI_SIZE=2 contradicts the launcher \(the environment\)"),
        ({"PMI_RANK": "1", "PMI_SIZE": "2"}, "PMI_SIZE=2 contradicts"),
        ({"MV2_COMM_WORLD_SIZE": "4"}, "MV2_COMM_WORLD_SIZE=4 contradicts"),
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "2"}, r"RANK=0, WORLD_SIZE=2 .*\(Open MPI\).* rank 5 of 8, 1 of 4 on"),
        ({**OPEN_MPI, "LOCAL_RANK": "7"}, "LOCAL_RANK=7 contradicts"),
        ({**DEEPSPEED, "LOCAL_WORLD_SIZE": "1"}, "LOCAL_RANK=1 of LOCAL_WORLD_SIZE=1 makes no sense"),
        # each process would be the only rank of its world
        (
            {**SRUN, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0"},
            "SLURM_STEP_NUM_TASKS=8",
        ),
        ({**OPEN_MPI, "RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}, "OMPI_COMM_WORLD_SIZE=8 contradicts"),
        # a job of several tasks, but none of its steps
        (
            BATCH,
            "SLURM_NNODES=2, SLURM_PROCID=0: the job is for several tasks, .* start it by srun, or .*`srun --ntasks=1`",
        ),
        ({**BATCH, "SLURM_NTASKS": "2"}, "SLURM_NTASKS=2, SLURM_PROCID=0: the job is for"),
        ({"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4: the job is for"),  # a shell of salloc
        ({"SLURM_PROCID": "1", "SLURM_LOCALID": "1"}, "SLURM_PROCID=1: the job is for"),
        ({**INTERACTIVE, "SLURM_NTASKS": "4"}, "SLURM_NTASKS=4, SLURM_PROCID=0: the job is for"),
        # what accelerate sets for two processes on CPUs, of which it starts one
        ({**ACCELERATE, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}, "accelerate launch` .* take torchrun"),
    ],
)
def test_an_environment_that_tells_of_another_world_is_refused_by_name(environ, said):
    with refused(said):
        detect_world(environ)


@pytest.mark.parametrize("outer", [SRUN, OPEN_MPI, {"SLURM_NTASKS": "2", "SLURM_NNODES": "2", "SLURM_PROCID": "0"}])
def test_a_launcher_that_was_started_on_each_node_by_another_decides(outer):
    environ = {**outer, **TORCHRUN}
    assert detect_world(environ).launcher == "torchrun"


def test_processes_of_another_world_begin_without_what_tells_of_this_one():
    environ = {**SRUN, **OPEN_MPI, **MPICH, **TORCHRUN, **BATCH, "WORLD_SIZE": "8", "HOME": "/home/me"}
    forget_launch(environ)
    assert detect_world(environ) == World() and environ["HOME"] == "/home/me" and environ["SLURM_JOB_ID"] == "7"


@pytest.mark.parametrize(
    "name, value", [("RANK", "first"), ("WORLD_SIZE", ""), ("LOCAL_WORLD_SIZE", "x"), ("RANK", "8")]
)
def test_facts_that_make_no_sense_are_refused_by_name(name, value):
    with pytest.raises(ScalerError, match=name):
        detect_world({**TORCHRUN, name: value})


def test_only_the_first_rank_writes():
    assert [World(rank=rank, size=3).is_first for rank in range(3)] == [True, False, False]


def test_the_facts_that_were_decided_are_published_and_an_address_that_was_set_stays():
    environ = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "WORLD_SIZE": "3", "LOCAL_RANK": "7"}
    publish(detect_world(OPEN_MPI), environ)
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    assert [environ[name] for name in names] == ["5", "8", "1", "4", "node0", "29500"]


def test_only_torchrun_keeps_a_store_of_its_own():
    for environ, kept in ((TORCHRUN, True), (SRUN, False)):
        now = {"MASTER_ADDR": "node0", "MASTER_PORT": "29500", "TORCHELASTIC_USE_AGENT_STORE": "True"}
        publish(detect_world(environ), now)
        assert ("TORCHELASTIC_USE_AGENT_STORE" in now) is kept


@pytest.mark.parametrize("port", ["", "0", "70000", "http"])
def test_a_port_that_is_none_is_refused(port):
    with refused(f"MASTER_PORT={port}: a port from 1 to 65535 is needed"):
        publish(detect_world(SRUN), {"MASTER_ADDR": "node0", "MASTER_PORT": port})


def test_one_rank_finds_a_free_port_by_itself():
    environ: dict[str, str] = {}
    publish(World(), environ)
    assert environ["MASTER_ADDR"] == "127.0.0.1"
    assert 1024 <= int(environ["MASTER_PORT"]) < 65536


def test_several_ranks_need_an_address_and_the_error_says_which():
    with pytest.raises(ScalerError, match="MASTER_PORT are not both set for 8 ranks started by torchrun"):
        publish(detect_world(TORCHRUN), {"MASTER_ADDR": "node0"})


def test_srun_needs_no_address():
    environ = {**SRUN, "SLURM_STEP_NODELIST": "gpu[03-05,9]", "SLURM_JOB_ID": "4711", "SLURM_STEP_ID": "2"}
    publish(detect_world(environ), environ)
    assert environ["MASTER_ADDR"] == "gpu03" and 10000 <= int(environ["MASTER_PORT"]) < 30000


def test_steps_and_jobs_meet_at_ports_of_their_own():
    steps = [{"SLURM_JOB_ID": str(job), "SLURM_STEP_ID": str(step)} for job in range(50) for step in range(5)]
    assert len({slurm.port(step) for step in steps}) == len(steps)


@pytest.mark.parametrize("local_rank, visible, index", [(0, 8, 0), (3, 8, 3), (3, 1, 0)])
def test_each_rank_takes_its_own_gpu_or_the_only_one_it_sees(monkeypatch, local_rank, visible, index):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: visible)
    assert devices.device(World(local_rank, 8, local_rank, 8)) == torch.device("cuda", index)


def test_more_ranks_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(ScalerError, match=r"4 ranks on .*, but 2 GPUs; start one rank a GPU"):
        devices.device(World(2, 4, 2, 4))


def test_a_port_that_is_taken_is_named_with_the_remedy(monkeypatch):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for name, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(ScalerError, match=f"could not meet at 127.0.0.1:{port} .* set MASTER_ADDR and MASTER_PORT"):
            process_group.join(World(launcher="torchrun"))


@pytest.mark.parametrize(
    "said, lost",
    [
        ("[../gloo/transport/tcp/pair.cc:544] Connection closed by peer [10.0.0.2]:4312", True),
        ("NCCL error in: NCCLUtils.cpp:77, unhandled system error, remote process exited", True),
        ("NCCL error in: init.cpp:1, invalid usage (run with NCCL_DEBUG=WARN for details)", False),
        ("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", False),
    ],
)
def test_a_rank_that_has_gone_is_told_from_a_mistake(said, lost):
    assert collectives.is_lost_connection(RuntimeError(said)) is lost


RANK_PROGRAM = """
import sys
import torch, torch.distributed as dist
from scaler.core.cli import command
from scaler.distributed import collectives
from scaler.distributed.world import detect_world

@command
def main():
    world = detect_world()
    dist.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=world.rank, world_size=world.size)
    try:
        together(world)
    finally:
        dist.destroy_process_group()  # or gloo's threads may abort the process as it ends

def together(world):
    collectives.agree_or_raise(None, world)
    mine = torch.tensor([1.0 + world.rank])
    print("total", collectives.total(mine).item(), "own", mine.item())
    collectives.agree_or_raise("the disk of rank 1 is full" if world.rank == 1 else None, world)
    print("went on")

main()
"""


def test_all_ranks_end_when_one_has_a_problem_and_the_first_says_which(tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK_PROGRAM, tmp_path / "meeting"],
            env={"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2", "PATH": ""},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=limit(400)) for rank in ranks]
    assert [output for output, _ in outputs] == ["total 3.0 own 1.0\n", "total 3.0 own 2.0\n"]
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert "error: the disk of rank 1 is full\n" in outputs[0][1]
    assert "error:" not in outputs[1][1]

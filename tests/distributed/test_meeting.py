"""Ranks that wait for others say so, with how many have come and which have not."""

import logging
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from limits import limit, wait_until
from refusals import refused

from scaler.core import log, slurm
from scaler.distributed import meeting, mpi
from scaler.distributed.meeting import Meeting
from scaler.distributed.world import World, free_port


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """Ranks of this process meet at a port of their own; the times are a hundredth of what they are for users."""
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    monkeypatch.setattr(log, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(meeting, "SOON_SECONDS", 0.02)
    monkeypatch.setattr(meeting, "POLL_SECONDS", (0.01, 0.05))


@pytest.fixture
def hosts(monkeypatch):
    """The node of each rank, which has the name of the thread that it runs in."""
    monkeypatch.setattr(slurm, "node_name", lambda: threading.current_thread().name.partition("_")[0])


def on(host: str, function, *arguments):
    """Call a function in a thread that stands for a rank on a node; its future."""
    return ThreadPoolExecutor(1, thread_name_prefix=host).submit(function, *arguments)


def world(rank: int, size: int = 4, per_node: int = 2, launcher: str = "deepspeed") -> World:
    return World(rank, size, rank % per_node, per_node, launcher)


def said(caplog) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


def close(*futures):
    for future in futures:
        future.result(limit(60)).close()


def test_ranks_that_all_come_say_nothing(hosts, caplog):
    close(*(on("node1", Meeting, world(rank), 60.0) for rank in range(4)))
    assert said(caplog) == []


def test_who_waits_for_ranks_says_how_many_are_there_which_are_missing_and_until_when(hosts, caplog):
    first = [on("node1", Meeting, world(rank), 1800.0) for rank in range(2)]
    wait_until(lambda: len(said(caplog)) >= 2)  # and again
    late = [on("node2", Meeting, world(rank), 1800.0) for rank in (2, 3)]
    close(*first, *late)
    line = r"waiting for 0 s: 2 of 4 ranks have come (ranks 0-1 on node1), missing: ranks 2-3; "
    assert line + "it gives up after 30m00s" in said(caplog)


def test_srun_tells_the_nodes_of_ranks_that_are_missing(hosts, caplog, monkeypatch):
    monkeypatch.setattr(slurm, "step_hosts", lambda: ["node1", "node1", "node2", "node2"])
    with refused("could not meet .* missing: rank 1 on node1, ranks 2-3 on node2; start those"):
        on("node1", Meeting, world(0, launcher="srun"), 0.3).result()


def test_a_rank_that_does_not_reach_the_first_says_where_it_looks(hosts, caplog):
    waiting = on("node2", Meeting, world(2, 3), 60.0)
    wait_until(lambda: said(caplog))
    close(waiting, *(on("node1", Meeting, world(rank, 3), 60.0) for rank in range(2)))
    assert "rank 2 of 3 on node2 waits for rank 0 at 127.0.0.1:" in said(caplog)[0]
    assert "(Connection refused); it gives up after 1m00s" in said(caplog)[0]


@pytest.mark.parametrize("address", ["127.0.0.1", "no-such-host.invalid"])
def test_an_address_that_nobody_answers_ends_with_the_reason_and_the_limit(monkeypatch, address):
    monkeypatch.setenv("MASTER_ADDR", address)
    said = (
        rf"rank 1: 2 ranks could not meet at {address}:\d+ \(timed out after 0s, trying to connect: \w+.*\); all nodes "
    )
    with refused(said + "must reach that address of rank 0: set MASTER_ADDR and MASTER_PORT"):
        Meeting(world(1, 2), 0.3)


def test_a_rank_that_was_started_twice_ends_all_with_both_nodes(hosts):
    ranks = [on(f"node{node}", Meeting, world(rank, 3), 60.0) for rank, node in ((0, 1), (1, 2), (1, 3))]
    for rank in ranks:
        with refused("rank 1 was started twice, on node[23] and on node[23]; give each node a number of its own"):
            rank.result(limit(60))


def test_nodes_that_were_told_other_numbers_of_ranks_end_with_both(hosts):
    ranks = [on("node1", Meeting, world(0, 2), 60.0), on("node2", Meeting, world(2, 4), 60.0)]
    for rank in ranks:
        with refused("is one of . ranks, and others are of .; tell all nodes the same numbers"):
            rank.result(limit(60))


def test_a_port_of_another_program_is_named(monkeypatch):
    with socket.create_server(("", 0)) as taken:
        monkeypatch.setenv("MASTER_PORT", str(taken.getsockname()[1]))
        with refused("rank 0: 2 ranks could not meet at 127.0.0.1:.* the port must be free"):
            Meeting(world(0, 2), 1.0)


def test_who_waits_in_a_collective_names_the_ranks_that_have_not_come_this_far(hosts, caplog):
    ranks = [on(f"node{1 + rank // 2}", Meeting, world(rank), 1800.0) for rank in range(4)]
    ranks = [rank.result(limit(60)) for rank in ranks]
    with ranks[0].waiting(), ranks[1].waiting(), ranks[2].waiting():
        line = wait_until(lambda: said(caplog))[0]
        with ranks[3].waiting():
            wait_until(lambda: "all 4 ranks have come" in said(caplog)[-1])
    assert "3 of 4 ranks have come (ranks 0-1 on node1, rank 2 on node2), missing: rank 3 on node2; " in line
    count = len(said(caplog))
    time.sleep(0.3)
    assert len(said(caplog)) == count  # nobody waits any more
    # of those that wait only one speaks, the first
    with ranks[2].waiting(), ranks[3].waiting():
        line = wait_until(lambda: said(caplog)[count:])[-1]
    assert "2 of 4 ranks have come (ranks 2-3 on node2), missing: ranks 0-1 on node1" in line
    for rank in ranks:
        rank.close()


def test_hosts_beyond_a_few_are_counted():
    hosts = [f"node{number}" for number in range(20)]
    assert meeting.by_host([1, 2], hosts) == "rank 1 on node1, rank 2 on node2"
    assert meeting.by_host(list(range(20)), hosts).endswith("rank 7 on node7 and those of 12 more hosts")
    assert meeting.by_host([0, 1, 2, 5, 7, 8], [""] * 9) == "ranks 0-2, 5, 7-8"


def test_a_line_comes_after_ten_seconds_and_each_time_the_wait_has_doubled(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(log, "SILENT_SECONDS", 10.0)
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    reminder, due = log.Reminder(), []
    for second in range(1, 200):
        now[0] = 100.0 + second
        due += [second] * reminder.is_due()
    assert due == [10, 20, 40, 80, 160]


def test_an_mpi_that_never_answers_is_waited_for_aloud_and_not_for_ever(tmp_path, monkeypatch, caplog):
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 100\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(mpi.sys, "executable", str(tmp_path / "python"))
    with refused("MPI does not know all 4 ranks after 1.5 s: some have not come; set MASTER_ADDR and MASTER_PORT"):
        mpi.meeting_point(4, 1.5)
    assert said(caplog) == ["waiting for 1 s until MPI knows all 4 ranks"]

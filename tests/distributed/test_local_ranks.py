"""Processes of this machine that are called as ranks: their results, and what is said when one fails."""

import os
import signal

import pytest

from scaler.core.errors import ScalerError
from scaler.distributed import local_ranks
from scaler.distributed.world import World


def facts(world: World, word: str) -> tuple[int, str, str | None, str]:
    return world.rank, word, os.environ.get("RANK"), os.environ["MASTER_PORT"]


def refuse(world: World) -> None:
    raise ScalerError(f"rank {world.rank} has no disk")


def be_killed(world: World) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_results_come_by_rank_and_the_launcher_of_this_process_is_unknown(monkeypatch):
    monkeypatch.setenv("RANK", "7")
    first, second = local_ranks.call([World(rank, 2, rank, 2) for rank in range(2)], facts, "a word")
    assert first == (0, "a word", None, first[3]) and second == (1, "a word", None, first[3])


@pytest.mark.parametrize(("work", "message"), [(refuse, "rank 0 has no disk"), (be_killed, "ended with status -9")])
def test_one_that_fails_is_an_error_of_one_line(work, message):
    with pytest.raises(ScalerError, match=message) as failed:
        local_ranks.call([World()], work)
    assert "\n" not in str(failed.value)

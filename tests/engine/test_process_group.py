"""How long ranks wait for each other in a collective."""

from datetime import timedelta

import pytest
import torch

from scaler.distributed.world import World
from scaler.engine import process_group


def limits() -> list[timedelta]:
    """That of each group."""
    groups = torch.distributed.distributed_c10d._world.pg_map
    return [group._get_backend(torch.device("cpu")).options._timeout for group in groups]


@pytest.fixture
def joined():
    yield process_group.join
    process_group.leave()


def test_ranks_wait_for_half_an_hour_whatever_deepspeed_and_torch_would_wait(joined):
    joined(World())
    assert limits() == [timedelta(minutes=30)]
    torch.distributed.new_group([0])
    process_group.set_limit(7200)
    assert limits() == [timedelta(hours=2)] * 2


def test_a_command_may_have_a_limit_of_its_own(joined):
    joined(World(), 12.5)
    assert limits() == [timedelta(seconds=12.5)]

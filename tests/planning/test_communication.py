"""Predicted communication against what the engine sends, and against formulae."""

from math import log2

import pytest

from scaler.planning import communication
from scaler.planning.communication import collectives_of_step
from scaler.planning.memory import Layout, Sharding

LAYOUT = Layout(((600_000, 64_000), (262_144, 65_536, 65_536), (256, 256, 1024)), frozen=10_000)


@pytest.fixture(scope="module")
def figures(worker_figures, tiny_recipe_file):
    """By ZeRO stage and micro-batches, what two ranks hand to collectives in a step, and what is told."""
    return worker_figures("plan_worker", tiny_recipe_file)


@pytest.mark.parametrize("number", range(12))
def test_the_time_of_every_collective_of_the_engine_is_taken(figures, number):
    calls = sum(count for kind, (_, count) in figures[number]["sent"].items() if kind != "on the wire")
    timed = figures[number]["timed"]
    assert len(timed) == calls > 0 and min(timed) > 0


@pytest.mark.parametrize("number", range(12))
def test_the_engine_sends_byte_for_byte_what_is_told(figures, number):
    found = figures[number]
    sent = {kind: tuple(of_kind) for kind, of_kind in found["sent"].items()}
    told: dict[str, tuple[int, int]] = {}
    for kind, what, size, calls in found["told"]:
        if what != "norms and signs":
            before = told.get(kind, (0, 0))
            told[kind] = before[0] + size, before[1] + calls
    small, none = sent["all_reduce"][0] - told.get("all_reduce", (0, 0))[0], (0, 0)
    assert 0 <= small <= 100
    assert sent["all_reduce"][1] - told.get("all_reduce", none)[1] <= 6
    assert sent.get("reduce_scatter", none)[0] == told.get("reduce_scatter", none)[0]
    assert sent.get("reduce_scatter", none)[1] <= told.get("reduce_scatter", none)[1]
    assert sent.get("all_gather", none) == told.get("all_gather", none)
    assert set(sent) <= {"all_reduce", "all_gather", "reduce_scatter", "on the wire"}


@pytest.mark.parametrize("number", range(12))
def test_half_of_the_parts_go_to_the_other_rank_and_no_more(figures, number):
    found = figures[number]
    whole = sum(size for kind, what, size, _ in found["told"] if kind in ("reduce_scatter", "all_gather"))
    wire = found["sent"].get("on the wire", (0, 0))[0]
    assert wire == pytest.approx(whole / 2, rel=0.01, abs=0)  # shares of parameters are not quite equal
    if found["case"][0] in (1, 2):  # at any accumulation at stage 1; the aim is 2.05 P
        times = found["case"][1] if found["case"][0] == 2 else 1
        width = 2 if found["case"][2] else 4
        assert 2 * wire <= 1.025 * (times + 1) * width * found["parameters"]


def test_stage_2_sends_with_every_micro_batch_and_stage_1_once():
    def gradients(stage, accumulation):
        return collectives_of_step(LAYOUT, Sharding(stage, "bf16", 500_000, ranks=8, accumulation=accumulation))[0].sent

    assert gradients(2, 4) == 4 * gradients(1, 4) == 4 * gradients(0, 1) == 8 * LAYOUT.trained


@pytest.mark.parametrize("kind, passes", [("all_reduce", 2), ("all_gather", 1), ("reduce_scatter", 1), ("reduce", 1)])
def test_a_ring_sends_its_share_and_hops_add_up(kind, passes):
    some = communication.Collective(kind, "data", 1_000_000, calls=3)
    assert communication.bytes_on_the_wire(some, 4) == passes * 0.75e6
    assert communication.seconds(some, 4, 1e6, 0.0) == pytest.approx(passes * 0.75)
    assert communication.seconds(some, 8, 1e30, 0.5) == pytest.approx(3 * passes * log2(8) * 0.5)


def test_reduces_by_gloo_gain_nothing_on_two_ranks():
    sent = {
        (kind, ranks): communication.bytes_on_the_wire(
            communication.Collective(kind, "gradients", 1_000_000, 1), ranks, gloo=True
        )
        for kind in ("all_reduce", "reduce")
        for ranks in (2, 4)
    }
    assert sent["reduce", 2] > sent["all_reduce", 2] and sent["reduce", 4] < sent["all_reduce", 4]


def test_one_rank_sends_nothing():
    assert collectives_of_step(LAYOUT, Sharding(2, "bf16", 500_000, ranks=1, accumulation=4)) == ()

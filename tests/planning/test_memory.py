"""Predicted memory of a rank against the ZeRO paper and DeepSpeed's own copies."""

import pytest

from scaler.planning.memory import Activations, Layout, Sharding, memory_of_step

LAYOUT = Layout(((600_000, 64_000), (262_144, 65_536, 65_536), (256, 256, 1024)), frozen=10_000)
NOTHING = Activations(0, 0, 0)


def test_a_rank_at_stage_2_holds_the_gradients_of_whole_parameters():
    # 997k of 1.06 M numbers are in parameters that the first or second part touches
    assert LAYOUT.largest_touched(1) == LAYOUT.trained
    assert LAYOUT.largest_touched(2) >= 600_000  # the largest is in both parts
    assert Layout(((100, 100, 100, 100),)).largest_touched(2) == 200


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_more_ranks_never_take_more_memory(stage):
    peaks = [
        memory_of_step(LAYOUT, NOTHING, Sharding(stage, "fp32", 100_000, ranks=ranks, accumulation=2)).peak
        for ranks in (1, 2, 4, 64)
    ]
    assert peaks == sorted(peaks, reverse=True)
    assert (peaks[0] == peaks[-1]) == (stage == 0)


def test_what_is_kept_is_that_of_the_zero_paper():
    # bf16 and AdamW: 2 bytes of weight, 4 of an fp32 copy, 8 of moments, shared from stage 1 on
    layout, ranks = Layout(((8_000_000,),)), 8
    assert memory_of_step(layout, NOTHING, Sharding(0, "bf16", 1, ranks=ranks)).kept == {
        "weights": 16_000_000, "optimizer": 64_000_000, "fp32 weights": 32_000_000
    }  # fmt: skip
    assert memory_of_step(layout, NOTHING, Sharding(2, "bf16", 1, ranks=ranks)).kept == {
        "weights": 16_000_000, "fp32 weights": 4_000_000, "optimizer": 8_000_000
    }  # fmt: skip
    kept = memory_of_step(layout, NOTHING, Sharding(3, "bf16", 1, ranks=ranks)).kept
    assert (kept["weights"], kept["gradients"]) == (2_000_000, 2_000_000)


def test_frozen_parameters_take_their_weights_and_no_more():
    trained, frozen = Layout(((1000, 1000),)), Layout(((1000, 1000),), frozen=1_000_000)
    for stage in (0, 1, 2):
        plain, more = (
            memory_of_step(some, NOTHING, Sharding(stage, "bf16", 100, ranks=2, accumulation=2))
            for some in (trained, frozen)
        )
        assert more.peak - plain.peak == 2_000_000


def test_offload_moves_the_optimizer_to_the_host():
    found = memory_of_step(LAYOUT, NOTHING, Sharding(2, "bf16", 100_000, ranks=2, offload=True))
    assert set(found.kept) == {"weights", "weights on their way"}
    assert found.host["optimizer"] == 4 * LAYOUT.padded(2)


def test_stage_3_keeps_the_gradients_twice_with_the_optimizer_in_the_host():
    plain, offloaded, both = (
        memory_of_step(LAYOUT, NOTHING, Sharding(3, "bf16", 100_000, ranks=2, **asked))
        for asked in ({}, {"offload": True}, {"offload": True, "offload_weights": True})
    )
    moved = {"gradients", "fp32 weights", "optimizer"}
    assert not plain.host and set(offloaded.host) == {*moved, "fp32 gradients"}
    assert set(plain.kept) - set(offloaded.kept) == moved
    assert set(offloaded.kept) - set(both.kept) == {"weights"} and both.host["weights"] == plain.kept["weights"]

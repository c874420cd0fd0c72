"""The predicted seconds of a step, part by part, and where efficiency falls."""

import dataclasses

import pytest

from scaler.config import batch
from scaler.config.batch import SolvedBatch
from scaler.planning import hardware
from scaler.planning.memory import Activations, Layout, Sharding
from scaler.planning.step_time import Workload, fastest, knee, predict, time_of_step

LAYOUT = Layout(((600_000, 64_000), (262_144, 65_536, 65_536), (256, 256, 1024)), frozen=10_000)
ZERO2 = Sharding(2, "bf16", 500_000)
ON = hardware.Hardware("a test", 2, 10e9, {"bf16": 1e12, "fp32": 1e11}, 1e11, 1e10, 1e9, latency=0.0)
NOTHING = Activations(0, 0, 0)


def work(**changes):
    return dataclasses.replace(Workload(LAYOUT, lambda rows: NOTHING, 1e9, 128, 64, 1000), **changes)


def test_a_step_is_the_sum_of_its_parts():
    on = dataclasses.replace(ON, micro_batch_overhead_seconds=0.01, spread=0.1)
    step = time_of_step(work(), ZERO2, SolvedBatch(64, 4, 4, 4), 2, on)
    assert step.compute == pytest.approx(16 * 1e9 / 1e12)
    assert step.micro_batches == pytest.approx(0.04)
    sent = 4 * 2 * LAYOUT.trained * 1.5 + 2 * LAYOUT.padded(4) * 0.75
    assert step.network == pytest.approx(sent / 1e9, rel=1e-3)
    assert step.stragglers == pytest.approx(0.1 * (2 * 1.3862943611) ** 0.5 * step.compute)
    assert step.seconds == sum(vars(step).values())


def test_one_node_does_not_wait_for_the_network_between_nodes():
    batch = SolvedBatch(64, 32, 1, 2)
    slow = dataclasses.replace(ON, between=1.0)
    assert time_of_step(work(), ZERO2, batch, 1, slow) == time_of_step(work(), ZERO2, batch, 1, ON)


def test_overlap_hides_gradients_as_long_as_the_backward_pass_takes():
    batch, hides = SolvedBatch(64, 16, 1, 4), dataclasses.replace(ZERO2, overlap=True)
    gathered = 2 * LAYOUT.padded(4) * 0.75 / 1e9
    free = time_of_step(work(flops_per_row=1e12), hides, batch, 2, ON)
    assert free.network == pytest.approx(gathered, rel=1e-2)
    bare = time_of_step(work(flops_per_row=1.0), hides, batch, 2, ON)
    assert bare.network == pytest.approx(time_of_step(work(flops_per_row=1.0), ZERO2, batch, 2, ON).network, rel=1e-3)


def test_the_knee_is_where_efficiency_falls_and_names_the_part():
    points = [
        predict(work(flops_per_row=1e8), ZERO2, SolvedBatch(64, 32 // nodes, 1, 2 * nodes), nodes, ON)
        for nodes in (1, 2, 4, 8)
    ]
    here, part = knee(points)
    assert (here.nodes, part) == (2, "network")
    quick = dataclasses.replace(ON, inside=1e30, between=1e30, memory_bandwidth=1e30)
    even = [dataclasses.replace(p, step=time_of_step(work(), ZERO2, p.batch, p.nodes, quick)) for p in points]
    assert knee(even) is None


def test_the_best_is_the_fastest_that_fits():
    on = dataclasses.replace(ON, memory_bytes=40e6)
    heavy = work(activations=lambda rows: Activations(rows * 5_000_000, rows * 5_000_000, rows * 5_000_000))
    points = [predict(heavy, ZERO2, batch, 1, on) for batch in batch.batches(64, 2)]
    best = fastest(points)
    assert best.fits and best.batch.micro_rows == 4
    assert [p.batch.micro_rows for p in points if p.fits] == [4, 2, 1]
    assert fastest([p for p in points if not p.fits]) is None


def test_weights_in_the_host_travel_with_every_micro_batch():
    content = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    asked = Sharding.from_ds_config(content, "bf16")
    assert asked.offload_weights and not asked.offload
    here = dataclasses.replace(asked, offload_weights=False)
    batch = SolvedBatch(64, 4, 4, 4)
    work = Workload(LAYOUT, lambda rows: NOTHING, 1e9, 128, 64, 10)
    node = hardware.load("dgx-a100")
    with_link, without = (time_of_step(work, some, batch, 1, node).network for some in (asked, here))
    assert with_link - without == pytest.approx(4 * 2 * LAYOUT.all / 4 / node.host_link)


def test_batches_that_ranks_cannot_share_have_no_way():
    assert list(batch.batches(64, 3)) == []
    assert [(b.micro_rows, b.accumulation) for b in batch.batches(64, 16)] == [(4, 1), (2, 2), (1, 4)]

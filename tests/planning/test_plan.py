"""The plan against what the engine really does, against formulae, and its answers to bad input."""

import dataclasses
import json
import sys
from math import log2

import pytest
import torch
from conftest import ROOT

from scaler import plan
from scaler.config import batch
from scaler.config.batch import SolvedBatch
from scaler.core.errors import ScalerError
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.model import build, masked_lm
from scaler.planning import activations, communication, hardware, memory, step_time, workload
from scaler.planning.memory import Activations, Layout, Sharding
from scaler.planning.step_time import Settings, Workload

LAYOUT = Layout(((600_000, 64_000), (262_144, 65_536, 65_536), (256, 256, 1024)), frozen=10_000)
ZERO2 = Settings(2, False, "bf16", 500_000, overlap=False)
ON = hardware.Hardware("a test", 2, 10e9, {"bf16": 1e12, "fp32": 1e11}, 1e11, 1e10, 1e9, latency=0.0)
NOTHING = Activations(0, 0, 0)


@pytest.fixture(scope="module")
def figures(worker_figures, tiny_recipe_file):
    """By ZeRO stage and micro-batches, what two ranks hand to collectives in a step, and what is told."""
    return worker_figures(sys.executable, ROOT / "tests" / "workers" / "plan_worker.py", tiny_recipe_file)


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
        return communication.of_step(LAYOUT, Sharding(stage, 8, accumulation, 2, 500_000))[0].sent

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
    assert communication.of_step(LAYOUT, Sharding(2, 1, 4, 2, 500_000)) == ()


# ---- memory


def test_a_rank_at_stage_2_holds_the_gradients_of_whole_parameters():
    # 997k of 1.06 M numbers are in parameters that the first or second part touches
    assert LAYOUT.whole_of_parts(1) == LAYOUT.trained
    assert LAYOUT.whole_of_parts(2) >= 600_000  # the largest is in both parts
    assert Layout(((100, 100, 100, 100),)).whole_of_parts(2) == 200


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_more_ranks_never_take_more_memory(stage):
    peaks = [memory.of_step(LAYOUT, NOTHING, Sharding(stage, ranks, 2, 4, 100_000)).peak for ranks in (1, 2, 4, 64)]
    assert peaks == sorted(peaks, reverse=True)
    assert (peaks[0] == peaks[-1]) == (stage == 0)


def test_what_is_kept_is_that_of_the_zero_paper():
    # bf16 and AdamW: 2 bytes of weight, 4 of an fp32 copy, 8 of moments, shared from stage 1 on
    layout, ranks = Layout(((8_000_000,),)), 8
    assert memory.of_step(layout, NOTHING, Sharding(0, ranks, 1, 2, 1)).kept == {
        "weights": 16_000_000, "optimizer": 64_000_000, "fp32 weights": 32_000_000
    }  # fmt: skip
    assert memory.of_step(layout, NOTHING, Sharding(2, ranks, 1, 2, 1)).kept == {
        "weights": 16_000_000, "fp32 weights": 4_000_000, "optimizer": 8_000_000
    }  # fmt: skip
    kept = memory.of_step(layout, NOTHING, Sharding(3, ranks, 1, 2, 1)).kept
    assert (kept["weights"], kept["gradients"]) == (2_000_000, 2_000_000)


def test_frozen_parameters_take_their_weights_and_no_more():
    trained, frozen = Layout(((1000, 1000),)), Layout(((1000, 1000),), frozen=1_000_000)
    for stage in (0, 1, 2):
        plain, more = (memory.of_step(some, NOTHING, Sharding(stage, 2, 2, 2, 100)) for some in (trained, frozen))
        assert more.peak - plain.peak == 2_000_000


def test_offload_moves_the_optimizer_to_the_host():
    found = memory.of_step(LAYOUT, NOTHING, Sharding(2, 2, 1, 2, 100_000, offload=True))
    assert set(found.kept) == {"weights", "weights on their way"}
    assert found.host["optimizer"] == 4 * LAYOUT.padded(2)


def test_stage_3_keeps_the_gradients_twice_with_the_optimizer_in_the_host():
    plain, offloaded, both = (
        memory.of_step(LAYOUT, NOTHING, Sharding(3, 2, 1, 2, 100_000, **asked))
        for asked in ({}, {"offload": True}, {"offload": True, "offload_weights": True})
    )
    moved = {"gradients", "fp32 weights", "optimizer"}
    assert not plain.host and set(offloaded.host) == {*moved, "fp32 gradients"}
    assert set(plain.kept) - set(offloaded.kept) == moved
    assert set(offloaded.kept) - set(both.kept) == {"weights"} and both.host["weights"] == plain.kept["weights"]


def test_weights_in_the_host_travel_with_every_micro_batch():
    content = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    asked = workload.settings_of(content, "bf16")
    assert asked.offload_weights and not asked.offload
    here = dataclasses.replace(asked, offload_weights=False)
    batch = SolvedBatch(64, 4, 4, 4)
    work = Workload(LAYOUT, lambda rows: NOTHING, 1e9, 128, 64, 10)
    node = hardware.load("dgx-a100")
    with_link, without = (step_time.step_of(work, some, batch, 1, node).network for some in (asked, here))
    assert with_link - without == pytest.approx(4 * 2 * LAYOUT.all / 4 / node.host_link)


def test_activations_are_those_of_the_real_model_on_a_cpu(tiny_recipe):
    """The bytes that autograd keeps for the backward pass, counted on real tensors."""
    config, rows, masked = workload.configuration(tiny_recipe), 3, 8
    network = masked_lm.MaskedLM(build.build(config, 0)).train()
    held: dict[int, int] = {}

    def keep(tensor):
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    ids = torch.randint(5, 400, (rows, 32))
    hidden = torch.arange(masked).expand(rows, -1).contiguous()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = network(Batch(ids, torch.arange(2, 34).expand_as(ids), ids * 0, hidden, hidden))
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    saved = sum(size for place, size in held.items() if place not in weights)
    found = activations.measure(config, rows, 32, masked, 4)
    assert loss.isfinite() and saved > 100_000
    assert found.forward == pytest.approx(saved, rel=0.1)
    assert found.forward <= found.without_gradients <= found.with_gradients


def test_embeddings_that_are_frozen_have_no_gradient_and_lookups_on_a_cpu_none_of_all_entries(tiny_recipe):
    settings = {**tiny_recipe.model, "max_position_embeddings": 34}
    entries = 100_000
    special = Vocabulary(entries, 0, 2, 1, 4, (0, 1, 2, 3, 4))
    config = build.configuration(settings, special, entries, 32)
    matrix = 4 * entries * config.hidden_size
    trained, on_cpu, frozen = (
        activations.measure(config, 2, 32, 8, 4, frozen, on_cpu)
        for frozen, on_cpu in ((False, False), (False, True), (True, False))
    )
    assert trained.forward == pytest.approx(frozen.forward, rel=0.02) == on_cpu.forward
    for found in (on_cpu, frozen):
        assert trained.with_gradients - found.with_gradients > 0.9 * matrix


def test_masks_that_become_fewer_are_planned_at_their_most_and_timed_at_their_mean(tiny_recipe):
    def with_masks(first, last):
        objective = dataclasses.replace(tiny_recipe.objective, mask_probability=first, final_mask_probability=last)
        return workload.workload(dataclasses.replace(tiny_recipe, objective=objective), 4, on_cpu=True)

    falling, most, mean = with_masks(0.25, 0.125), with_masks(0.25, None), with_masks(0.1875, None)
    assert falling.activations(8) == most.activations(8) != mean.activations(8)
    assert falling.flops_per_row == mean.flops_per_row < most.flops_per_row


def test_activations_grow_with_rows_on_a_line(tiny_recipe):
    config = workload.configuration(tiny_recipe)
    one, four, eight = (activations.measure(config, rows, 32, 8, 4) for rows in (1, 4, 8))
    told = memory.on_the_line(4, (1, one), (8, eight))
    assert told.forward == pytest.approx(four.forward, rel=0.02)
    assert four.with_gradients <= told.with_gradients < 1.1 * four.with_gradients  # a greatest of several lines


# ---- time


def work(**changes):
    return dataclasses.replace(Workload(LAYOUT, lambda rows: NOTHING, 1e9, 128, 64, 1000), **changes)


def test_a_step_is_the_sum_of_its_parts():
    on = dataclasses.replace(ON, micro_batch_overhead_seconds=0.01, spread=0.1)
    step = step_time.step_of(work(), ZERO2, SolvedBatch(64, 4, 4, 4), 2, on)
    assert step.compute == pytest.approx(16 * 1e9 / 1e12)
    assert step.micro_batches == pytest.approx(0.04)
    sent = 4 * 2 * LAYOUT.trained * 1.5 + 2 * LAYOUT.padded(4) * 0.75
    assert step.network == pytest.approx(sent / 1e9, rel=1e-3)
    assert step.stragglers == pytest.approx(0.1 * (2 * 1.3862943611) ** 0.5 * step.compute)
    assert step.seconds == sum(vars(step).values())


def test_one_node_does_not_wait_for_the_network_between_nodes():
    batch = SolvedBatch(64, 32, 1, 2)
    slow = dataclasses.replace(ON, between=1.0)
    assert step_time.step_of(work(), ZERO2, batch, 1, slow) == step_time.step_of(work(), ZERO2, batch, 1, ON)


def test_overlap_hides_gradients_as_long_as_the_backward_pass_takes():
    batch, hides = SolvedBatch(64, 16, 1, 4), dataclasses.replace(ZERO2, overlap=True)
    gathered = 2 * LAYOUT.padded(4) * 0.75 / 1e9
    free = step_time.step_of(work(flops_per_row=1e12), hides, batch, 2, ON)
    assert free.network == pytest.approx(gathered, rel=1e-2)
    bare = step_time.step_of(work(flops_per_row=1.0), hides, batch, 2, ON)
    assert bare.network == pytest.approx(
        step_time.step_of(work(flops_per_row=1.0), ZERO2, batch, 2, ON).network, rel=1e-3
    )


def test_the_knee_is_where_efficiency_falls_and_names_the_part():
    points = [
        step_time.point(work(flops_per_row=1e8), ZERO2, SolvedBatch(64, 32 // nodes, 1, 2 * nodes), nodes, ON)
        for nodes in (1, 2, 4, 8)
    ]
    here, part = step_time.knee(points)
    assert (here.nodes, part) == (2, "network")
    quick = dataclasses.replace(ON, inside=1e30, between=1e30, memory_bandwidth=1e30)
    even = [dataclasses.replace(p, step=step_time.step_of(work(), ZERO2, p.batch, p.nodes, quick)) for p in points]
    assert step_time.knee(even) is None


def test_the_best_is_the_fastest_that_fits():
    on = dataclasses.replace(ON, memory_bytes=40e6)
    heavy = work(activations=lambda rows: Activations(rows * 5_000_000, rows * 5_000_000, rows * 5_000_000))
    points = [step_time.point(heavy, ZERO2, batch, 1, on) for batch in batch.batches(64, 2)]
    best = step_time.best(points)
    assert best.fits and best.batch.micro_rows == 4
    assert [p.batch.micro_rows for p in points if p.fits] == [4, 2, 1]
    assert step_time.best([p for p in points if not p.fits]) is None


def test_batches_that_ranks_cannot_share_have_no_way():
    assert list(batch.batches(64, 3)) == []
    assert [(b.micro_rows, b.accumulation) for b in batch.batches(64, 16)] == [(4, 1), (2, 2), (1, 4)]


# ---- the command


@pytest.fixture
def planned(call, tiny_recipe_file, monkeypatch):
    def measure(config, rows, *sizes):  # measuring takes seconds, and is tested above
        return Activations(rows * 100_000, rows * 200_000, rows * 150_000)

    monkeypatch.setattr(activations, "measure", measure)

    def run(*arguments):
        return call(plan.main, "--recipe", tiny_recipe_file, *arguments)

    return run


def test_the_plan_as_text_and_json(planned):
    options = ("--hardware", "p5.48xlarge", "--nodes", "1,2,4", "--weak", "training.rows=64", "training.steps=1000")
    status, output, error = planned(*options, "--json")
    assert status == 0, error
    content = json.loads(output)
    assert [line["nodes"] for line in content["points"]] == [1, 2, 4]
    assert [line["rows"] for line in content["points"]] == [64, 128, 256]
    for line in content["points"]:
        steps = 1000 * 64 / line["rows"]
        assert line["hours"] == pytest.approx(steps * line["step_seconds"] / line["goodput"] / 3600)
        assert line["cost"] == pytest.approx(line["hours"] * line["nodes"] * 55.04)
        assert line["tokens_per_second"] == pytest.approx(line["rows"] * 32 / line["step_seconds"])
    assert content["hardware"]["measured"] == []
    status, text, _ = planned(*options)
    assert status == 0 and "measured of the hardware: nothing" in text and "ZeRO" in text


def test_nodes_that_cannot_share_the_batch_are_shown_with_the_reason(planned):
    status, output, _ = planned("--hardware", "p5.48xlarge", "--nodes", "1,16", "training.rows=64")
    assert status == 0 and "training.rows=64 cannot be shared by 128 ranks" in output


def test_a_budget_is_kept(planned):
    options = (
        "--hardware",
        "p5.48xlarge",
        "--nodes",
        "1,2,4,8",
        "training.rows=64",
        "training.steps=1000000",
        "--json",
    )
    points = json.loads(planned(*options)[1])["points"]
    hours = sorted(line["hours"] for line in points)
    content = json.loads(planned(*options, "--max_hours", str(hours[1] * 1.001))[1])
    assert content["within"]["hours"] <= hours[1] * 1.001
    assert content["within"]["cost"] == min(p["cost"] for p in points if p["hours"] <= hours[1] * 1.001)
    cost = max(line["cost"] for line in points)
    assert json.loads(planned(*options, "--max_cost", str(cost))[1])["within"]["hours"] == hours[0]
    assert "nothing is within the budget: the fastest takes" in planned(*options[:-1], "--max_hours", "1e-9")[1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--hardware", "p5.48xlarg"), "did you mean 'p5.48xlarge'?"),
        (("--hardware", "p5.48xlarge", "--nodes", "0"), "whole numbers from 1 on"),
        (("--hardware", "p5.48xlarge", "--nodes", "1,x"), "whole numbers from 1 on"),
        (("--hardware", "p5.48xlarge", "--nodes", "3", "training.rows=64"), "cannot be shared by 24 ranks"),
        (("--hardware", "dgx-h100", "--max_cost", "5"), "has no price"),
        (("--hardware", "p5.48xlarge", "training.row=3"), "did you mean 'rows'?"),
        (("--hardware", "p5.48xlarge", "--deepspeed_config", "none.json"), "no such file"),
    ],
)
def test_bad_input_is_one_line(planned, arguments, said):
    status, _, error = planned(*arguments)
    assert status == 2 and said in error and "Traceback" not in error


def test_a_training_that_fits_nowhere_says_what_would(planned, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("{name: small, devices: 1, memory_bytes: 1.0e+5, flops: {fp32: 1.0e+12}, memory_bandwidth: 1.0e+9, "
                    "inside: 1.0e+9, between: 1.0e+9}")  # fmt: skip
    status, _, error = planned("--hardware", file, "--nodes", "1", "training.rows=8")
    assert status == 2 and "try ZeRO-3, optimizer offload or more nodes" in error and error.count("\n") == 1


def test_on_a_slow_network_each_gradient_goes_to_its_owner_alone(planned, tmp_path):
    file = tmp_path / "slow.yaml"
    file.write_text("{name: slow, devices: 1, memory_bytes: 1.0e+9, flops: {fp32: 1.0e+12}, memory_bandwidth: 1.0e+9, "
                    "inside: 1.0e+5, between: 1.0e+5}")  # fmt: skip
    arguments = ("--hardware", file, "--nodes", "2", "training.rows=8")
    status, output, _ = planned(*arguments)
    assert status == 0 and "on 2 nodes ZeRO-1, use_multi_rank_bucket_allreduce false, with 4 x 1 would take" in output
    (told,) = json.loads(planned(*arguments, "--json")[1])["other_stages"]
    chosen = planned(*arguments, "--deepspeed_config", ROOT / "ds_configs" / "zero1_least_traffic.json", "--json")[1]
    content = json.loads(chosen)
    assert content["other_stages"] == []
    assert content["points"][0]["step_seconds"] == told["step_seconds"]


def test_sgd_without_momentum_keeps_no_state_in_the_plan(tiny_recipe):
    for momentum, states in ((0.9, 1), (0.0, 0)):
        sgd = dataclasses.replace(tiny_recipe.optimizer, name="sgd", momentum=momentum)
        assert workload.workload(dataclasses.replace(tiny_recipe, optimizer=sgd), 4).states == states


# ---- hardware


def test_every_known_node_loads():
    known = hardware.yaml.safe_load(hardware.TABLE.read_text())["nodes"]
    for name in known:
        assert hardware.load(name).devices == known[name]["devices"]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"devices": 0}, "devices=0, but it is at least 1"),
        ({"between": -1.0}, "between=-1.0, but it is above 0"),
        ({"flops": {"fp8": 1.0}}, "flops='fp8'"),
        ({"measured": ("speed",)}, "measured='speed'"),
        ({"price": -2.0}, "price=-2.0"),
    ],
)
def test_impossible_hardware_is_refused(change, said):
    with pytest.raises(ScalerError, match=said):
        dataclasses.replace(ON, **change)


def test_a_file_of_hardware_is_read_strictly(tmp_path):
    good = {**dataclasses.asdict(ON), "measured": ["inside"]}
    file = tmp_path / "mine.yaml"
    file.write_text(json.dumps(good))
    assert hardware.load(str(file)) == dataclasses.replace(ON, measured=("inside",))
    file.write_text(json.dumps({**good, "bandwith": 3}))
    with pytest.raises(ScalerError, match="unknown key bandwith"):
        hardware.load(str(file))
    file.write_text("{")
    with pytest.raises(ScalerError, match="not YAML"):
        hardware.load(str(file))

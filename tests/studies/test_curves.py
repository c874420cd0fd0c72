"""Figures, curves, limits, remedies and predictions of studies whose answers are known."""

import dataclasses
import json

import pytest
import study_points
import yaml
from study_points import BUCKET, ON, ROWS, TOKENS, TRAINING, ask, fail, measure

from scaler.planning import step_time
from scaler.planning.memory import Sharding
from scaler.studies import bottlenecks, text
from scaler.studies import folder as study_folder
from scaler.studies.curves import analyse


@pytest.fixture(autouse=True, scope="module")
def one_workload():
    with study_points.workload_once():
        yield


@pytest.fixture
def study(tmp_path):
    return study_points.new_study(tmp_path / "study")


def curve_of(study, given=None):
    found = analyse(study, given)
    return found, found.curves[0]


def conclusions(found, curve) -> dict[str, str]:
    return dict(text.conclusions(found, curve))


# ---- figures


def test_perfect_scaling(study):
    for ranks in (1, 2, 4, 8):
        measure(study, own=0.8 / ranks, ranks=ranks)
    found, curve = curve_of(study)
    assert [row.point.ranks for row in curve.best] == [1, 2, 4, 8]
    assert [curve.speedup(row) for row in curve.best] == pytest.approx([1, 2, 4, 8])
    assert [curve.efficiency(row) for row in curve.best] == pytest.approx([1] * 4)
    assert curve.knee is None and curve.last_efficient is curve.best[-1]
    assert bottlenecks.limits(curve) == bottlenecks.remedies(found, curve) == []
    figures = curve.best[-1].figures
    assert figures.tokens_per_second.median == pytest.approx(ROWS * TOKENS / 0.1)
    assert found.hours(curve.best[-1]) == pytest.approx(TRAINING / (ROWS * TOKENS / 0.1) / 3600)
    told = conclusions(found, curve)
    assert "8.00 times" in told["Speed"] and "100 %" in told["Efficiency"]
    assert told["Below 80 %"].startswith("Not on up to 8 nodes")
    assert told["What limits"].startswith("On 8 nodes (8 ranks): nothing")


def test_a_step_is_its_slowest_rank_and_quartiles_are_those_of_steps(study):
    steps = ((1.0, 2.0, 3.0, 4.0, 9.0), (0.5, 2.5, 3.0, 3.0, 1.0))  # slowest: 1, 2.5, 3, 4, 9
    measure(study, own=0.1, ranks=2, changes={"step_seconds": steps, "peak_bytes": (5, 7)})
    figures = curve_of(study)[1].best[0].figures
    assert dataclasses.astuple(figures.seconds) == (2.5, 3.0, 4.0)
    assert dataclasses.astuple(figures.tokens_per_second) == pytest.approx([480.0, 640.0, 768.0])
    assert (figures.peak_bytes, figures.steps) == (7, 5)


def test_weak_scaling_is_by_tokens(study):
    for ranks, seconds in ((1, 1.0), (2, 1.0), (4, 1.25), (8, 1.6)):
        measure(study, own=seconds, ranks=ranks, series="weak")
    _, curve = curve_of(study)
    assert [curve.efficiency(row) for row in curve.best] == pytest.approx([1, 1, 0.8, 0.625])
    assert curve.knee.point.ranks == 8  # 80 % still pays
    assert curve.last_efficient.point.ranks == 4


def test_a_curve_has_the_fastest_micro_batch(study):
    measure(study, own=1.0, micro=8)
    measure(study, own=0.5, micro=16)
    measure(study, own=0.5, ranks=2, micro=4)
    _, curve = curve_of(study)
    assert len(curve.rows) == 3
    assert [row.point.micro_rows for row in curve.best] == [16, 4]
    assert [curve.speedup(row) for row in curve.rows] == pytest.approx([0.5, 1, 1])


def test_a_curve_may_begin_with_several_ranks(study):
    measure(study, own=0.4, ranks=4)
    measure(study, own=0.25, ranks=8)
    _, curve = curve_of(study)
    assert (curve.speedup(curve.best[1]), curve.efficiency(curve.best[1])) == pytest.approx((1.6, 0.8))
    assert curve.efficiency(curve.best[0]) == pytest.approx(1)


def test_series_and_stages_are_curves_of_their_own(study):
    for series, stage in (("strong", 1), ("strong", 2), ("weak", 2)):
        for ranks in (1, 2):
            measure(study, own=stage / ranks, ranks=ranks, stage=stage, series=series)
    found = analyse(study)
    assert [curve.setting for curve in found.curves] == [
        ("strong", 1, False, BUCKET), ("strong", 2, False, BUCKET), ("weak", 2, False, BUCKET)
    ]  # fmt: skip
    assert found.leading("strong").setting[1] == 1
    assert len(text.other_settings(found)) == 1


# ---- what limits, and what to change


def test_communication_bound(study):
    measure(study, own=0.8)
    measure(study, own=0.1, communication=0.3, ranks=8)
    found, curve = curve_of(study)
    assert curve.efficiency(curve.best[-1]) == pytest.approx(0.25)
    limit = bottlenecks.limits(curve)[0]
    assert (limit.part, limit.fraction, limit.grown) == ("communication", pytest.approx(0.75), pytest.approx(0.75))
    told = conclusions(found, curve)
    assert "communication between ranks, 75 % of a step" in told["What limits"]
    assert told["What to change"] == "Use 1 node instead: 75 % fewer node-hours for the same training."
    assert "From 8 nodes" in told["Below 80 %"]


def test_growth_of_all_parts_is_what_efficiency_has_lost(study):
    measure(study, own=0.8, communication=0.1, other=0.1)
    measure(study, own=0.15, communication=0.3, other=0.2, slow={3: 2.0}, ranks=8)
    _, curve = curve_of(study)
    assert sum(limit.grown for limit in bottlenecks.limits(curve)) == pytest.approx(
        1 - curve.efficiency(curve.best[-1])
    )


def test_what_runs_beside_own_work_does_not_limit(study):
    measure(study, own=0.8)
    point = measure(study, own=0.1, ranks=8, changes={"communication_seconds": (0.09,) * 8})
    row = next(row for row in analyse(study).rows if row.point == point)
    assert row.figures.communication_fraction == pytest.approx(0.9)
    assert row.figures.parts["communication"] == 0
    assert not bottlenecks.limits(curve_of(study)[1])


def test_a_straggler_is_named_and_left_out(study):
    measure(study, own=0.8)
    measure(study, own=0.2, slow={2: 1.5}, ranks=4)
    found, curve = curve_of(study)
    figures = curve.best[-1].figures
    assert (figures.slowest_rank, figures.host, figures.slowest_to_median) == (2, "n2", pytest.approx(1.5))
    assert figures.communication == 0  # what the others waited for it is no communication
    assert bottlenecks.limits(curve)[0].part == "stragglers"
    told = conclusions(found, curve)
    assert "Rank 2 on n2 takes 1.50 times the median" in told["What limits"]
    assert "Replace node n2: without its delay steps would be 50 % faster." in told["What to change"]


def test_only_what_other_hosts_would_not_make_up_for_is_a_gain(study):
    measure(study, own=0.8)
    measure(study, own=0.2, slow={2: 1.5, 3: 1.2}, ranks=4)
    found, curve = curve_of(study)
    remedy = next(remedy for remedy in bottlenecks.remedies(found, curve) if remedy.kind == "host")
    assert remedy.gain == pytest.approx(0.3 / 0.24 - 1)


def test_a_straggler_on_the_only_node_cannot_be_replaced(study):
    measure(study, own=0.8)
    measure(study, own=0.2, slow={2: 1.5}, ranks=4, nodes=1)
    found, curve = curve_of(study)
    assert bottlenecks.limits(curve)[0].part == "stragglers"
    assert [remedy.kind for remedy in bottlenecks.remedies(found, curve)] == ["fewer"]
    assert "fewer rank-hours" in conclusions(found, curve)["What to change"]


def test_ranks_that_take_turns_in_being_slow_are_no_ones_fault(study):
    measure(study, own=0.8)
    own = tuple(tuple(0.4 if step == rank else 0.2 for step in range(4)) for rank in range(4))
    changes = {"own_seconds": own, "step_seconds": ((0.4,) * 4,) * 4}
    measure(study, own=0.2, ranks=4, changes=changes)
    found, curve = curve_of(study)
    assert bottlenecks.limits(curve)[0].part == "stragglers"
    assert [remedy.kind for remedy in bottlenecks.remedies(found, curve)] == ["fewer"]


def test_micro_batches_that_shrink(study):
    # own work: 10 ms a row and 100 ms a micro-batch
    def own(ranks, micro):
        return 0.01 * ROWS / ranks + 0.1 * ROWS / ranks / micro

    measure(study, own=own(1, 32), micro=32)
    for micro in (1, 2):
        measure(study, own=own(8, micro), ranks=8, micro=micro, communication=0.05 * 8 / micro)
    found, curve = curve_of(study)
    limit = bottlenecks.limits(curve)[0]
    assert (limit.part, limit.predicted) == ("micro_batches", False)
    assert limit.fraction == pytest.approx(0.1 * 4 / (own(8, 2) + 0.2))
    assert limit.grown == pytest.approx((0.1 * 4 - 0.1 * 2 / 8) / (own(8, 2) + 0.2))
    fail(study, "rank 3: CUDA out of memory", ranks=8, micro=8)
    found, curve = curve_of(study)
    limit = bottlenecks.limits(curve)[0]
    assert (limit.part, limit.row.point.micro_rows) == ("memory", 8)
    assert "micro-batches of 8 rows ran out of memory" in conclusions(found, curve)["What limits"]


def test_own_work_that_does_not_shrink(study):
    measure(study, own=0.8)
    measure(study, own=0.5, ranks=8)
    limit = bottlenecks.limits(curve_of(study)[1])[0]
    assert (limit.part, limit.fraction) == ("work", pytest.approx(0.8))


@pytest.mark.parametrize(
    ("better", "said"),
    [({"stage": 1}, "Use ZeRO-1:"), ({"bucket": 5_000_000}, "Use a bucket of 5 M:")],
)
def test_a_setting_that_is_measured_faster(study, better, said):
    measure(study, own=0.8)
    measure(study, own=0.2, communication=0.2, ranks=4)
    measure(study, own=0.2, communication=0.1, ranks=4, **better)
    found = analyse(study)
    curve = next(curve for curve in found.curves if curve.setting == ("strong", 2, False, BUCKET))
    remedy = bottlenecks.remedies(found, curve)[0]
    assert (remedy.kind, remedy.gain) == ("setting", pytest.approx(1 / 3))
    assert f"{said} measured 33 % faster on 4 nodes (4 ranks)." in conclusions(found, curve)["What to change"]


def test_a_difference_within_the_spread_is_none(study):
    measure(study, own=0.8)
    measure(study, own=0.4, ranks=4)
    spread = {"step_seconds": ((0.2, 0.3, 0.36, 0.5, 0.6),) * 4}
    measure(study, own=0.2, ranks=4, stage=1, changes=spread)
    found = analyse(study)
    curve = next(curve for curve in found.curves if curve.setting[1] == 2)
    assert "setting" not in {remedy.kind for remedy in bottlenecks.remedies(found, curve)}


# ---- the prediction


def test_a_point_that_is_faster_than_can_be_puts_the_first_in_doubt(study):
    measure(study, own=2.0, ranks=1)
    measure(study, own=0.5, ranks=2)
    (remark,) = curve_of(study)[0].remarks
    assert "200% efficient, which is more than is possible: was strong-n1x1-" in remark


def test_errors_of_the_prediction(study):
    told = {}
    for ranks in (1, 2, 4):
        measure(study, own=1.0, ranks=ranks)
    found, curve = curve_of(study, ON)
    for row in curve.rows:  # against the forecast itself, made by hand
        config = json.loads((study_folder.folder_of(study, row.point) / "ds_config.json").read_text())
        asked = dataclasses.replace(Sharding.from_ds_config(config, "fp32"), on_cpu=True)
        batch = step_time.SolvedBatch(ROWS, 8, row.point.accumulation, row.point.ranks)
        one = dataclasses.replace(ON, devices=1)
        told[row.point.ranks] = step_time.predict(found.prediction.works["fp32"], asked, batch, row.point.nodes, one)
        assert row.predicted.step == told[row.point.ranks].step
        assert row.predicted.memory.peak == told[row.point.ranks].memory.peak
        assert row.error == pytest.approx(told[row.point.ranks].step.seconds - 1)
        assert row.memory_error == pytest.approx(row.predicted.memory.peak / (1_000_000 + row.point.ranks - 1) - 1)
    errors = sorted(abs(point.step.seconds - 1) for point in told.values())
    median, worst = found.errors()
    assert median == pytest.approx(errors[1]) and abs(worst.error) == pytest.approx(errors[2])
    efficiency = told[1].step.seconds / told[4].step.seconds / 4
    assert curve.predicted_efficiency(curve.predicted[-1]) == pytest.approx(efficiency)
    found_text = text.prediction(found)
    assert "measured: flops, inside" in found_text and "Peak memory of a rank is off by" in found_text


def test_memory_of_a_device_is_compared_as_it_is(study):
    measure(study, own=1.0, changes={"device": "cuda"})
    found, curve = curve_of(study, ON)
    row = curve.rows[0]
    assert not row.predicted.sharding.on_cpu
    assert f"is off by {100 * (row.predicted.memory.peak / 1e6 - 1):+.1f} %" in text.prediction(found)


def test_hardware_of_the_folder_is_taken_and_another_can_be_given(study):
    measure(study, own=1.0)
    content = {**dataclasses.asdict(ON), "name": "beside", "measured": ["flops"]}
    (study / "hardware.yaml").write_text(yaml.safe_dump(content))
    assert analyse(study).prediction.hardware.name == "beside"
    assert analyse(study, ON).prediction.hardware.name == "a test"


def test_a_precision_without_a_figure_is_not_predicted(study):
    measure(study, own=1.0)
    found, curve = curve_of(study, dataclasses.replace(ON, flops={"bf16": 1e12}))
    assert curve.rows[0].predicted is None and found.errors() is None
    assert "hardware a test has no figure for fp32, only bf16" in text.prediction(found)


def test_points_that_were_not_run_are_predicted_and_proposed_as_such(study):
    slow = dataclasses.replace(ON, micro_batch_overhead_seconds=1.0)  # so large micro-batches pay
    measure(study, own=1.0)
    measure(study, own=2.0, ranks=2, micro=1)
    ask(study, ranks=4)
    found, curve = curve_of(study, slow)
    assert [row.point.ranks for row in curve.predicted] == [1, 2, 4]
    assert curve.rows[-1].state == "not run"
    remedy = bottlenecks.remedies(found, curve)[-1]
    assert remedy.kind == "predicted" and "micro-batches of 32 rows" in remedy.text
    assert "micro-batches of 32 rows" in conclusions(found, curve)["What to change"]
    assert "which is predicted, not measured" in conclusions(found, curve)["What to change"]

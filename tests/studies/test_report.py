"""The report of a scaling study, on studies whose answers are known."""

import dataclasses
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml
from conftest import TINY_RECIPE
from matplotlib import image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from scaler import report
from scaler.planning import step_time
from scaler.planning import workload as planning_workload
from scaler.planning.hardware import Hardware
from scaler.planning.workload import settings_of
from scaler.studies import analysis, bottlenecks, pictures, text
from scaler.studies import folder as study_folder
from scaler.studies import report as study_report
from scaler.studies.folder import Measured, Point

ROWS, BUCKET, TOKENS = 64, 1_000_000, 30.0
ON = Hardware("a test", 8, 1e12, {"fp32": 1e10}, 1e10, 1e9, 1e8, micro_seconds=1e-3, measured=("flops", "inside"))
TRAINING = 12 * 12 * TOKENS  # tokens of the recipe's steps


@pytest.fixture(autouse=True, scope="module")
def workload_once():
    """All studies here have one recipe in fp32, whose activations take seconds to measure."""
    real, made = planning_workload.workload, []

    def workload(recipe, width, on_cpu):
        assert width == 4
        if not made:
            made.append(real(recipe, width, on_cpu))
        return made[0]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planning_workload, "workload", workload)
        yield


@pytest.fixture
def study(tmp_path) -> Path:
    """A study without points."""
    folder = tmp_path / "study"
    (folder / "points").mkdir(parents=True)
    recipe = TINY_RECIPE.replace("SOURCE", "text.txt").replace("FOLDER", "data")
    (folder / "recipe.yaml").write_text("name: tiny\n" + recipe)
    return folder


def ask(study, ranks=1, stage=2, series="strong", micro=8, nodes=None, rows=None, bucket=BUCKET) -> Point:
    """A point with a rank on each node."""
    nodes = ranks if nodes is None else nodes
    rows = rows or (ROWS if series == "strong" else 8 * ranks)
    point = Point(series, nodes, ranks // nodes, stage, False, bucket, rows, micro)
    config = {"zero_optimization": {"stage": stage, "reduce_bucket_size": bucket, "overlap_comm": False}}
    study_folder.write_point(study, point, config)
    return point


def measure(study, own, communication=0.0, other=0.0, slow=None, peak=1_000_000, changes=None, **where) -> Point:
    """A point whose every step is own work, waiting for the slowest rank, communication and the rest.

    `slow`: the rank whose own work takes so many times as long.
    """
    point = ask(study, **where)
    times = [own * ((slow or {}).get(rank, 1.0)) for rank in range(point.ranks)]
    wait = [max(times) - time for time in times]
    seconds = max(times) + communication + other
    hosts = tuple(f"n{rank // point.ranks_per_node}" for rank in range(point.ranks))
    measured = Measured(
        hosts,
        2,
        (tuple(share * seconds for share in (0.9, 0.95, 1.0, 1.2, 1.5)),) * point.ranks,
        tuple((time,) * 5 for time in times),
        tuple(communication + waited for waited in wait),
        tuple(peak + rank for rank in range(point.ranks)),
        TOKENS,
        "fp32",
        {"torch": "2.13.0+cpu", "deepspeed": "0.19.8"},
        "c0ffee",
        "2026-01-02T03:04:05+0000",
        "cpu",
        1,
    )
    study_folder.write_measured(study, point, dataclasses.replace(measured, **(changes or {})))
    return point


def fail(study, reason, **where) -> Point:
    point = ask(study, **where)
    study_folder.note_failure(study, point, reason)
    return point


def curve_of(study, given=None):
    found = analysis.analyse(study, given)
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
    found = analysis.analyse(study)
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
    row = next(row for row in analysis.analyse(study).rows if row.point == point)
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
    found = analysis.analyse(study)
    curve = next(curve for curve in found.curves if curve.setting == ("strong", 2, False, BUCKET))
    remedy = bottlenecks.remedies(found, curve)[0]
    assert (remedy.kind, remedy.gain) == ("setting", pytest.approx(1 / 3))
    assert f"{said} measured 33 % faster on 4 nodes (4 ranks)." in conclusions(found, curve)["What to change"]


def test_a_difference_within_the_spread_is_none(study):
    measure(study, own=0.8)
    measure(study, own=0.4, ranks=4)
    spread = {"step_seconds": ((0.2, 0.3, 0.36, 0.5, 0.6),) * 4}
    measure(study, own=0.2, ranks=4, stage=1, changes=spread)
    found = analysis.analyse(study)
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
        asked = dataclasses.replace(settings_of(config, "fp32"), on_cpu=True)
        batch = step_time.SolvedBatch(ROWS, 8, row.point.accumulation, row.point.ranks)
        one = dataclasses.replace(ON, devices=1)
        told[row.point.ranks] = step_time.point(found.prediction.works["fp32"], asked, batch, row.point.nodes, one)
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
    assert not row.predicted.settings.on_cpu
    assert f"is off by {100 * (row.predicted.memory.peak / 1e6 - 1):+.1f} %" in text.prediction(found)


def test_hardware_of_the_folder_is_taken_and_another_can_be_given(study):
    measure(study, own=1.0)
    content = {**dataclasses.asdict(ON), "name": "beside", "measured": ["flops"]}
    (study / "hardware.yaml").write_text(yaml.safe_dump(content))
    assert analysis.analyse(study).prediction.hardware.name == "beside"
    assert analysis.analyse(study, ON).prediction.hardware.name == "a test"


def test_a_precision_without_a_figure_is_not_predicted(study):
    measure(study, own=1.0)
    found, curve = curve_of(study, dataclasses.replace(ON, flops={"bf16": 1e12}))
    assert curve.rows[0].predicted is None and found.errors() is None
    assert "hardware a test has no figure for fp32, only bf16" in text.prediction(found)


def test_points_that_were_not_run_are_predicted_and_proposed_as_such(study):
    slow = dataclasses.replace(ON, micro_seconds=1.0)  # so large micro-batches pay
    measure(study, own=1.0)
    measure(study, own=2.0, ranks=2, micro=1)
    ask(study, ranks=4)
    found, curve = curve_of(study, slow)
    assert [row.point.ranks for row in curve.predicted] == [1, 2, 4]
    assert curve.rows[-1].state == "not run"
    remedy = bottlenecks.remedies(found, curve)[-1]
    assert (remedy.kind, remedy.forecast.batch.micro_rows) == ("predicted", 32)
    assert "micro-batches of 32 rows" in conclusions(found, curve)["What to change"]
    assert "which is predicted, not measured" in conclusions(found, curve)["What to change"]


# ---- files


class Page(HTMLParser):
    """All tags with their attributes, and the text."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The report of a study with two series, two stages, failures, and a point that was not run."""
    folder = tmp_path_factory.mktemp("whole") / "study"
    (folder / "points").mkdir(parents=True)
    recipe = TINY_RECIPE.replace("SOURCE", "text.txt").replace("FOLDER", "data")
    (folder / "recipe.yaml").write_text("name: tiny\n" + recipe)
    for stage in (1, 2):
        for ranks in (1, 2, 4):
            measure(folder, own=0.8 * stage / ranks, communication=0.05 * (ranks - 1), ranks=ranks, stage=stage)
    measure(folder, own=0.8, series="weak")
    measure(folder, own=0.8, communication=0.1, ranks=2, series="weak")
    fail(folder, "<script>alert('a | b')</script> out of memory", ranks=8, micro=8)
    ask(folder, ranks=4, micro=4)
    fail(folder, "node n3 is down", stage=3)
    content = {**dataclasses.asdict(ON), "measured": ["flops"]}
    (folder / "hardware.yaml").write_text(yaml.safe_dump(content))
    found = analysis.analyse(folder)
    study_report.write(found, folder / "report")
    return folder / "report", found


def test_the_page_needs_nothing_else(written):
    text = (written[0] / "index.html").read_text()
    page = Page(text)
    assert page.open == []
    assert not re.search(r"https?://|<link|@import|url\(", text)
    assert "script" not in {tag for tag, _ in page.tags}
    sources = [attributes["src"] for _, attributes in page.tags if "src" in attributes]
    assert len(sources) == 5 and all(source.startswith("data:image/png;base64,") for source in sources)
    assert not [attributes for _, attributes in page.tags if "href" in attributes]


def test_the_page_begins_with_the_conclusion_and_shows_failures(written):
    page = Page((written[0] / "index.html").read_text())
    order = [page.text.index(part) for part in ("Speed", "What to change", "Charts", "All points", "How it was")]
    assert order == sorted(order)
    assert "failed: <script>alert('a | b')</script> out of memory" in page.text
    assert "failed: node n3 is down" in page.text and "not run" in page.text
    assert "strong, ZeRO-3, bucket 1 M: nothing measured (failed: node n3 is down)" in page.text
    assert "2.13.0+cpu" in page.text and "c0ffee" in page.text and "warm-up steps" in page.text
    assert "memory_bandwidth1e+10 (the maker's, or assumed)" in page.text
    assert "flopsfp32 1e+10 (measured)" in page.text


def test_hostile_names_are_text_on_the_page(study, tmp_path):
    hostile = "<img src=x onerror=alert(1)>&\"'"
    content = yaml.safe_load((study / "recipe.yaml").read_text())
    (study / "recipe.yaml").write_text(yaml.safe_dump({**content, "name": hostile}))
    measure(study, own=0.8)
    measure(study, own=0.2, slow={2: 1.5}, ranks=4, changes={"hosts": ("a", "b", hostile, "c"), "commit": hostile})
    study_report.write(analysis.analyse(study), tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    assert f"Scaling of {hostile} on 1 to 4 ranks" in page.text
    assert f"Replace node {hostile}:" in page.text and f"(rank 2, {hostile})" in page.text
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert images and all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]


def test_all_lines_of_a_table_are_as_wide_as_its_head(written):
    text = (written[0] / "index.html").read_text()
    for table in re.findall(r'<table class="points">(.*?)</table>', text, re.DOTALL):
        head, *lines = re.findall(r"<tr.*?</tr>", table, re.DOTALL)
        for line in lines:
            spans = re.findall(r'<td[^>]*?(?:colspan="(\d+)")?>', line)
            assert sum(int(span or 1) for span in spans) == head.count("<th>")


def test_pictures_are_images(written):
    for name in pictures.PICTURES:
        pixels = image.imread(written[0] / name)
        assert pixels.shape[1] == 1440 and pixels.std() > 0.05


def test_tensorboard_has_a_curve_a_run(written):
    folder, found = written
    runs = sorted(path.name for path in (folder / "tensorboard").iterdir())
    assert runs == [
        f"{series}-bucket{BUCKET}" for series in ("strong-zero1", "strong-zero2", "strong-zero3", "weak-zero2")
    ]
    board = EventAccumulator(str(folder / "tensorboard" / runs[1]))
    board.Reload()
    curve = found.curves[1]
    read = {event.step: event.value for event in board.Scalars("scaling/efficiency")}
    assert read == pytest.approx({row.point.ranks: curve.efficiency(row) for row in curve.best})
    speeds = {event.step: event.value for event in board.Scalars("scaling/tokens_per_second")}
    assert speeds == pytest.approx({1: 64 * 30 / 1.6, 2: 64 * 30 / 0.85, 4: 64 * 30 / 0.55})
    assert [event.step for event in board.Scalars("predicted/efficiency")] == [1, 2, 4, 8]


def test_the_same_as_json(written):
    content = json.loads((written[0] / "report.json").read_text())
    one = content["curves"][1]
    assert (one["series"], one["stage"], one["judged_ranks"], one["knee_ranks"]) == ("strong", 2, 4, 4)
    assert one["limits"][0]["part"] == "communication"
    states = [point["state"] for point in one["points"]]
    assert sorted(states) == ["failed", "measured", "measured", "measured", "not run"]
    last = next(point for point in one["points"] if point["ranks"] == 4 and point["state"] == "measured")
    assert last["measured"]["efficiency"] == pytest.approx(1.6 / 0.55 / 4)
    assert last["predicted"]["error"] == pytest.approx(last["predicted"]["seconds"] / 0.55 - 1)


def test_the_table_to_paste(written):
    text = (written[0] / "report.md").read_text()
    rows = [line for line in text.splitlines() if line.startswith("|")]
    cells = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    assert len(set(cells)) == 1 and len(rows) == 2 + 6 + 2 + 3
    assert r"failed: <script>alert('a \| b')</script> out of memory" in text


def test_the_command(study, call):
    measure(study, own=1.0)
    status, said, _ = call(report.main, study)
    assert status == 0
    assert "scaling is not known yet" in said and str(study / "report" / "index.html") in said
    assert {path.name for path in (study / "report").iterdir()} <= study_report.OURS
    assert not list(study.glob("*.partial"))
    measure(study, own=0.6, ranks=2)
    assert call(report.main, study)[0] == 0  # again, over the older one
    assert json.loads((study / "report" / "report.json").read_text())["curves"][0]["judged_ranks"] == 2


# ---- remarks and bad input


def test_points_that_differ_from_the_others_are_named(study):
    for ranks in (1, 2, 4):
        measure(study, own=0.8 / ranks, ranks=ranks)
    newer = {"versions": {"torch": "2.14", "deepspeed": "0.19.8"}}
    odd = measure(study, own=0.1, ranks=8, micro=4, changes={"commit": None, "hosts": ("n9",) * 8, **newer})
    study_folder.note_failure(study, odd, "timed out")
    remarks = "\n".join(analysis.analyse(study).remarks)
    assert f"{odd.name}: another commit than most points (None instead of c0ffee)" in remarks
    assert "torch 2.14 instead of 2.13.0+cpu" in remarks and "deepspeed" not in remarks
    assert f"{odd.name}: on hosts that the largest point did not have (n9)" in remarks
    assert f"{odd.name}: asked for 8 nodes, and ran on 1 (n9)" in remarks
    assert "measured after 1 failed attempts (the last: timed out)" in remarks
    assert remarks.count(odd.name) == len(remarks.splitlines())


def test_a_study_without_measurements_says_what_to_run(study, call):
    fail(study, "no")
    ask(study, ranks=2)
    status, _, said = call(report.main, study)
    assert status == 2
    assert said == f"error: {study}: none of its 2 points is measured, 1 failed; run python -m scaler.study first\n"
    assert not (study / "report").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"hosts": ("a",)}, "it has figures of 1 and 2 ranks, but the point has 2"),
        ({"step_seconds": ((1.0,), (1.0, 2.0))}, "different numbers of steps"),
        ({"step_seconds": ((), ()), "own_seconds": ((), ())}, "different numbers of steps, or none"),
        ({"step_seconds": ((0.0,) * 5,) * 2}, "a step takes no time"),
        ({"tokens_per_row": 0.0}, "a row has no tokens"),
    ],
)
def test_measurements_that_cannot_be_are_named(study, call, changes, said):
    point = measure(study, own=1.0, ranks=2, changes=changes)
    status, _, told = call(report.main, study)
    assert status == 2 and told.count("\n") == 1
    assert str(study_folder.folder_of(study, point) / "measured.json") in told and said in told


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("measured.json", '{"hosts": [', "not readable as JSON"),
        ("measured.json", '{"hosts": []}', "warmup is missing"),
        ("point.json", "[]", "a JSON object is needed"),
        ("ds_config.json", "", "not readable as JSON"),
    ],
)
def test_damaged_files_are_named(study, call, file, text, said):
    point = measure(study, own=1.0)
    path = study_folder.folder_of(study, point) / file
    path.write_text(text)
    (study / "hardware.yaml").write_text(yaml.safe_dump({**dataclasses.asdict(ON), "measured": []}))
    status, _, told = call(report.main, study)
    assert status == 2 and told.count("\n") == 1
    assert str(path) in told and said in told


@pytest.mark.parametrize(("name", "value"), [("step_seconds", [[-1.0]]), ("own_seconds", [[float("nan")]])])
def test_a_time_that_is_none_is_named_with_its_file(study, call, name, value):
    path = study_folder.folder_of(study, measure(study, own=1.0)) / "measured.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    status, _, told = call(report.main, study)
    assert status == 2 and str(path) in told and "negative or not finite" in told


def test_a_point_without_ranks_is_named(study, call):
    path = study_folder.folder_of(study, measure(study, own=1.0)) / "point.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "nodes": 0}))
    status, _, told = call(report.main, study)
    assert status == 2 and str(path) in told and "nodes=0, but it is at least 1" in told


def test_half_a_line_of_failures_is_a_failure(study):
    measure(study, own=1.0)
    point = fail(study, "first", ranks=2)
    with (study_folder.folder_of(study, point) / "failures.jsonl").open("a") as file:
        file.write('{"reas')
    row = next(row for row in analysis.analyse(study).rows if row.point == point)
    assert row.failures == ("first", "a damaged line of failures.jsonl")


def test_no_study_unknown_hardware_and_a_folder_of_others(study, call, tmp_path):
    assert call(report.main, tmp_path)[0] == 2
    measure(study, own=1.0)
    status, _, said = call(report.main, study, "--hardware", "dgx-h1000")
    assert status == 2 and "did you mean 'dgx-h100'?" in said
    run = tmp_path / "run"
    (run / "tensorboard").mkdir(parents=True)
    (run / "metrics.jsonl").write_text("{}")
    status, _, said = call(report.main, study, "--out", run)
    assert status == 2 and "metrics.jsonl" in said and (run / "metrics.jsonl").is_file()

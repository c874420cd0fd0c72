"""The files of a study's report, its remarks, and what is refused."""

import dataclasses
import json
import re
from html.parser import HTMLParser

import pytest
import study_points
import yaml
from failures import failing
from matplotlib import image
from refusals import refusal
from study_points import BUCKET, ON, ask, fail, measure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer.record_writer import RecordWriter

from scaler import report
from scaler.studies import folder as study_folder
from scaler.studies import pictures
from scaler.studies import report as study_report
from scaler.studies.curves import analyse


@pytest.fixture(autouse=True, scope="module")
def one_workload():
    with study_points.workload_once():
        yield


@pytest.fixture
def study(tmp_path):
    return study_points.new_study(tmp_path / "study")


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
    folder = study_points.new_study(tmp_path_factory.mktemp("whole") / "study")
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
    found = analyse(folder)
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
    study_report.write(analyse(study), tmp_path / "out")
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


def test_a_picture_and_a_curve_that_fail_are_left_out_with_a_warning(study, tmp_path, monkeypatch, caplog):
    measure(study, own=0.8)
    measure(study, own=0.4, ranks=2)
    monkeypatch.setattr(pictures, "_step", failing)
    monkeypatch.setattr(RecordWriter, "write", failing)
    study_report.write(analyse(study), tmp_path / "out")
    page = Page((tmp_path / "out" / "index.html").read_text())
    shown = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    assert shown == ["Strong scaling: speed and efficiency", "Memory of a rank", "Own work of each rank"]
    assert json.loads((tmp_path / "out" / "report.json").read_text())["curves"]
    assert "no picture step.png: no such colour" in caplog.text and "TensorBoard's curves end here" in caplog.text


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


@pytest.mark.parametrize("out", ["index.html", "link"])
def test_a_report_replaces_no_link_and_no_page_of_the_users(study, call, tmp_path, out):
    measure(study, own=1.0)
    assert call(report.main, study, "--out", tmp_path / "report")[0] == 0
    if out == "link":
        (tmp_path / "mine").symlink_to(tmp_path / "report")
        said = "is a link, which is not replaced"
    else:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "index.html").write_text("my page")
        said = "has index.html in it"
    (tmp_path / "mine.partial").mkdir()
    (tmp_path / "report.partial").mkdir()
    (tmp_path / "report.partial" / "notes.txt").touch()
    status, _, told = call(report.main, study, "--out", tmp_path / "mine")
    assert status == 2 and said in told
    assert (tmp_path / "report" / "report.json").is_file() and (tmp_path / "mine" / "index.html").is_file()
    assert call(report.main, study, "--out", tmp_path / "report")[0] == 0  # over its own
    assert (tmp_path / "report.partial" / "notes.txt").is_file()
    assert not list(tmp_path.glob(".*.partial"))


# ---- remarks and bad input


def test_points_that_differ_from_the_others_are_named(study):
    for ranks in (1, 2, 4):
        measure(study, own=0.8 / ranks, ranks=ranks)
    newer = {"versions": {"torch": "2.14", "deepspeed": "0.19.8"}}
    odd = measure(study, own=0.1, ranks=8, micro=4, changes={"commit": None, "hosts": ("n9",) * 8, **newer})
    study_folder.note_failure(study, odd, "timed out")
    remarks = "\n".join(analyse(study).remarks)
    assert f"{odd.name}: another commit than most points (None instead of c0ffee)" in remarks
    assert "torch 2.14 instead of 2.13.0+cpu" in remarks and "deepspeed" not in remarks
    assert f"{odd.name}: on hosts that the largest point did not have (n9)" in remarks
    assert f"{odd.name}: asked for 8 nodes, and ran on 1 (n9)" in remarks
    assert "measured after 1 failed attempt (the last: timed out)" in remarks
    assert remarks.count(odd.name) == len(remarks.splitlines())


def test_a_study_without_measurements_says_what_to_run(study, call):
    fail(study, "no")
    ask(study, ranks=2)
    status, _, said = call(report.main, study)
    assert status == 2
    assert said == f"error: {study}: none of its 2 points is measured, 1 failed; run scaler study first\n"
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
    told = refusal(call(report.main, study))
    assert str(study_folder.folder_of(study, point) / "measured.json") in told and said in told


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("measured.json", '{"hosts": [', "not readable as JSON"),
        ("measured.json", '{"hosts": []}', "device and threads are missing"),
        ("point.json", "[]", "a JSON object is needed"),
        ("ds_config.json", "", "not readable as JSON"),
    ],
)
def test_damaged_files_are_named(study, call, file, text, said):
    point = measure(study, own=1.0)
    path = study_folder.folder_of(study, point) / file
    path.write_text(text)
    (study / "hardware.yaml").write_text(yaml.safe_dump({**dataclasses.asdict(ON), "measured": []}))
    told = refusal(call(report.main, study))
    assert str(path) in told and said in told


@pytest.mark.parametrize(
    ("file", "name", "value", "said"),
    [
        ("measured.json", "step_seconds", [[-1.0]], "step_seconds=-1.0, but it is at least 0, and finite"),
        ("measured.json", "own_seconds", [[float("nan")]], "own_seconds=nan, but it is at least 0, and finite"),
        ("point.json", "nodes", 0, "nodes=0, but it is at least 1"),
        ("point.json", "series", "week", "series='week', but it is one of strong, weak"),
        ("point.json", "micro_rows", 7, "64 rows are no multiple of 1 rank x 7 rows"),
    ],
)
def test_a_value_that_cannot_be_is_named_with_its_file(study, call, file, name, value, said):
    path = study_folder.folder_of(study, measure(study, own=1.0)) / file
    path.write_text(json.dumps({**json.loads(path.read_text()), name: value}))
    status, _, told = call(report.main, study)
    assert status == 2 and str(path) in told and said in told


def test_half_a_line_of_failures_is_a_failure(study):
    measure(study, own=1.0)
    point = fail(study, "first", ranks=2)
    with (study_folder.folder_of(study, point) / "failures.jsonl").open("a") as file:
        file.write('{"reas')
    row = next(row for row in analyse(study).rows if row.point == point)
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

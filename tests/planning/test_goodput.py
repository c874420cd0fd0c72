"""The command that says what failures leave of a run's time."""

import json

import pytest
from failures import failing
from refusals import refusal

from scaler import goodput
from scaler.core import charts
from scaler.planning import failures

OPTIONS = {
    "nodes": "1,64,512",
    "steps": 3000,
    "step_seconds": 8,
    "save_seconds": 30,
    "restart_seconds": 600,
    "runs": 20,
}


def words(**differing):
    options = {**OPTIONS, **differing}
    return [word for name, value in options.items() for word in (f"--{name}", value)]


def figures(call, *more, **differing):
    status, printed, said = call(goodput.main, *words(**differing), "--json", *more)
    assert status == 0, said
    return json.loads(printed)


def test_a_row_for_each_number_of_nodes(call):
    status, printed, _ = call(goodput.main, *words())
    head, *rows, _, note = printed.splitlines()
    assert status == 0
    assert head.split()[:8] == ["nodes", "GPUs", "best", "Young", "Daly", "goodput", "at", "500"]
    assert [row.split()[:2] for row in rows] == [["1", "8"], ["64", "512"], ["512", "4,096"]]
    assert len({len(row) for row in (head, *rows)}) == 1
    assert "~" in rows[0] and "take Daly's" in note  # hardly a failure to judge by


def test_with_many_failures_the_best_is_no_guess(call):
    assert "~" not in call(goodput.main, *words(nodes=2048, runs=200))[1]


def test_the_same_figures_as_json(call):
    found = figures(call)
    assert [row["gpus"] for row in found] == [8, 512, 4096]
    for row in found:
        for interval in ("best", "given"):
            assert sum(row[interval]["shares"].values()) == pytest.approx(1)
            times = row[interval]["wall_seconds"]
            assert 3000 * 8 < times["p5"] <= times["median"] <= times["p95"]
        assert row["best"]["shares"]["useful"] >= row["given"]["shares"]["useful"]
        assert row["given"]["every"] == 500
    goodputs = [row["best"]["shares"]["useful"] for row in found]
    assert goodputs == sorted(goodputs, reverse=True)
    assert found[-1]["daly"] == pytest.approx(failures.daly(30, failures.MTBF_NODE_HOURS * 3600 / 512) / 8)


def test_the_same_seed_gives_the_same_bytes(call):
    first, again, other = (call(goodput.main, *words(seed=seed), "--json")[1] for seed in (1, 1, 2))
    assert first == again != other


def test_a_write_beside_the_training_stalls_less_and_counts_later(call):
    waits, behind = (figures(call, save_seconds=save, write_seconds=30, every=100) for save in (30, 1))
    stall, late = [rows[-1]["given"]["shares"]["saving"] for rows in (waits, behind)]
    assert late < stall / 10
    assert figures(call) == figures(call, write_seconds=30)  # by default training waits for all of it


def test_stragglers_of_a_measured_file(call, tmp_path):
    (tmp_path / "steps.csv").write_text("node,seconds\na,2.0\na,2.0\na,2.2\nb,2.0\nb,2.0\nb,2.0\n")
    row = figures(call, step_deviation=tmp_path / "steps.csv", nodes=512)[0]["given"]["shares"]
    assert row["straggling"] == pytest.approx(0.1 * row["useful"], rel=1e-3)  # of 4,096 one is always slow
    assert figures(call, step_deviation=0.0, nodes=512)[0]["given"]["shares"]["straggling"] == 0


def test_elastic_runs_wait_less(call):
    waits = figures(call, nodes=512, replacement_seconds=7200)[0]["best"]["shares"]
    goes_on = figures(call, nodes=512, replacement_seconds=7200, elastic=15)[0]["best"]["shares"]
    assert goes_on["idle"] < waits["idle"] / 2 and goes_on["useful"] > waits["useful"]


def test_a_picture_that_fails_is_a_warning(call, tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "save", failing)
    ended, said, error = call(goodput.main, *words(), "--out", tmp_path)
    assert ended == 0 and (tmp_path / "goodput.json").is_file() and "no picture: no such colour" in error and said


def test_the_picture_and_the_figures_in_a_folder(call, tmp_path):
    found = figures(call, "--out", tmp_path / "new" / "folder")
    assert json.loads((tmp_path / "new" / "folder" / "goodput.json").read_text()) == found
    assert (tmp_path / "new" / "folder" / "goodput.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("differing", "message"),
    [
        *(({"nodes": nodes}, "--nodes") for nodes in ("", "0", "1,", "8;64", "1,-8", "2.5", "many", "1" * 5000)),
        *(({"steps": steps}, "--steps") for steps in (0, -1, 10**12)),
        ({"gpus_per_node": 0}, "--gpus_per_node 0"),
        *(({"step_seconds": seconds}, "--step_seconds") for seconds in (0, -1, "nan", "inf")),
        *(({"save_seconds": seconds}, "--save_seconds") for seconds in (-1, "nan", "inf")),
        ({"write_seconds": 29}, "--write_seconds 29"),
        ({"write_seconds": -1}, "--write_seconds -1"),
        ({"restart_seconds": -1}, "--restart_seconds -1"),
        ({"replacement_seconds": -0.5}, "--replacement_seconds -0.5"),
        *(({"mtbf_node_hours": hours}, "--mtbf_node_hours") for hours in (0, -1, "nan")),
        ({"every": 0}, "--every 0"),
        ({"every": 3001}, "a run has 3000 steps"),
        ({"elastic": 0}, "--elastic 0"),
        ({"runs": 0}, "--runs 0"),
        ({"seed": -1}, "--seed -1"),
        *(({"step_deviation": spread}, "--step_deviation") for spread in (-0.1, "nan", 1.5)),
        ({"step_deviation": "nowhere.csv"}, "nowhere.csv: No such file"),
        ({"nodes": 512, "mtbf_node_hours": 10}, "less than 1% useful work"),
        ({"nodes": 512, "every": 3000, "mtbf_node_hours": 300}, "with a save every 3,000 steps"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_bad_input_is_one_line(differing, message, call):
    assert message in refusal(call(goodput.main, *words(**differing)))


def test_a_broken_spread_file_is_one_line(call, tmp_path):
    (tmp_path / "steps.csv").write_text("node,seconds\na,slow\n")
    assert "steps.csv:2" in refusal(call(goodput.main, *words(step_deviation=tmp_path / "steps.csv")))

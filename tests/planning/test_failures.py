"""What failures cost: formulas against their source, the simulation against formulas and against runs step by step."""

import itertools
import math
import random
from dataclasses import replace

import numpy as np
import pytest

from scaler.core.errors import ScalerError
from scaler.planning import failures
from scaler.planning.failures import SimulatedRun, best_interval, simulate

NEVER = 1e15  # seconds
SMALL = SimulatedRun(
    nodes=4,
    steps=100,
    step_seconds=1.0,
    save_seconds=2.0,
    write_seconds=2.0,
    restart_seconds=5.0,
    replacement_seconds=0.0,
    mtbf_seconds=240.0,
)
LLAMA = SimulatedRun(  # 16,384 GPUs for about a week
    nodes=2048,
    steps=60_000,
    step_seconds=10.0,
    save_seconds=30.0,
    write_seconds=30.0,
    restart_seconds=600.0,
    replacement_seconds=0.0,
    mtbf_seconds=failures.MTBF_NODE_HOURS * 3600,
)


def same_steps(plan, runs):
    return np.full(runs, plan.step_seconds)


def fail_after(monkeypatch, *node_seconds):
    """Let failures come after these seconds times nodes, each since the last start; where nodes fail every 1e6 s."""
    draws = iter([*node_seconds, NEVER, NEVER])

    class Chance:
        def exponential(self, size):
            return np.full(size, next(draws) / 1e6)

    monkeypatch.setattr(failures.np.random, "default_rng", lambda seed: Chance())


def test_young_by_hand():
    assert failures.young(300, 86_400) == 7200  # sqrt(2 x 300 x 86,400)


@pytest.mark.parametrize(("mtbf_minutes", "minutes"), [(24 * 60, 117), (6 * 60, 57), (15, 9.1)])
def test_daly_as_in_his_figures_3_to_5(mtbf_minutes, minutes):
    assert failures.daly(5 * 60, mtbf_minutes * 60) / 60 == pytest.approx(minutes, rel=0.006)
    assert failures.daly(201, 100) == 100  # a save of more than twice the time between failures


@pytest.mark.parametrize("save_seconds", [1, 30, 300, 1800])
def test_daly_is_where_the_complete_model_is_best(save_seconds):
    every = np.geomspace(10, 36_000, 20_000)
    shares = [failures.expected_fraction(seconds, save_seconds, 600, 3600) for seconds in every]
    best = failures.expected_fraction(failures.daly(save_seconds, 3600), save_seconds, 600, 3600)
    assert every[np.argmax(shares)] == pytest.approx(failures.daly(save_seconds, 3600), rel=0.01)
    assert best == pytest.approx(max(shares), rel=1e-4)


def test_the_complete_model_by_hand():
    assert failures.expected_fraction(math.log(2), 0, 0, 1) == pytest.approx(math.log(2))
    assert failures.expected_fraction(math.log(2), 0, math.log(2), 1) == pytest.approx(math.log(2) / 2)
    assert failures.expected_fraction(90, 10, 600, NEVER) == pytest.approx(0.9)


@pytest.mark.parametrize("replacement_seconds", [0.0, 30.0])
@pytest.mark.parametrize("every", [5, 20, 50])
def test_simulation_agrees_with_the_complete_model(every, replacement_seconds):
    # with many nodes, for while they wait the ones that have failed cannot fail again
    plan = replace(SMALL, nodes=400, mtbf_seconds=24_000.0, replacement_seconds=replacement_seconds)
    wall = simulate(plan, every, same_steps(plan, 4000), seed=1).wall_seconds
    assert wall.mean() == pytest.approx(100 / plan.promise(every, 1.0), abs=4 * wall.std() / math.sqrt(len(wall)))


def test_without_failures_the_time_is_exact():
    plan = replace(SMALL, mtbf_seconds=NEVER)
    assert simulate(plan, 30, same_steps(plan, 2), seed=0).wall_seconds.tolist() == [100 + 4 * 2] * 2
    behind = replace(plan, save_seconds=0.5, write_seconds=3.0)  # the last is waited for
    assert simulate(behind, 30, same_steps(plan, 1), seed=0).wall_seconds.tolist() == [100 + 3 * 0.5 + 3]
    assert simulate(behind, 1, same_steps(plan, 1), seed=0).wall_seconds.tolist() == [100 * 3 + 1]  # one at a time
    slower = simulate(plan, 100, np.array([1.25]), seed=0)
    assert slower.fractions == pytest.approx(
        {"useful": 100 / 127, "straggling": 25 / 127, "saving": 2 / 127, "lost": 0, "restarting": 0, "idle": 0}
    )


@pytest.mark.parametrize(
    ("failure", "wall", "lost"),
    [
        (7.0, 7 + 5 + 10 + 1 + 10 + 4, 7.0),
        (13.9, 13.9 + 5 + 10 + 1 + 10 + 4, 13.9),  # while the first save is written: it does not count
        (14.1, 14.1 + 5 + 10 + 4, 3.1),
        (24.9, 24.9 + 5 + 10 + 4, 13.9),  # while the last one is written
    ],
)
def test_a_failure_costs_what_is_not_yet_written(failure, wall, lost, monkeypatch):
    fail_after(monkeypatch, failure)
    plan = replace(SMALL, nodes=1, steps=20, save_seconds=1.0, write_seconds=4.0, mtbf_seconds=1e6)
    outcome = simulate(plan, 10, np.ones(1), seed=0)
    assert outcome.wall_seconds[0] == pytest.approx(wall)
    assert outcome.parts["lost"][0] == pytest.approx(lost)
    assert outcome.parts["restarting"][0] == 5 and outcome.failures[0] == 1


def test_an_elastic_run_by_hand(monkeypatch):
    # of 4 nodes one fails at 3 s, and one of the 2 that can go on with as many rows at 13 s; they are back at 33 s and
    # 43 s, but 3 nodes are no better than 2. By then there was a save, and two of the next steps of 2 s. They are saved
    # to 44 s, and all 4 restart
    fail_after(monkeypatch, 3 * 4, 10 * 2)
    plan = replace(SMALL, steps=20, save_seconds=1.0, write_seconds=1.0, mtbf_seconds=1e6)
    outcome = simulate(replace(plan, replacement_seconds=30.0, elastic_rows=1), 10, np.ones(1), seed=0)
    assert {part: seconds[0] for part, seconds in outcome.parts.items()} == pytest.approx(
        {
            "useful": 20,
            "straggling": 0,
            "saving": 1 / 2 + 1 / 2 + 1,
            "lost": 3 + 5 / 2,
            "restarting": 5 / 2 + 5 / 2 + 5,
            "idle": 10 / 2 + 31 / 2,
        }
    )
    assert outcome.wall_seconds[0] == pytest.approx(44 + 5 + 8 + 1) and outcome.failures[0] == 2


def step_by_step(plan, every, slowest, chance):
    """Wall seconds of one run, lived through step by step."""

    def that_share(up):
        rows = (plan.elastic_rows or 0) * plan.nodes
        return max((n for n in range(1, up + 1) if n == plan.nodes or (rows and rows % n == 0)), default=0)

    clock, done, back = 0.0, 0, []
    while done < plan.steps:
        out = sorted(time for time in back if time > clock)
        up = plan.nodes - len(out)
        world = that_share(up)
        more = next((time for i, time in enumerate(out, 1) if that_share(up + i) > world), math.inf)
        failure = clock + chance.expovariate((world or up) / plan.mtbf_seconds) if up else math.inf
        now = clock + (plan.restart_seconds if clock else 0.0)
        saves = [(done, clock)]  # a step, and when its save counts
        if not world or now >= more:
            now = more
        else:
            step = done
            while step < plan.steps and now < min(more, failure):
                now += next(slowest) * plan.step_seconds * plan.nodes / world
                step += 1
                if (step - done) % every == 0 and step < plan.steps:
                    now = max(now, saves[-1][1])
                    saves.append((step, now + plan.write_seconds))
                    now += plan.save_seconds
            now += plan.write_seconds
            saves.append((step, now))
        if failure < now:
            clock, done = failure, max(step for step, counts in saves if counts <= failure)
            back.append(failure + plan.replacement_seconds)
        else:
            clock, done = now, saves[-1][0]
    return clock


@pytest.mark.parametrize(
    "differing",
    [
        {},
        {"save_seconds": 0.5, "write_seconds": 6.0},  # written behind
        {"save_seconds": 0.5, "write_seconds": 15.0},  # for longer than the interval
        {"replacement_seconds": 30.0},
        {"replacement_seconds": 60.0, "elastic_rows": 3},  # on any number of nodes
        {"replacement_seconds": 60.0, "elastic_rows": 1, "write_seconds": 4.0},  # on 4, 2 or 1
    ],
    ids=str,
)
def test_simulation_agrees_with_runs_step_by_step(differing):
    plan, chance, runs = replace(SMALL, **differing), random.Random(0), 300
    spread = failures.Spread(np.array([0.8, 0.9, 0.95, 1.0, 1.05, 1.1, 1.5]), np.ones(1))
    drawn = np.random.default_rng(0).choice(spread.steps, (20_000, plan.nodes * 2)).max(axis=1)
    slowest = itertools.cycle(drawn.tolist())
    lived = np.array([step_by_step(plan, 10, slowest, chance) for _ in range(runs)])
    wall = simulate(plan, 10, failures.slowest(spread, plan.nodes, 2, 3000, seed=0), seed=0).wall_seconds
    error = math.sqrt(lived.var() / runs + wall.var() / len(wall))
    assert wall.mean() == pytest.approx(lived.mean(), abs=4 * error)
    for percent in (5, 50, 95):
        assert np.percentile(wall, percent) == pytest.approx(np.percentile(lived, percent), rel=0.12)


def test_useful_time_is_the_same_whatever_happens():
    plan = replace(SMALL, replacement_seconds=60.0, elastic_rows=3)
    useful = simulate(plan, 10, same_steps(plan, 50), seed=0).parts["useful"]
    assert useful.tolist() == [100.0] * 50


def test_the_same_seed_gives_the_same_and_another_another():
    first, again, other = (simulate(SMALL, 10, same_steps(SMALL, 20), seed).wall_seconds for seed in (3, 3, 4))
    assert first.tolist() == again.tolist() != other.tolist()


@pytest.mark.parametrize(
    ("rows", "nodes_that_train"), [(None, {2047: 0, 2048: 2048}), (8, {2047: 1024}), (15, {2047: 1920, 1919: 1536})]
)
def test_nodes_train_where_they_share_the_batch_equally(rows, nodes_that_train):
    worlds = replace(LLAMA, elastic_rows=rows).worlds()
    assert {up: worlds[up] for up in nodes_that_train} == nodes_that_train
    assert worlds[0] == 0 and len(worlds) == 2049


@pytest.mark.parametrize(("replacement_hours", "is_better"), [(6, True), (0.01, False)])
def test_going_on_with_fewer_nodes_pays_where_a_replacement_takes_long(replacement_hours, is_better):
    waiting = replace(LLAMA, nodes=256, replacement_seconds=replacement_hours * 3600)
    goodput = [
        simulate(plan, 100, same_steps(plan, 100), seed=0).fractions["useful"]
        for plan in (waiting, replace(waiting, elastic_rows=15))
    ]
    assert (goodput[1] > goodput[0]) == is_better


def test_with_spares_at_hand_there_is_nothing_to_shrink_for():
    elastic = replace(LLAMA, elastic_rows=15)
    both = [simulate(plan, 60, same_steps(plan, 20), seed=0).wall_seconds.tolist() for plan in (LLAMA, elastic)]
    assert both[0] == both[1]


@pytest.mark.parametrize("nodes", [512, 2048])
def test_the_best_interval_is_near_dalys(nodes):
    plan = replace(LLAMA, nodes=nodes)
    best, outcome = best_interval(plan, same_steps(plan, 100), seed=0)
    daly = failures.daly(plan.save_seconds, plan.job_mtbf_seconds) / plan.step_seconds
    assert daly / 1.5 < best < daly * 1.5
    assert outcome.fractions["useful"] == pytest.approx(plan.promise(round(daly), plan.step_seconds), rel=0.01)


def test_without_failures_the_best_is_one_save_at_the_end():
    plan = replace(SMALL, mtbf_seconds=NEVER)
    assert best_interval(plan, same_steps(plan, 1), seed=0)[0] == 100


@pytest.mark.parametrize(
    "hopeless", [{"replacement_seconds": 86_400.0}, {"mtbf_seconds": 3600.0}, {"restart_seconds": 1e6}], ids=str
)
def test_a_run_that_would_not_end_is_refused(hopeless):
    with pytest.raises(ScalerError, match="do less than 1% useful work"):
        best_interval(replace(LLAMA, **hopeless), same_steps(LLAMA, 2), seed=0)


@pytest.mark.parametrize("nodes_differ", [False, True])
def test_the_mean_of_the_slowest_agrees_with_drawing_all(nodes_differ):
    chance = np.random.default_rng(0)
    of_nodes = np.array([0.9, 1.0, 1.0, 1.3]) if nodes_differ else np.ones(1)
    spread = failures.Spread(np.sort(chance.lognormal(0, 0.1, 40)), of_nodes)
    steps = chance.choice(spread.nodes, (2000, 6, 1)) * chance.choice(spread.steps, (2000, 6, 8))
    drawn = steps.max(axis=(1, 2))
    found = failures.slowest(spread, 6, 8, 2000, seed=1)
    assert found.mean() == pytest.approx(drawn.mean(), abs=6 * drawn.std() / math.sqrt(2000))
    assert (found.std() > 0.01) == nodes_differ  # each run keeps its nodes


def test_the_slowest_of_16384_log_normal_ranks():
    drawn = np.random.default_rng(0).lognormal(0, math.sqrt(math.log1p(0.05**2)), (200, 16_384)).max(axis=1)
    found = failures.slowest(failures.log_normal(0.05), 2048, 8, 1, seed=0)[0]
    assert found == pytest.approx(drawn.mean(), abs=4 * drawn.std() / math.sqrt(200))


def test_equal_ranks_are_as_slow_as_one():
    assert failures.slowest(failures.log_normal(0), 2048, 8, 3, seed=0).tolist() == [1, 1, 1]


def test_a_file_of_step_times(tmp_path):
    path = tmp_path / "steps.csv"
    path.write_text("rank,node,seconds\n0,a,1.0\n1,a,2.0\n0,a,4.0\n8,b,3\n8,b,3\n16,c,2.0\n")
    spread = failures.read_spread(path)
    assert spread.steps.tolist() == [0.5, 1, 1, 1, 1, 2]
    assert spread.nodes.tolist() == [1, 1.5, 1]
    assert failures.slowest(spread, 1, 1, 1000, seed=0).mean() == pytest.approx(6.5 / 6 * 3.5 / 3, rel=0.03)


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("", "no step times"),
        ("node,seconds\n", "no step times"),
        ("1.0\n1.1\n", ":2:"),
        ("node,seconds\na,1\na,fast\n", ":3:"),
        ("node,seconds\na\n", ":2:"),
        ("node,seconds\n,1\n", ":2:"),
        ("node,seconds\na,0\n", ":2:"),
        ("node,seconds\na,nan\n", ":2:"),
        ("node,seconds\na,inf\n", ":2:"),
        ("node,seconds\na,\xff\n", "node and seconds"),
    ],
)
def test_a_file_that_is_none_is_refused(text, where, tmp_path):
    path = tmp_path / "steps.csv"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ScalerError, match=where) as problem:
        failures.read_spread(path)
    assert str(problem.value).startswith(str(path))

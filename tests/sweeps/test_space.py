"""The space of a sweep: ranges and choices, proposals, and which parameters matter."""

import json
import math
from dataclasses import replace

import pytest
from refusals import error_of

from scaler.config import recipe, typed
from scaler.core.errors import ScalerError
from scaler.sweeps import space as sweep_space
from scaler.sweeps.space import Parameter

RATE = "optimizer.learning_rate=log:1e-5:1e-1"


@pytest.fixture
def parse(tiny_recipe_file):
    def run(*words):
        return sweep_space.parse(words, lambda more: recipe.load(str(tiny_recipe_file), more))

    return run


def test_ranges_and_choices_take_the_types_of_the_recipe(parse):
    assert parse("optimizer.learning_rate=log:1e-4:1e-2", "optimizer.weight_decay=0:1", "training.rows=log:8:64") == (
        Parameter("optimizer.learning_rate", low=1e-4, high=1e-2, log=True),
        Parameter("optimizer.weight_decay", low=0.0, high=1.0),
        Parameter("training.rows", low=8, high=64, log=True),
    )
    assert parse(
        "optimizer.betas=[[0.9, 0.98], [0.9, 0.999]]", "schedule.shape=[linear, cosine]", "optimizer.eps=[1e-6, 1e-8]"
    ) == (
        Parameter("optimizer.betas", ([0.9, 0.98], [0.9, 0.999])),
        Parameter("schedule.shape", ("linear", "cosine")),
        Parameter("optimizer.eps", (1e-6, 1e-8)),
    )
    (dropout, layers) = parse("model.hidden_dropout_prob=0:1", "model.num_hidden_layers=1:3")
    assert isinstance(dropout.low, float) and isinstance(layers.low, int)  # as the recipe's own values are


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.learning_rat=1:2", "unknown key optimizer.learning_rat; did you mean 'learning_rate'?"),
        ("optimiser.learning_rate=1:2", "there is no such key; initialisation.*, model.*"),
        ("data.seq_len=[16, 32]", "trials would not be comparable"),
        ("objective.heldout_mask_probability=0.1:0.2", "trials would not be comparable"),
        ("optimizer.learning_rate=1e-2:1e-4", "the range is empty"),
        ("optimizer.learning_rate=1e-2:1e-2", "the range is empty"),
        ("optimizer.learning_rate=1e-2:nan", "the range is empty"),
        ("optimizer.learning_rate=1e-4:.inf", "key=low:high|=low:high"),
        ("optimizer.learning_rate=1e-4", "=low:high, "),
        ("optimizer.learning_rate", "=low:high, "),
        ("optimizer.learning_rate=a:b", "=low:high, "),
        ("optimizer.weight_decay=log:0:0.1", "a logarithmic scale begins above 0"),
        ("optimizer.learning_rate=-1:1", "optimizer.learning_rate=-1.0, but it is above 0"),
        ("objective.mask_probability=0.5:1.5", "objective.mask_probability=1.5, but it is above 0 and below 1"),
        ("training.rows=0.5:8", "training.rows=0.5, but int is needed"),
        ("schedule.shape=1:2", "schedule.shape=1, but str is needed"),
        ("schedule.shape=[linear, wavy]", "schedule.shape='wavy', but it is one of"),
        ("training.rows=[8]", "at least two choices"),
        ("training.rows=[8, 8]", "all different"),
        ("training.rows=[8, 9", "not YAML"),
    ],
)
def test_a_word_that_makes_no_space_is_one_line(parse, word, said):
    error = error_of(parse, word)
    assert any(part in error for part in said.split("|")) and "\n" not in error


def test_a_key_that_is_there_twice_is_refused(parse):
    with pytest.raises(ScalerError, match=r"training.rows is given twice"):
        parse("training.rows=[6, 12]", "training.rows=1:2")


@pytest.mark.parametrize("rows", [1, 4, 7, 8, 16, 100])
def test_trials_of_any_batch_see_as_many_tokens_and_evaluations(tiny_recipe, tiny_recipe_file, rows):
    base = recipe.load(str(tiny_recipe_file), ["training.steps=600", "training.evaluate_every=100", "training.rows=8"])
    training = recipe.load(str(tiny_recipe_file), sweep_space.overrides({"training.rows": rows}, base)).training
    assert training.rows == rows and training.steps == 6 * training.evaluate_every
    assert abs(training.steps * rows - 4800) <= 6 * rows / 2
    if rows == 8:
        assert training == replace(base.training, max_micro_rows=training.max_micro_rows, log_every=training.log_every)


@pytest.mark.parametrize("value", [1e-5, 0.1, 7, True, None, "linear", "1e-5", [0.9, 0.98], 123456789.123])
def test_values_come_back_from_an_override(value):
    assert typed.apply({}, [f"a.b={sweep_space.format_value(value)}"]) == {"a": {"b": value}}


def test_proposals_are_a_function_of_seed_and_records_and_lie_in_the_space(parse):
    space = parse(RATE, "training.rows=[6, 12]", "model.num_hidden_layers=1:3")
    known = [
        {
            "state": ("finished", "pruned", "failed", "running")[number % 4],
            "parameters": sweep_space.propose(space, [], 0, number),
            "losses": {"1": 3.0 + number, "2": 2.0 + number},
        }
        for number in range(1, 20)
    ]
    found = [sweep_space.propose(space, known, 0, number) for number in range(20, 24)]
    assert found == [sweep_space.propose(space, known, 0, number) for number in range(20, 24)]
    assert len({json.dumps(one) for one in [*found, *(each["parameters"] for each in known)]}) == 23
    assert found[0] != sweep_space.propose(space, known, 1, 20)
    for point in [*found, *(each["parameters"] for each in known)]:
        assert [one.key for one in space if not one.holds(point[one.key])] == []
    outside = {"state": "finished", "parameters": {**found[0], "training.rows": 99}, "losses": {"1": 0.0}}
    assert sweep_space.propose(space, [*known, outside], 0, 20) == found[0]


@pytest.mark.parametrize("seed", range(3))
def test_the_first_points_are_spread_evenly(parse, seed):
    space = parse(RATE, "training.rows=[6, 12]", "model.num_hidden_layers=1:4", "optimizer.weight_decay=0:0.8")
    points = [sweep_space.propose(space, [], seed, number) for number in range(1, 9)]
    rates, rows, layers, decays = ([point[one.key] for point in points] for one in space)
    assert sorted(int((math.log10(rate) + 5) * 2) for rate in rates) == list(range(8))  # half a power of ten each
    assert sorted(int(decay * 10) for decay in decays) == list(range(8))
    assert sorted(rows) == [6] * 4 + [12] * 4 and sorted(layers) == [1, 1, 2, 2, 3, 3, 4, 4]


def test_after_that_it_looks_near_the_best(parse):
    space, known = parse(RATE), []
    for number in range(1, 41):
        point = sweep_space.propose(space, known, 0, number)
        loss = abs(math.log10(point["optimizer.learning_rate"]) + 3)  # 1e-3 is best
        known.append({"state": "finished", "parameters": point, "losses": {"1": loss}})
    losses = [each["losses"]["1"] for each in known]
    assert sum(losses[30:]) < sum(losses[:10]) / 2 and min(losses) < min(losses[:10]) / 2


def test_the_parameter_that_decides_is_the_most_important(parse):
    space = parse(RATE, "training.rows=[6, 12]", "optimizer.weight_decay=0:1")
    records = []
    for number in range(1, 41):
        point = sweep_space.propose(space, records, 0, number)
        loss = 2 + abs(math.log10(point["optimizer.learning_rate"]) + 3) + 0.01 * point["optimizer.weight_decay"]
        records.append({"state": "finished", "parameters": point, "losses": {"1": loss}})
    found = sweep_space.importances(space, records)
    assert next(iter(found)) == "optimizer.learning_rate" and found["optimizer.learning_rate"] > 0.6
    assert {*found} == {one.key for one in space} and sum(found.values()) == pytest.approx(1)


def test_a_few_trials_and_a_single_parameter_have_no_importances(parse):
    space = parse(RATE, "training.rows=[6, 12]")
    few = sweep_space.MIN_FOR_IMPORTANCES - 1
    records = [
        {"state": "finished", "parameters": sweep_space.propose(space, [], 0, number % 10 + 1), "losses": {"1": 1.0}}
        for number in range(few)
    ]
    pruned = [{**record, "state": "pruned"} for record in records]
    assert sweep_space.importances(space, [*records, *pruned]) is None
    assert sweep_space.importances(space[:1], records * 2) is None

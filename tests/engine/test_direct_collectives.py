"""Parts sent straight to their ranks are summed and gathered as gloo does it, alone and in DeepSpeed's engine."""

import itertools

import pytest

from scaler.config import deepspeed as ds_config


@pytest.fixture(scope="module")
def figures(worker_figures, tiny_recipe_file):
    """Return the results of three ranks."""
    return worker_figures("exchange_worker", tiny_recipe_file)


def test_sums_and_gathers_are_those_of_gloo_also_in_a_group_of_some_ranks(figures):
    by_rank = figures["differences"]
    assert [len(groups) for groups in by_rank] == [2, 2, 2]
    found = [difference for groups in by_rank for group in groups for difference in group]
    assert len(found) > 30
    assert 0 < max(found) < 1e-2  # of bf16, rounded after each addition


@pytest.mark.parametrize("stage, accumulation", [*itertools.product((1, 2), (1, 2))])
def test_a_training_is_the_same_whether_gradients_are_summed_for_owners_or_for_all(figures, stage, accumulation):
    kinds = figures[f"{stage} {accumulation}"]
    first = kinds["one bucket, False"]
    for kind in kinds.values():
        assert kind["norms"] == pytest.approx(first["norms"], rel=1e-5)
        assert kind["apart"] < 1e-5
    times = 3 * (accumulation if stage == 2 else 1)
    for to_owners in (False, True):
        assert kinds[f"one bucket, {to_owners}"]["straight"] == times * first["size"]
        assert kinds[f"many, {to_owners}"]["straight"] == 0  # most of three ranks would wait


def test_bf16_gradients_that_are_added_up_in_fp32_are_divided_as_deepspeed_does(figures):
    (found, straight), (expected, none) = (figures[f"fp32 sums of bf16, {name}"] for name in ("one bucket", "many"))
    assert (straight, none) == (6, 0)
    assert found == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("stage, accumulation", [*itertools.product((1, 2), (1, 2))])
def test_the_plan_tells_how_three_ranks_sum_gradients(figures, stage, accumulation):
    kinds = figures[f"{stage} {accumulation}"]
    size = 4 * kinds["many, True"]["size"] * (accumulation if stage == 2 else 1)
    assert kinds["many, True"]["told"] == {"reduce": size}
    assert kinds["many, True"]["reduced"] == 3 * size
    assert kinds["many, False"]["told"] == {"all_reduce": size}
    for to_owners in (False, True):
        assert kinds[f"one bucket, {to_owners}"]["told"] == {"reduce_scatter": size}
    assert not any(kind["reduced"] for name, kind in kinds.items() if name != "many, True")


@pytest.mark.parametrize(
    "ranks, buckets, pays",
    [(1, 9, True), (2, 1, True), (2, 100, True), (3, 1, True), (64, 2, True), (3, 3, False), (64, 3, False)],
)
def test_gradients_go_straight_to_owners_where_a_ring_is_no_faster(ranks, buckets, pays):
    assert ds_config.straight_to_owners(ranks, 1_000_000, -(-1_000_000 // buckets)) is pays

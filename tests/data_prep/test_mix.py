"""The mix: exactly so many tokens of each source as its weight says, and never more than there are."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from conftest import make_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import refused
from small_data import write_documents, write_recipe

from data_prep.formats.token_shards import Shard
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.prepare import prepare
from data_prep.tokens import mix
from scaler.config.data_sections import Corpus, Source
from scaler.config.recipe import load
from scaler.core.files import read_manifest
from scaler.data import token_rows
from scaler.data.tokenizer import read_vocabulary

WEIGHT = st.floats(0.001, 1000) | st.integers(1, 100).map(float)


def corpus(weights=(), epochs=(), tokens=None):
    sources = [Source(f"s{number}.txt", weight=weight) for number, weight in enumerate(weights)]
    sources += [Source(f"s{number}.txt", epochs=times) for number, times in enumerate(epochs)]
    return Corpus(sources=tuple(sources), tokens=tokens)


def shares_of(weights):
    exact = [Fraction(repr(weight)) for weight in weights]
    return [weight / sum(exact) for weight in exact]


@given(total=st.integers(0, 10**15), parts=st.lists(st.integers(1, 10**9), min_size=1, max_size=12))
def test_what_is_dealt_sums_to_the_total_and_each_is_within_one_of_its_share(total, parts):
    shares = [Fraction(part, sum(parts)) for part in parts]
    dealt = mix.apportion(total, shares)
    assert sum(dealt) == total
    assert all(abs(got - total * share) < 1 for got, share in zip(dealt, shares, strict=True))


def test_the_largest_remainders_get_what_is_left_over_and_of_equals_the_first():
    assert mix.apportion(10, [Fraction(n, 100) for n in (52, 29, 19)]) == [5, 3, 2]
    assert mix.apportion(7, [Fraction(1, 3)] * 3) == [3, 2, 2]


@given(weights=st.lists(WEIGHT, min_size=1, max_size=6), tokens=st.integers(1, 10**13))
def test_the_tokens_asked_for_are_dealt_by_weight_even_if_sources_repeat(weights, tokens):
    dealt = mix.tokens_of_each(corpus(weights, tokens=tokens), {f"s{n}": 10 for n in range(len(weights))})
    assert list(dealt) == [f"s{n}" for n in range(len(weights))]
    assert sum(dealt.values()) == tokens
    shares = shares_of(weights)
    assert all(abs(got - tokens * share) < 1 for got, share in zip(dealt.values(), shares, strict=True))


@given(sources=st.lists(st.tuples(WEIGHT, st.integers(1, 10**12)), min_size=1, max_size=6))
def test_without_a_total_the_scarcest_source_is_used_up_and_none_is_repeated(sources):
    weights, counts = zip(*sources, strict=True)
    available = {f"s{n}": count for n, count in enumerate(counts)}
    dealt = mix.tokens_of_each(corpus(weights), available)
    shares = shares_of(weights)
    total = sum(dealt.values())
    assert all(dealt[name] <= available[name] for name in available)
    assert all(abs(got - total * share) < 1 for got, share in zip(dealt.values(), shares, strict=True))
    assert any(dealt[name] >= available[name] - 1 for name in available)
    # one token more in all would need more of some source than there is
    assert any((total + 1) * share > count for share, count in zip(shares, counts, strict=True))


def test_weights_are_taken_as_they_are_written():
    # as binary fractions, 0.1 and 0.3 would give 3 times 0.1 a little more than 0.3
    assert mix.tokens_of_each(corpus([0.1, 0.3]), {"s0": 10**17, "s1": 3 * 10**17}) == {"s0": 10**17, "s1": 3 * 10**17}


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [((None, None), (1001, 30)), ((2.0, None), (2002, 30)), ((0.5, 0.1), (501, 3)), ((1.5, 3), (1502, 90))],
)
def test_without_weights_each_source_is_used_its_epochs(epochs, expected):
    dealt = mix.tokens_of_each(corpus(epochs=epochs), {"s0": 1001, "s1": 30})
    assert tuple(dealt.values()) == expected


@pytest.mark.parametrize("available", [{"s0": 10, "s1": 0}, {"s0": 10}])
@pytest.mark.parametrize(
    ("settings", "said"), [({"weights": (0.7, 0.3)}, "weight 0.3"), ({"epochs": (1.0, 2.0)}, "epochs 2.0")]
)
def test_a_source_without_tokens_is_named(available, settings, said):
    with refused(rf"the source s1 has {said} in the mix, but no training tokens"):
        mix.tokens_of_each(corpus(**settings), available)


@pytest.mark.parametrize("available", [{"s0": 10, "s1": 0}, {"s0": 10}])
def test_a_source_of_which_nothing_is_left_and_nothing_was_asked_gives_nothing(available):
    assert mix.tokens_of_each(corpus(epochs=(None, None)), available) == {"s0": 10, "s1": 0}


LENGTHS = st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any)


@settings(deadline=None)
@given(lengths=LENGTHS, data=st.data(), seed=st.integers(0, 5))
def test_chosen_documents_hold_exactly_the_tokens_asked_for(lengths, data, seed):
    lengths = np.asarray(lengths, dtype=np.int64)
    tokens = data.draw(st.integers(0, 3 * int(lengths.sum())))
    chosen, kept = mix.choose(lengths, tokens, seed)
    times, rest = divmod(tokens, int(lengths.sum()))
    assert kept.sum() == tokens
    assert ((kept >= 0) & (kept <= lengths[chosen])).all()
    assert (kept < lengths[chosen]).sum() <= 1  # the last alone is cut
    often = np.bincount(chosen, minlength=len(lengths))
    assert often.min() >= times
    assert often.max() <= times + bool(rest)
    assert all(np.array_equal(a, b) for a, b in zip((chosen, kept), mix.choose(lengths, tokens, seed), strict=True))


def test_what_is_chosen_of_a_part_is_spread_over_all_documents_and_hangs_on_the_seed():
    lengths = np.full(10_000, 7)
    first, other = (mix.choose(lengths, 7 * 1000, seed)[0] for seed in (0, 1))
    assert len(set(first.tolist())) == 1000
    assert np.bincount(first // 1000, minlength=10).min() > 60  # of 100 in each tenth
    assert len(set(first.tolist()) & set(other.tolist())) < 200


def test_more_tokens_add_documents_and_take_none_away():
    lengths = np.random.default_rng(0).integers(1, 50, 500)
    few, many = (mix.choose(lengths, tokens, 0)[0].tolist() for tokens in (1000, 3000))
    assert many[: len(few)] == few


MIXES = {
    "by weight": ("weight: 0.7", "weight: 0.3", []),
    "so many tokens by weight": ("weight: 0.7", "weight: 0.3", ["corpus.tokens=200001"]),  # more than the second has
    "by epochs": ("epochs: 0.25", "epochs: 2.5", []),
    "all once": ("max_mib: 9", "max_mib: 9", []),
}


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mix")
    write_documents(folder / "many.txt", make_documents(14_000, 1))  # two files
    write_documents(folder / "few.txt", [text.upper() for text in make_documents(1000, 2)])
    return folder


def prepared(folder, how):
    """Prepare the two sources mixed in one of these ways; give the data folder and the recipe."""
    many, few, tokens = MIXES[how]
    file = write_recipe(folder, f"{folder / 'many.txt'}, {many}", f"{folder / 'few.txt'}, {few}")
    recipe = load(str(file), tokens)
    prepare(recipe, WorkerPool())
    return folder / "data", recipe


@pytest.mark.parametrize("how", MIXES)
def test_the_rows_hold_exactly_the_tokens_of_each_source_that_the_mix_says(two_sources, how):
    data, recipe = prepared(two_sources, how)
    manifest = read_manifest(recipe.rows_folder, "rows")
    special = list(read_vocabulary(data / "tokenizer").special_ids)
    in_shards = Counter()
    shards = read_manifest(data / "shards", "shards")["splits"]["train"]
    assert [entry["source"] for entry in shards] == ["many", "many", "few"]
    for entry in shards:
        in_shards[entry["source"]] += len(Shard(data / "shards" / entry["name"]).ids)
    assert in_shards == {said["source"]: said["available_tokens"] for said in manifest["mix"]}
    expected = mix.tokens_of_each(recipe.corpus, in_shards)
    assert expected == {said["source"]: said["tokens"] for said in manifest["mix"]}
    rows = token_rows.TokenRows(token_rows.read(recipe.rows_folder), "train")
    found, dropped = Counter(), Counter()
    for entry, file in zip(manifest["splits"]["train"], rows.files, strict=True):
        found[entry["source"]] += int((~np.isin(file, special)).sum())
        dropped[entry["source"]] += entry["dropped_rows"]
    least = round(recipe.data.seq_len * recipe.objective.mask_probability)
    for name, tokens in expected.items():
        assert dropped[name] <= 2
        assert tokens - dropped[name] * (least - 1) <= found[name] <= tokens - dropped[name]
    for said in manifest["mix"]:
        assert said["share"] == pytest.approx(expected[said["source"]] / sum(expected.values()))
        assert said["epochs"] == pytest.approx(expected[said["source"]] / in_shards[said["source"]])
    if "weight" in how:
        assert manifest["mix"][0]["share"] == pytest.approx(0.7, abs=1e-4)


def test_the_heldout_split_is_not_mixed(two_sources):
    data, recipe = prepared(two_sources, "by epochs")
    special = list(read_vocabulary(data / "tokenizer").special_ids)
    heldout = read_manifest(data / "shards", "shards")["splits"]["heldout"]
    files = token_rows.TokenRows(token_rows.read(recipe.rows_folder), "heldout").files
    assert {entry["source"] for entry in heldout} == {"many", "few"}
    for entry, rows in zip(heldout, files, strict=True):
        ids = Shard(data / "shards" / entry["name"]).ids
        assert 0 <= len(ids) - (~np.isin(rows, special)).sum() < 8  # but for one row that is too empty to mask


def test_another_mix_packs_anew_and_leaves_the_shards(two_sources):
    data, _ = prepared(two_sources, "by epochs")
    before = {path: path.stat().st_mtime_ns for path in data.glob("*/manifest.json")}
    prepared(two_sources, "by weight")
    after = {path: path.stat().st_mtime_ns for path in data.glob("*/manifest.json")}
    assert [path.parent.name for path in before if after[path] != before[path]] == ["rows-32"]


@pytest.mark.parametrize(("few", "tokens"), [("weight: 1", 7), ("epochs: 1.0e-9", 0)])
def test_a_mix_of_too_few_tokens_for_a_row_is_refused(tmp_path, few, tokens):
    file = write_recipe(tmp_path, f"{write_documents(tmp_path / 'text.txt', make_documents(300))}, {few}")
    with refused(rf"the train split gives {tokens} tokens, not enough for one row"):
        prepare(load(str(file), ["corpus.tokens=7"] if tokens else []), WorkerPool())


def test_a_source_whose_documents_are_all_dropped_is_named_before_rows_are_packed(tmp_path):
    texts = {"many": make_documents(500), "few": ["short", "shorter"]}
    sources = [f"{write_documents(tmp_path / f'{name}.txt', some)}, weight: 1" for name, some in texts.items()]
    file = write_recipe(tmp_path, *sources, cleaning="{min_characters: 20}")
    with refused(r"the source few has weight 1\.0 in the mix, but no training tokens"):
        prepare(load(str(file)), WorkerPool())
    assert not list((tmp_path / "data").glob("rows*"))

"""Held-out figures: what each is, and the same at every world size."""

import json
import math
import shutil

import numpy as np
import pytest
import torch
from conftest import opened, recipe_beside

from scaler.config.recipe import load
from scaler.core.files import read_manifest, write_json
from scaler.distributed import collectives
from scaler.distributed.world import World
from scaler.evaluation import heldout
from scaler.training.metrics import RunLog


def naive(engine, reader, rows):
    """Mean loss and accuracy over some rows, one by one."""
    losses, right = [], []
    with torch.no_grad():
        for row in rows:
            batch = reader.fixed(np.array([row]))
            loss, scores = engine(batch)
            losses.append(float(loss))
            right.append(float((scores.guesses[:, 0] == batch.labels.flatten()).float().mean()))
    return np.mean(losses), np.mean(right)


# ---- the figures


def test_the_loss_is_the_mean_of_what_the_engine_says(two_sources):
    engine, reader = opened(two_sources)
    loss, accuracy = naive(engine, reader, range(len(reader.rows)))
    found = heldout.evaluate(engine, reader, 7, World())
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.masked_accuracy == pytest.approx(accuracy, abs=1e-9)
    assert found.tokens == len(reader.rows) * reader.masked
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("micro_rows", [1, 5, 64])
def test_each_source_has_the_loss_of_its_own_rows_though_batches_span_sources(two_sources, micro_rows):
    engine, reader = opened(two_sources)
    found = heldout.evaluate(engine, reader, micro_rows, World())
    entries = read_manifest(two_sources.rows_folder, "rows")["splits"]["heldout"]
    assert list(found.sources) == [entry["source"] for entry in entries] == ["one", "two"]
    first = 0
    for entry in entries:
        loss, accuracy = naive(engine, reader, range(first, first + entry["rows"]))
        score = found.sources[entry["source"]]
        assert score.loss == pytest.approx(loss, abs=1e-6)
        assert score.masked_accuracy == pytest.approx(accuracy, abs=1e-9)
        assert score.tokens == entry["rows"] * reader.masked
        first += entry["rows"]
    assert sum(score.tokens for score in found.sources.values()) == found.tokens
    assert found.sources["one"].loss != found.sources["two"].loss


@pytest.mark.parametrize("ranks", [2, 3, 50])
def test_the_figures_are_the_same_at_every_world_size(two_sources, monkeypatch, ranks):
    engine, reader = opened(two_sources)
    alone = heldout.evaluate(engine, reader, 8, World())
    sums, passes = [], []

    def counted(batch):
        passes[-1] += 1
        return engine(batch)

    for rank in range(ranks):  # what each rank brings to the sum, one after the other
        passes.append(0)
        monkeypatch.setattr(collectives, "total", lambda value: sums.append(value) or value + 1)
        heldout.evaluate(counted, reader, 8, World(rank=rank, size=ranks))
    assert len(set(passes)) == 1
    monkeypatch.setattr(collectives, "total", lambda value: sum(sums))
    together = heldout.evaluate(engine, reader, 8, World(rank=0, size=ranks))
    assert together.tokens == alone.tokens
    for name in alone.records("heldout"):
        assert together.records("heldout")[name] == pytest.approx(alone.records("heldout")[name], rel=1e-12)


def test_the_scores_of_a_row_are_summed(two_sources):
    engine, reader = opened(two_sources)
    batch = reader.fixed(np.arange(5))
    with torch.no_grad():
        _, scores = engine(batch)
    found = heldout.score_rows(scores, batch.labels)
    assert found.dtype == torch.float64 and found.shape == (5, 3)
    for row in range(5):
        loss, accuracy = naive(engine, reader, [row])
        masked = reader.masked
        assert found[row].tolist() == pytest.approx([loss * masked, accuracy * masked, masked], rel=1e-5)


def test_loss_per_character_is_the_loss_times_the_tokens_a_character_of_the_text(two_sources):
    engine, reader = opened(two_sources)
    found = heldout.evaluate(engine, reader, 8, World())
    shards = read_manifest(two_sources.rows_folder.parent / "shards", "shards")["splits"]["heldout"]
    tokens, characters = (sum(entry[what] for entry in shards) for what in ("tokens", "characters"))
    assert 0 < tokens < characters
    assert found.loss_per_character == pytest.approx(found.loss * tokens / characters)


def test_records_name_the_figures_as_tensorboard_shows_them(two_sources, tmp_path):
    engine, reader = opened(two_sources)
    found = heldout.evaluate(engine, reader, 8, World())
    records = found.records("heldout")
    assert records == {
        "heldout_loss": found.loss,
        "heldout_perplexity": found.perplexity,
        "heldout_masked_accuracy": found.masked_accuracy,
        "heldout_loss_per_character": found.loss_per_character,
        "heldout_loss_one": found.sources["one"].loss,
        "heldout_loss_two": found.sources["two"].loss,
    }
    log = RunLog(tmp_path, None)
    log.write(3, **records)
    log.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {"step": 3, **records}


def test_one_source_alone_is_not_listed(tiny_recipe):
    found = heldout.evaluate(*opened(tiny_recipe), 8, World())
    assert found.sources == {}
    assert not [name for name in found.records("heldout") if name.startswith("heldout_loss_t")]


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (1e4, math.inf), (math.nan, math.nan)])
def test_a_perplexity_beyond_all_numbers_ends_no_run(loss, perplexity):
    found = heldout.HeldOut(loss, 0.0, 1)
    assert found.perplexity == pytest.approx(perplexity, nan_ok=True)
    assert "heldout_loss_per_character" not in found.records("heldout")


def test_rows_that_were_prepared_before_give_the_loss_but_none_per_character(two_sources, tmp_path):
    shutil.copytree(two_sources.data.folder, tmp_path / "data")
    recipe = load(recipe_beside(two_sources, tmp_path))
    path = recipe.rows_folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["splits"]["test"]
    for entries in content["splits"].values():
        for entry in entries:
            del entry["text_tokens"], entry["characters"]
    write_json(path, content)
    found = heldout.evaluate(*opened(recipe), 8, World())
    assert found.loss == heldout.evaluate(*opened(two_sources), 8, World()).loss
    assert found.loss_per_character is None
    assert "heldout_loss_per_character" not in found.records("heldout")
    assert list(found.sources) == ["one", "two"]

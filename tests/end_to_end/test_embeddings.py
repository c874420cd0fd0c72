"""Token embeddings that begin as word vectors: frozen they cost nothing and stay to the last bit, updated they move."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_sentences, network_of
from refusals import refusal, refused
from transformers import AutoModelForMaskedLM

from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.prepare import prepare
from scaler import embedding_report, train
from scaler.config.recipe import load
from scaler.data import prepared, tokenizer, word_vectors
from scaler.data.tokenizer import Vocabulary
from scaler.evaluation import word_vectors as word_vector_report
from scaler.model import build, embeddings, initialisation, masked_lm, parameters
from scaler.model.kernels import cross_entropy
from scaler.training import job, run

ENTRIES, WIDTH = 700, 32
RECIPE = f"""
corpus: {{sources: [{{source: TEXT, text_unit: line}}], heldout_percent: 8, test_percent: 4}}
dedup: {{exact: false, near: false}}
tokenizer: {{kind: words, lowercase: true, vocab_size: {ENTRIES}, pieces: 350}}
data: {{folder: FOLDER, seq_len: 32}}
word2vec: {{vector_size: {WIDTH}, epochs: 2, min_count: 2}}
model: {{model_type: distilbert, n_layers: 2, dim: {WIDTH}, hidden_dim: 64, n_heads: 4, max_position_embeddings: 32,
        dropout: 0.0, attention_dropout: 0.0}}
objective: {{mask_probability: 0.25}}
initialisation: {{word2vec: true}}
optimizer: {{learning_rate: 1.0e-3}}
schedule: {{warmup_share: 0.1}}
training: {{steps: 12, rows: 12, max_micro_rows: 6}}
"""
NAME = "distilbert.embeddings.word_embeddings.weight"


@pytest.fixture(scope="module")
def recipe_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "text.txt").write_text("\n".join(make_sentences()), encoding="utf-8")
    text = RECIPE.replace("TEXT", str(folder / "text.txt")).replace("FOLDER", str(folder / "data"))
    (folder / "vectors.yaml").write_text(text, encoding="utf-8")
    prepare(load(str(folder / "vectors.yaml")), WorkerPool(), threads=1)
    return folder / "vectors.yaml"


@pytest.fixture(scope="module")
def vectors(recipe_file):
    recipe = load(str(recipe_file))
    xxh3 = prepared.open_prepared(recipe).manifest.tokenizer_xxh3
    return word_vectors.read(recipe.word2vec_folder, xxh3, WIDTH).vectors


@pytest.fixture(scope="module")
def outcomes(recipe_file, worker_figures):
    return worker_figures("embeddings_worker", recipe_file)


def started(recipe_file, *overrides):
    """The model that training begins with."""
    arguments = train.parse(["--recipe", str(recipe_file), *overrides])
    this = job.resolve(arguments, run.World())
    return job.starting_point(this, this.data.manifest.unigram_counts())


def exported(outcome):
    return AutoModelForMaskedLM.from_pretrained(Path(outcome["run"]) / "export")


def token_embeddings(model):
    return model.get_input_embeddings().weight.detach()


# ---- the starting point


def test_word_vectors_get_the_length_of_the_models_own_embeddings(recipe_file, vectors):
    network = network_of(load(str(recipe_file)))
    lengths = np.linalg.norm(vectors, axis=1)
    assert lengths.max() > 3 * lengths.min()  # as word2vec makes them
    own = token_embeddings(network).clone()
    initialisation.start_from_vectors(network, vectors)
    weight = token_embeddings(network)
    wide = float(weight.square().mean().sqrt())
    assert wide == pytest.approx(network.config.initializer_range, rel=2e-3)  # but for the padding's row
    assert torch.allclose(weight[1:].norm(dim=1), own[1:].norm(dim=1).square().mean().sqrt(), rtol=0.05)
    directions = torch.from_numpy(vectors[1:] / lengths[1:, None])
    assert torch.allclose(weight[1:] / weight[1:].norm(dim=1, keepdim=True), directions, atol=1e-6)
    assert not weight[0].any()  # [PAD]
    assert float(own.square().mean().sqrt()) == pytest.approx(wide, rel=0.05)
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


def test_training_begins_with_the_vectors_row_by_row(recipe_file, vectors):
    weight = token_embeddings(started(recipe_file))
    cosine = torch.nn.functional.cosine_similarity(weight[1:], torch.from_numpy(vectors[1:]))
    assert cosine.min() > 0.9999
    assert not torch.allclose(weight, token_embeddings(started(recipe_file, "initialisation.word2vec=false")))


def test_a_model_of_another_width_is_refused_and_vectors_are_needed(recipe_file, tmp_path):
    with refused(r"vectors of 32 numbers, but 64 are needed"):
        started(recipe_file, "model.dim=64")
    with refused(r"made with word2vec.window=5, not 3; run `scaler prepare` again"):
        started(recipe_file, "word2vec.window=3")
    with refused(r"initialisation.word2vec=True, but it needs a section word2vec"):
        load("quickstart", ["initialisation.word2vec=true"])


# ---- the shape of the published models


def test_the_published_sizes_are_met_and_freezing_leaves_43_million():
    def built(name):
        recipe = load(name)
        entries = recipe.tokenizer.vocab_size
        vocabulary = Vocabulary(entries, 2, 3, 0, 4, (0, 1, 2, 3, 4))
        with torch.device("meta"):
            return recipe, build.build(build.configuration(recipe.model, vocabulary, entries, recipe.data.seq_len), 0)

    recipe, network = built("distilbert_256k_frozen")
    assert parameters.count_parameters(network) == (240_378_112, 240_378_112)
    assert recipe.optimizer.frozen_embeddings and not load("distilbert_256k_updated").optimizer.frozen_embeddings
    embeddings.freeze(network)
    assert parameters.count_parameters(network) == (240_378_112, 43_770_112)
    rows = parameters.what_trains(network, 0.01)
    assert rows[0] == ("token embeddings", 256_000 * 768, "frozen")
    assert sum(count for _, count, _ in rows) == 240_378_112
    assert parameters.count_parameters(built("distilbert_mix")[1])[0] == 66_985_530


def test_a_frozen_matrix_has_no_gradient_and_needs_fewer_operations(recipe_file):
    data = prepared.open_prepared(load(str(recipe_file)))
    network = network_of(load(str(recipe_file)))
    updated = parameters.flops_per_row(network, 32, 8)
    embeddings.freeze(network)
    assert updated - parameters.flops_per_row(network, 32, 8) == 8 * 2 * ENTRIES * WIDTH
    rows = data.rows("train", load(str(recipe_file)), 0).at(0, 4)
    for at_once in (cross_entropy.SCORES_AT_ONCE, ENTRIES * 3):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(cross_entropy, "SCORES_AT_ONCE", at_once)
            network.zero_grad()
            masked_lm.MaskedLM(network.train())(rows)[0].backward()
        without = [name for name, parameter in network.named_parameters() if parameter.grad is None]
        assert without == [NAME]


# ---- through the engine


def card(outcome):
    """The README of the export, which has the checksums."""
    return (Path(outcome["run"]) / "export" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float32) for name in ("frozen", "frozen_zero3", "frozen_stopped")),
        # rounded once, it also goes on in fp32 as it is
        *((name, torch.bfloat16) for name in ("frozen_bf16", "frozen_bf16_fp32")),
    ],
)
def test_a_frozen_matrix_is_the_same_to_the_last_bit(outcomes, recipe_file, name, dtype):
    outcome = outcomes[name]
    assert all(statuses == [0, 0] for statuses in outcome["statuses"]), outcome["said"]
    before = token_embeddings(started(recipe_file))
    assert torch.equal(before.to(dtype).float(), token_embeddings(exported(outcome)))
    assert f"{NAME} (700 x 32): frozen, checksum {embeddings.digest(before, dtype)}" in card(outcome)


def test_an_updated_matrix_has_another_checksum(outcomes, recipe_file):
    outcome = outcomes["updated"]
    assert outcome["statuses"] == [[0, 0]], outcome["said"]
    both = started(recipe_file), exported(outcome)
    first, last = (embeddings.digest(token_embeddings(some), torch.float32) for some in both)
    assert f"{NAME} (700 x 32): {first} became {last}" in card(outcome) and first != last


@pytest.mark.parametrize("name", ["frozen", "frozen_zero3"])
def test_all_else_trains_and_alone_has_optimizer_state(outcomes, recipe_file, name):
    stored = outcomes[name]["stored"]
    assert stored.pop(NAME) == {"frozen": ENTRIES * WIDTH}
    for parameter, kinds in stored.items():
        assert set(kinds) == {"weight", "exp_avg", "exp_avg_sq"}, parameter
    before, after = (dict(some.named_parameters()) for some in (started(recipe_file), exported(outcomes[name])))
    assert [key for key in before if torch.equal(before[key], after[key])] == [NAME]
    assert set(outcomes["updated"]["stored"][NAME]) == {"weight", "exp_avg", "exp_avg_sq"}


def test_a_frozen_matrix_is_in_no_collective(outcomes):
    saved = outcomes["updated"]["traffic"] - outcomes["frozen"]["traffic"]
    matrix = 4 * ENTRIES * WIDTH
    # half of its gradient, and half of the new weights, go to the other rank
    assert 0.8 * matrix < saved < 1.3 * matrix


def test_a_run_says_what_trains(outcomes):
    assert "token embeddings            22,400  frozen" in outcomes["frozen"]["said"]
    assert "embeddings                  23,424  trained, weight decay 0.01" in outcomes["updated"]["said"]


def test_a_frozen_matrix_that_changed_is_not_exported(outcomes):
    outcome = outcomes["meddled"]
    assert outcome["statuses"] == [[2, 2]]
    assert f"{NAME} (700 x 32) was to stay frozen, but its checksum was" in outcome["said"]
    assert not (Path(outcome["run"]) / "export").exists()
    assert json.loads((Path(outcome["run"]) / "state.json").read_text())["state"] != "finished"


def test_a_run_stays_frozen_or_updated(outcomes, call):
    run = outcomes["thawed"]["run"]
    assert outcomes["thawed"]["statuses"] == [[0, 0]]
    settings = ("--run_dir", run, "--allow_changes", "--dry_run", "optimizer.frozen_embeddings=false")
    error = refusal(call(train.main, *settings))
    assert "the run has optimizer.frozen_embeddings=True, and not False; name another" in error


# ---- the report


def test_the_report_has_coverage_norms_neighbours_and_the_runs_losses(outcomes, recipe_file, vectors, call, tmp_path):
    for name in ("updated", "frozen"):
        (tmp_path / name).symlink_to(outcomes[name]["run"])
    out = tmp_path / "report"
    options = ("--recipe", recipe_file, "--out", out, "--until", 6, tmp_path / "updated", tmp_path / "frozen")
    status, said, error = call(embedding_report.main, *options)
    assert status == 0, error
    report = json.loads((out / "report.json").read_text())
    assert (report["entries"], report["width"]) == (ENTRIES, WIDTH)
    assert 0.3 < report["coverage"]["entries"] < 1 and report["coverage"]["tokens"] > 0.98
    assert report["norm_in_model"] == pytest.approx(report["initializer_range"] * WIDTH**0.5)
    lengths = np.linalg.norm(vectors, axis=1)
    assert report["norms"]["p50"] == pytest.approx(float(np.median(lengths)), rel=1e-5)
    word, near = next(iter(report["neighbours"].items()))
    assert word not in dict(near) and [cosine for _, cosine in near] == sorted(dict(near).values(), reverse=True)
    assert word in said and f"{near[0][0]} {near[0][1]:.2f}" in said
    assert [*report["runs"]] == ["updated", "frozen"] and [*report["runs"]["frozen"]] == ["0", "6"]
    assert "frozen: held-out loss" in said and "at step 6" in said
    assert (out / "runs.png").read_bytes().startswith(b"\x89PNG")
    (labels,) = out.glob("projector/**/metadata.tsv")
    (tensors,) = out.glob("projector/**/tensors.tsv")
    names, rows = labels.read_text().splitlines(), tensors.read_text().splitlines()
    assert len(names) == len(rows) and word in names
    shown = np.array(rows[names.index(word)].split("\t"), dtype=float)
    entry = tokenizer.load_tokenizer(load(str(recipe_file)).tokenizer_folder).convert_tokens_to_ids(word)
    assert np.allclose(shown, vectors[entry], atol=1e-4)


def test_neighbours_are_those_of_the_smallest_angle():
    matrix = np.array([[1, 0], [2, 0.1], [0, 3], [-1, 0], [0.1, 1]], dtype=np.float32)
    assert [entry for entry, _ in word_vector_report.neighbours(matrix, 0, np.arange(5))] == [1, 4, 2, 3]
    assert [entry for entry, _ in word_vector_report.neighbours(matrix, 2, np.array([0, 3, 4]))] == [4, 0, 3]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--words", "nosuchword"], "--words nosuchword: no entry of"),
        (["nowhere"], "nowhere: no held-out losses in its metrics.jsonl; name the folder of a run"),
    ],
)
def test_a_report_on_what_is_not_there_is_refused(recipe_file, call, tmp_path, options, complaint):
    files = ("--recipe", recipe_file, "--out", tmp_path / "report")
    assert complaint in refusal(call(embedding_report.main, *files, *options))


def test_a_report_on_a_recipe_without_vectors_is_refused(tiny_recipe_file, call, tmp_path):
    files = ("--recipe", tiny_recipe_file, "--out", tmp_path / "report")
    assert "with a `word2vec` section in the recipe" in refusal(call(embedding_report.main, *files))


def test_a_vector_of_zeros_stays_one():
    found = initialisation.at_length(np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32), 10.0)
    assert found.tolist() == [[6.0, 8.0], [0.0, 0.0]]

"""Evaluation: what each figure is, the same at every world size; the command, and what it refuses."""

import ast
import json
import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY_RECIPE, make_documents
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from data_prep import folders
from data_prep.__main__ import prepare
from data_prep.adopt import adopt
from data_prep.team import Team
from scaler import evaluate, model, prepared, token_rows
from scaler import world as world_facts
from scaler.manifests import read_manifest, write_json
from scaler.metrics import RunLog
from scaler.recipe import load
from scaler.world import World


@pytest.fixture(scope="module")
def two_sources(tmp_path_factory):
    """A recipe over two sources, its data prepared."""
    folder = tmp_path_factory.mktemp("two")
    for name, seed in (("one", 0), ("two", 1)):
        (folder / f"{name}.txt").write_text("\n\n".join(make_documents(900, seed)), encoding="utf-8")
    listed = f"{{source: {folder / 'one.txt'}}}, {{source: {folder / 'two.txt'}}}"
    text = TINY_RECIPE.replace("{source: SOURCE}", listed).replace("FOLDER", str(folder / "data"))
    (folder / "two.yaml").write_text(text, encoding="utf-8")
    recipe = load(str(folder / "two.yaml"))
    prepare(recipe, Team())
    return recipe


def network_of(recipe, seed=0):
    data = prepared.open_prepared(recipe)
    config = model.configuration(recipe.model, data.vocabulary, recipe.tokenizer.vocab_size, recipe.data.seq_len)
    return model.build(config, seed).eval()


def opened(recipe, split="heldout"):
    """An untrained model and the reader of a split."""
    network = network_of(recipe)
    reader = prepared.open_prepared(recipe).rows(split, recipe, model.first_position(network.config))
    return model.MaskedLM(network), reader


def naive(engine, reader, rows):
    """Mean loss and accuracy over some rows, one by one."""
    losses, right = [], []
    with torch.no_grad():
        for row in rows:
            batch = evaluate.read_fixed(reader, np.array([row]))
            loss, logits = engine(batch)
            losses.append(float(loss))
            right.append(float((logits.argmax(-1) == batch.labels).float().mean()))
    return np.mean(losses), np.mean(right)


# ---- the figures


def test_the_loss_is_the_mean_of_what_the_engine_says(two_sources):
    engine, reader = opened(two_sources)
    loss, accuracy = naive(engine, reader, range(len(reader.rows)))
    found = evaluate.heldout(engine, reader, 7, World())
    assert found.loss == pytest.approx(loss, abs=1e-6)
    assert found.masked_accuracy == pytest.approx(accuracy, abs=1e-9)
    assert found.tokens == len(reader.rows) * reader.masked
    assert found.perplexity == pytest.approx(math.exp(loss), rel=1e-5)


@pytest.mark.parametrize("micro_rows", [1, 5, 64])
def test_each_source_has_the_loss_of_its_own_rows_though_batches_span_sources(two_sources, micro_rows):
    engine, reader = opened(two_sources)
    found = evaluate.heldout(engine, reader, micro_rows, World())
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
    alone = evaluate.heldout(engine, reader, 8, World())
    sums, passes = [], []

    def counted(batch):
        passes[-1] += 1
        return engine(batch)

    for rank in range(ranks):  # what each rank brings to the sum, one after the other
        passes.append(0)
        monkeypatch.setattr(world_facts, "total", lambda value: sums.append(value) or value + 1)
        evaluate.heldout(counted, reader, 8, World(rank=rank, size=ranks))
    assert len(set(passes)) == 1
    monkeypatch.setattr(world_facts, "total", lambda value: sum(sums))
    together = evaluate.heldout(engine, reader, 8, World(rank=0, size=ranks))
    assert together.tokens == alone.tokens
    for name in alone.records("heldout"):
        assert together.records("heldout")[name] == pytest.approx(alone.records("heldout")[name], rel=1e-12)


def test_rows_are_scored_in_pieces_as_if_at_once_and_in_fp32(monkeypatch):
    logits = torch.randn(5, 7, 90, generator=torch.manual_seed(0)) * 3
    labels = torch.randint(0, 90, (5, 7))
    whole = evaluate.score_rows(logits, labels)
    expected = nn.functional.cross_entropy(logits.double().flatten(0, 1), labels.flatten(), reduction="none")
    assert whole.dtype == torch.float64
    assert torch.allclose(whole[:, 0], expected.view(5, 7).sum(1), rtol=1e-6)
    assert whole[:, 1].tolist() == (logits.argmax(-1) == labels).sum(1).tolist()
    assert whole[:, 2].tolist() == [7.0] * 5
    for at_once in (1, 90, 1000):
        monkeypatch.setattr(evaluate, "LOGITS_AT_ONCE", at_once)
        assert torch.equal(evaluate.score_rows(logits, labels), whole)
    half = evaluate.score_rows(logits.bfloat16(), labels)
    assert torch.equal(half[:, 0], evaluate.score_rows(logits.bfloat16().float(), labels)[:, 0])


def test_loss_per_character_is_the_loss_times_the_tokens_a_character_of_the_text(two_sources):
    engine, reader = opened(two_sources)
    found = evaluate.heldout(engine, reader, 8, World())
    shards = read_manifest(two_sources.rows_folder.parent / "shards", "shards")["splits"]["heldout"]
    tokens, characters = (sum(entry[what] for entry in shards) for what in ("tokens", "characters"))
    assert 0 < tokens < characters
    assert found.loss_per_character == pytest.approx(found.loss * tokens / characters)


def test_records_name_the_figures_as_tensorboard_shows_them(two_sources, tmp_path):
    engine, reader = opened(two_sources)
    found = evaluate.heldout(engine, reader, 8, World())
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
    found = evaluate.heldout(*opened(tiny_recipe), 8, World())
    assert found.sources == {}
    assert not [name for name in found.records("heldout") if name.startswith("heldout_loss_t")]


@pytest.mark.parametrize(("loss", "perplexity"), [(0.0, 1.0), (1e4, math.inf), (math.nan, math.nan)])
def test_a_perplexity_beyond_all_numbers_ends_no_run(loss, perplexity):
    found = evaluate.HeldOut(loss, 0.0, 1)
    assert found.perplexity == pytest.approx(perplexity, nan_ok=True)
    assert "heldout_loss_per_character" not in found.records("heldout")


def test_rows_that_were_prepared_before_give_the_loss_but_none_per_character(two_sources, tmp_path):
    shutil.copytree(two_sources.data.folder, tmp_path / "data")
    recipe = load(write_recipe(two_sources, tmp_path))
    path = recipe.rows_folder / "manifest.json"
    content = json.loads(path.read_text())
    del content["splits"]["test"]
    for entries in content["splits"].values():
        for entry in entries:
            del entry["text_tokens"], entry["characters"]
    write_json(path, content)
    found = evaluate.heldout(*opened(recipe), 8, World())
    assert found.loss == evaluate.heldout(*opened(two_sources), 8, World()).loss
    assert found.loss_per_character is None
    assert "heldout_loss_per_character" not in found.records("heldout")
    assert list(found.sources) == ["one", "two"]


# ---- the command


def write_recipe(recipe, folder, name="recipe.yaml"):
    """The recipe, over the data in `folder`/data."""
    text = recipe.to_yaml().replace(f"folder: {recipe.data.folder}", f"folder: {folder / 'data'}")
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


@pytest.fixture
def run(two_sources, tmp_path):
    """A run's folder with an export, as training leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(two_sources.to_yaml(), encoding="utf-8")
    network_of(two_sources).save_pretrained(folder / "export")
    prepared.load_tokenizer(two_sources.tokenizer_folder).save_pretrained(folder / "export")
    return folder


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command: exit status, output, error output."""

    def command(*arguments):
        capsys.readouterr()  # what was said before
        monkeypatch.setattr(sys, "argv", ["evaluate", *map(str, arguments)])
        try:
            evaluate.main()
            status = 0
        except SystemExit as ending:
            status = int(ending.code or 0)
        said = capsys.readouterr()
        return status, said.out, said.err

    return command


def refusal(result):
    status, output, errors = result
    assert (status, output) == (2, "")
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in errors
    return lines[0]


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_the_command_says_and_writes_what_evaluation_finds(two_sources, run, command, split):
    status, output, _ = command(run, *([] if split == "test" else ["--split", split]))
    assert status == 0
    found = evaluate.heldout(*opened(two_sources, split), 4, World())
    written = json.loads((run / f"evaluation_{split}.json").read_text())
    for name in ("loss", "perplexity", "masked_accuracy", "loss_per_character"):
        assert written[name] == pytest.approx(getattr(found, name), rel=1e-6)
    assert (written["masked_tokens"], written["split"]) == (found.tokens, split)
    assert list(written["sources"]) == ["one", "two"]
    assert written["sources"]["two"]["loss"] == pytest.approx(found.sources["two"].loss, rel=1e-6)
    assert written["unigram_entropy"] == pytest.approx(written["loss"], abs=3.0)
    for line in (
        rf"masked tokens {found.tokens:,}",
        f"unigram entropy {written['unigram_entropy']:.4f} nats",
        f"loss {found.loss:.4f} nats",
        f"perplexity {found.perplexity:.4g}",
        f"loss per character {found.loss_per_character:.4f} nats",
        f"masked accuracy {found.masked_accuracy:.2%}",
        f"two {found.sources['two'].tokens:,} {found.sources['two'].loss:.4f}",
        str(run / f"evaluation_{split}.json"),
    ):
        assert line in " ".join(output.split())


def test_as_json_it_says_what_it_writes(run, command):
    status, output, _ = command(run, "--json")
    assert status == 0
    assert json.loads(output) == json.loads((run / "evaluation_test.json").read_text())
    assert not list(run.glob("*.partial"))


def test_an_export_by_itself_is_evaluated_as_its_run(run, command):
    first, second = (command(path, "--json")[1] for path in (run, run / "export"))
    assert first == second
    assert not list((run / "export").glob("evaluation*"))


def test_any_other_folder_needs_a_recipe_and_keeps_its_result(run, two_sources, tmp_path, command):
    other = tmp_path / "other"
    shutil.copytree(run / "export", other)
    assert "name a --recipe" in refusal(command(other))
    status, _, _ = command(other, "--recipe", run / "recipe.yaml")
    assert status == 0
    assert json.loads((other / "evaluation_test.json").read_text())["loss"] > 0


def test_a_run_that_is_not_finished_is_refused(run, command):
    shutil.rmtree(run / "export")
    assert "this run has no export yet, for it is not finished" in refusal(command(run))
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "nowhere/export"])
def test_a_folder_without_a_model_is_refused(tmp_path, command, name):
    (tmp_path / "empty").mkdir()
    assert "no run and no exported model here" in refusal(command(tmp_path / name))


def test_rows_without_a_test_split_are_refused_with_the_setting_and_the_held_out_ones_are_not(run, tmp_path, command):
    recipe = load(str(run / "recipe.yaml"), ["corpus.test_percent=0", f"data.folder={tmp_path / 'data'}"])
    prepare(recipe, Team())
    (run / "recipe.yaml").write_text(recipe.to_yaml())
    shutil.copy(recipe.tokenizer_folder / "tokenizer.json", run / "export" / "tokenizer.json")
    said = refusal(command(run))
    assert "rows-32: has no test split" in said and "corpus.test_percent above 0" in said
    assert command(run, "--split", "heldout")[0] == 0
    assert (run / "evaluation_heldout.json").is_file() and not (run / "evaluation_test.json").exists()


def test_a_model_with_another_tokenizer_is_refused(run, command):
    path = run / "export" / "tokenizer.json"
    content = json.loads(path.read_text())
    vocab = content["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[300:302]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(content))
    assert "was made with" in refusal(command(run)) and "name a --recipe" in refusal(command(run))
    path.write_text("{")
    assert "tokenizer.json: not a tokenizer" in refusal(command(run))
    path.unlink()
    assert "tokenizer.json: missing" in refusal(command(run))
    assert not list(run.glob("evaluation*"))


def test_the_rows_tokenizer_in_another_layout_is_the_same_tokenizer(run, command):
    path = run / "export" / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=None))
    assert command(run)[0] == 0


def bin_weights(export):
    network = AutoModelForMaskedLM.from_pretrained(export)
    (export / "model.safetensors").unlink()
    torch.save(network.state_dict(), export / "pytorch_model.bin")


def cut_weights(export):
    path = export / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def headless(export):
    AutoModel.from_pretrained(export).save_pretrained(export)


def own_code(export):
    content = json.loads((export / "config.json").read_text())
    content |= {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine", "AutoModelForMaskedLM": "mine.Model"}}
    (export / "config.json").write_text(json.dumps(content))
    (export / "mine.py").write_text(f"open({str(export / 'ran')!r}, 'w')\n")


def fewer(name, value):
    def change(export):
        config = AutoConfig.from_pretrained(export)
        setattr(config, name, value)
        AutoModelForMaskedLM.from_config(config).save_pretrained(export)

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (bin_weights, "no masked LM that Transformers loads from safetensors"),
        (cut_weights, "no masked LM that Transformers loads from safetensors"),
        (lambda export: (export / "config.json").write_text("{"), "no masked LM that Transformers loads"),
        (
            lambda export: (export / "config.json").write_text('{"model_type": "gpt2"}'),
            "no masked LM that Transformers",
        ),
        (own_code, "no masked LM that Transformers loads"),
        (headless, "its weights lack lm_head"),
        (fewer("vocab_size", 300), "the model has 300 entries, but the rows of"),
        (fewer("max_position_embeddings", 20), "max_position_embeddings=20, but data.seq_len=32 needs 34"),
    ],
)
def test_a_model_that_cannot_be_evaluated_is_refused(run, command, change, said):
    change(run / "export")
    assert said in refusal(command(run))
    assert not list(run.glob("evaluation*"))
    assert not (run / "export" / "ran").exists()


def test_a_model_that_cannot_keep_documents_apart_is_refused(run, command):
    config = AutoConfig.for_model(
        "mobilebert", vocab_size=400, hidden_size=32, embedding_size=16, num_hidden_layers=1, num_attention_heads=4,
        intermediate_size=32, intra_bottleneck_size=32,
    )  # fmt: skip
    AutoModelForMaskedLM.from_config(config).save_pretrained(run / "export")
    assert "model_type='mobilebert' cannot keep the documents of a row apart" in refusal(command(run))


def test_damaged_test_rows_are_named(run, two_sources, tmp_path, command):
    shutil.copytree(two_sources.data.folder, tmp_path / "data")
    (run / "recipe.yaml").unlink()
    recipe = write_recipe(two_sources, tmp_path)
    path = next((tmp_path / "data" / "rows-32").glob("test-*.rows"))
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    (tmp_path / "data" / "rows-32" / "train-one-00000-0000.rows").write_bytes(b"")  # is not opened
    said = refusal(command(run, "--recipe", recipe))
    assert f"{path}: its checksum is not the manifest's" in said
    assert command(run, "--recipe", recipe, "--split", "heldout")[0] == 0


def test_a_wrong_word_is_refused(run, command):
    assert "invalid choice: 'train'" in command(run, "--split", "train")[2]
    assert "no recipe and no file 'tinny'" in refusal(command(run, "--recipe", "tinny"))


def test_a_folder_that_cannot_be_written_is_one_line(run, command, monkeypatch):
    def full(path, content):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(evaluate, "write_json", full)
    assert "the disk is full" in refusal(command(run))


# ---- nothing else opens the test split


def test_no_other_module_of_training_names_the_test_split():
    users = {
        path.name
        for path in (ROOT / "scaler").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "test"
    }
    assert users == {"evaluate.py"}


def test_training_goes_without_the_test_rows(two_sources, tmp_path, run_command):
    shutil.copytree(two_sources.data.folder, tmp_path / "data")
    for path in (tmp_path / "data").rglob("test-*"):
        path.unlink()
    recipe = write_recipe(two_sources, tmp_path, "mine.yaml")
    command = (sys.executable, "-m", "scaler.train", "--recipe", recipe, "--run_dir", "run", "training.steps=2")
    done = run_command(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if "heldout_loss" in record)
    assert {"heldout_loss_one", "heldout_loss_two", "heldout_loss_per_character"} <= set(last)
    done = run_command(sys.executable, "-m", "scaler.evaluate", "run", "--split", "heldout", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["loss"] == pytest.approx(last["heldout_loss"], abs=1e-5)
    assert found["loss_per_character"] == pytest.approx(last["heldout_loss_per_character"], abs=1e-5)
    done = run_command(sys.executable, "-m", "scaler.evaluate", "run", cwd=tmp_path)
    assert done.returncode == 2
    assert "test-one-00000-0000.rows: missing" in done.stderr


# ---- adopted shards


@pytest.mark.parametrize("with_test", [False, True])
def test_adopted_shards_may_have_a_test_split_and_their_characters_are_unknown(
    two_sources, run, tmp_path, command, with_test
):
    shards = two_sources.rows_folder.parent / "shards"
    given = {
        split: [shards / entry["name"] for entry in entries]
        for split, entries in read_manifest(shards, "shards")["splits"].items()
    }
    test = given["test"] if with_test else []
    adopt(two_sources.tokenizer_folder, given["train"], given["heldout"], tmp_path / "data", test)
    recipe = load(write_recipe(two_sources, tmp_path))
    prepare(recipe, Team())
    assert folders.is_current(tmp_path / "data" / "shards", "shards", folders.ADOPTED)
    manifest = token_rows.read(recipe.rows_folder)
    assert list(manifest.splits) == ["train", "heldout", *(["test"] if with_test else [])]
    of_text = token_rows.read(two_sources.rows_folder)
    for split in manifest.splits:
        assert manifest.total_of_text(split, "characters") is None
        assert manifest.total_of_text(split, "text_tokens") == of_text.total_of_text(split, "text_tokens")
    result = command(run, "--recipe", tmp_path / "recipe.yaml")
    if not with_test:
        assert "has no test split" in refusal(result)
        return
    status, output, _ = result
    assert status == 0 and "loss per character unknown masked" in " ".join(output.split())
    assert json.loads((run / "evaluation_test.json").read_text())["loss_per_character"] is None


def test_the_command_adopts_a_test_split(two_sources, tmp_path, run_command):
    shards = two_sources.rows_folder.parent / "shards"
    options = [f"--{split}={shards / f'{split}-one-00000-0000'}" for split in ("train", "heldout", "test")]
    done = run_command(
        *(sys.executable, "-m", "data_prep.adopt", "--tokenizer", two_sources.tokenizer_folder),
        *(*options, "--out", "mine"),
        cwd=tmp_path,
        PYTHONPATH=str(ROOT),
    )
    assert done.returncode == 0, done.stderr
    splits = read_manifest(Path(tmp_path / "mine" / "shards"), "shards")["splits"]
    assert [entry["name"] for entries in splits.values() for entry in entries] == [
        "train-00000",
        "heldout-00000",
        "test-00000",
    ]

"""`python -m scaler.evaluate`: what it says and writes, and what it refuses."""

import ast
import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from configs import configuration
from conftest import ROOT, network_of, opened, recipe_beside
from refusals import refusal
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.adopt import adopt
from data_prep.prepared.prepare import prepare
from scaler import evaluate
from scaler.config.recipe import load
from scaler.core.files import read_manifest
from scaler.data import token_rows, tokenizer
from scaler.distributed.world import World
from scaler.evaluation import evaluate as evaluation_evaluate
from scaler.evaluation import heldout


@pytest.fixture
def run(two_sources, tmp_path):
    """A run's folder with an export, as training leaves it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.yaml").write_text(two_sources.to_yaml(), encoding="utf-8")
    network_of(two_sources).save_pretrained(folder / "export")
    tokenizer.load_tokenizer(two_sources.tokenizer_folder).save_pretrained(folder / "export")
    return folder


@pytest.fixture
def command(call):
    """Run the command: exit status, output, error output."""
    return functools.partial(call, evaluate.main)


@pytest.mark.parametrize("split", ["test", "heldout"])
def test_the_command_says_and_writes_what_evaluation_finds(two_sources, run, command, split):
    status, output, _ = command(run, *([] if split == "test" else ["--split", split]))
    assert status == 0
    found = heldout.evaluate(*opened(two_sources, split), 4, World())
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
    assert "this run has no export: it is not finished, or somebody has removed it" in refusal(command(run))
    assert [path.name for path in run.iterdir()] == ["recipe.yaml"]


@pytest.mark.parametrize("name", ["nowhere", "empty", "nowhere/export"])
def test_a_folder_without_a_model_is_refused(tmp_path, command, name):
    (tmp_path / "empty").mkdir()
    assert "no run and no exported model here" in refusal(command(tmp_path / name))


def test_rows_without_a_test_split_are_refused_with_the_setting_and_the_held_out_ones_are_not(run, tmp_path, command):
    recipe = load(str(run / "recipe.yaml"), ["corpus.test_percent=0", f"data.folder={tmp_path / 'data'}"])
    prepare(recipe, WorkerPool())
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
    recipe = recipe_beside(two_sources, tmp_path)
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

    monkeypatch.setattr("scaler.evaluation.evaluate.write_json", full)
    ended, said, error = command(run)
    assert "the disk is full" in refusal((ended, said, error), begun=True)
    assert "  perplexity " in said  # hours of work are not lost with the file


# ---- nothing else opens the test split


def test_no_other_module_of_training_names_the_test_split():
    program = "import sys, scaler.train, scaler.training.run; print(*(m.__file__ for n, m in sys.modules.items() if "
    program += "n.startswith('scaler.')), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    used = {Path(line) for line in loaded.stdout.splitlines() if line.startswith(str(ROOT))}
    assert len(used) > 30
    users = {
        path.name
        for path in used | {Path(evaluate.__file__), Path(evaluation_evaluate.__file__)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value == "test"
    }
    assert users == {"evaluate.py"}


def test_training_goes_without_the_test_rows(two_sources, tmp_path, run_command, command):
    shutil.copytree(two_sources.data.folder, tmp_path / "data")
    for path in (tmp_path / "data").rglob("test-*"):
        path.unlink()
    recipe = recipe_beside(two_sources, tmp_path, "mine.yaml")
    arguments = ("--recipe", recipe, "--run_dir", "run", "training.steps=2")
    config = ("--deepspeed_config", configuration(tmp_path, "zero2"))
    run_command(sys.executable, "-m", "scaler.train", *arguments, *config, cwd=tmp_path, status=0)
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    last = next(record for record in reversed(records) if "heldout_loss" in record)
    assert {"heldout_loss_one", "heldout_loss_two", "heldout_loss_per_character"} <= set(last)
    status, output, _ = command(tmp_path / "run", "--split", "heldout", "--json")
    assert status == 0
    found = json.loads(output)
    assert found["loss"] == pytest.approx(last["heldout_loss"], abs=1e-5)
    assert found["loss_per_character"] == pytest.approx(last["heldout_loss_per_character"], abs=1e-5)
    assert "test-one-00000-0000.rows: missing" in refusal(command(tmp_path / "run"))


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
    recipe = load(recipe_beside(two_sources, tmp_path))
    prepare(recipe, WorkerPool())
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
    run_command(
        *(sys.executable, "-m", "data_prep.adopt", "--tokenizer", two_sources.tokenizer_folder),
        *(*options, "--out", "mine"),
        cwd=tmp_path,
        status=0,
    )
    splits = read_manifest(Path(tmp_path / "mine" / "shards"), "shards")["splits"]
    assert [entry["name"] for entries in splits.values() for entry in entries] == [
        "train-00000",
        "heldout-00000",
        "test-00000",
    ]

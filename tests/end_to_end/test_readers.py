"""Exports and fine-tuned models, read by other programs, each in an environment of its own."""

import json
import math
import subprocess

import pytest
import reader
import torch
from conftest import ROOT
from environments import python_of
from families import FAMILIES, SMALL

from data_prep.vocabulary import tokenizer as tokenizer_stage
from scaler.config.data_sections import Tokenizer
from scaler.data.tokenizer import load_tokenizer, vocabulary_of
from scaler.finetuning import encoder, sweep
from scaler.model import build, saving
from scaler.training.export import export

pytestmark = pytest.mark.slow
ENTRIES = 410  # 400 of the tokenizer
LABELS = ["O", "B-name", "I-name"]
THETAS = {"full_attention": 500.0, "sliding_attention": 50.0}  # Transformers' own are far larger
TASKS = {"tokens": "token-classification", "classification": "text-classification"}


def randomise(network):
    """Give all weights other values than they begin with, so that none that is lost goes unnoticed."""
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) / 10)
    return network.eval()


@pytest.fixture(scope="module")
def models(tiny_recipe, tmp_path_factory):
    """Folders as training and fine-tuning write them, of each family and tokenizer: `reader`'s jobs, and the truth."""
    folder, jobs, truth = tmp_path_factory.mktemp("models"), {}, {}
    wordpiece = Tokenizer(400, kind="wordpiece")
    tokenizer_stage.make(tiny_recipe.tokenizer_folder.parent / "corpus", folder / "wordpiece", wordpiece)

    def keep(name, network, tokenizer, task):
        jobs[name] = {"folder": str(folder / name), "task": task}
        tokenizer.model_max_length = build.positions(network.config)
        found = {**reader.found(network, tokenizer, task), "vectors": reader.vectors(network, tokenizer)}
        truth[name] = json.loads(json.dumps(found, default=float))

    def pretrain(name, family, tokenizer, **settings):
        config = build.configuration(
            {"model_type": family, **SMALL, **FAMILIES[family], **settings},
            vocabulary_of(tokenizer, folder),
            ENTRIES,
            32,
        )
        network = randomise(build.build(config, seed=1))
        export(dict(network.named_parameters()), network, tokenizer, "", folder / name)
        keep(name, network, tokenizer, "fill-mask")

    for family in FAMILIES:
        pretrain(family, family, load_tokenizer(tiny_recipe.tokenizer_folder))
        for task, pipeline in TASKS.items():
            network = randomise(encoder.load(str(folder / family), task, LABELS, 0, False))
            tokenizer = load_tokenizer(folder / family)
            sweep.save(network, tokenizer, build.positions(network.config), folder / f"{family}-{task}")
            keep(f"{family}-{task}", network, tokenizer, pipeline)
    pretrain("pieces", "distilbert", load_tokenizer(folder / "wordpiece"))
    pretrain("untied", "roberta", load_tokenizer(tiny_recipe.tokenizer_folder), tie_word_embeddings=False)
    rope = {kind: {"rope_type": "default", "rope_theta": theta} for kind, theta in THETAS.items()}
    layers = {"layer_types": ["full_attention"] * 2, "rope_parameters": rope}
    pretrain("other-layers", "modernbert", load_tokenizer(tiny_recipe.tokenizer_folder), **layers)
    more = load_tokenizer(tiny_recipe.tokenizer_folder)
    more.add_special_tokens({"extra_special_tokens": ["<name>", "<place>"]})
    assert len(more) <= ENTRIES
    pretrain("more-special-tokens", "bert", more)
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return folder, truth


def differences(found, expected, path=""):
    """Yield where two results differ, numbers by more than rounding."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in found.keys() & expected.keys():
            yield from differences(found[key], expected[key], f"{path}/{key}")
    elif isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            yield from differences(one, other, f"{path}/{number}")
    elif isinstance(expected, float) and isinstance(found, float):
        if not math.isclose(found, expected, rel_tol=1e-4, abs_tol=2e-5):
            yield f"{path}: {found} for {expected}"
    elif found != expected:
        yield f"{path}: {found!r} for {expected!r}"


@pytest.mark.parametrize("read_by", saving.READERS)
def test_another_program_finds_the_same_tokens_and_scores(read_by, models, request, tmp_path):
    folder, truth = models
    program = read_by.partition("==")[0].replace("-", "_")
    python = python_of(request.config.cache.mkdir("readers"), *read_by.split())
    command = [python, ROOT / "tests" / "support" / "reader.py", program, folder / "jobs.json", tmp_path / "found.json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "found.json").read_text())
    assert {name: result["error"] for name, result in found.items() if "error" in result} == {}
    assert found.keys() == truth.keys() and all(result.keys() & truth[name].keys() for name, result in found.items())
    assert {name: wrong for name in truth if (wrong := [*differences(found[name], truth[name])][:5])} == {}

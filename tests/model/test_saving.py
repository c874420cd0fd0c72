"""The folder that other programs read. What they find in it is in tests/end_to_end/test_readers.py."""

import os

import pytest
import torch
from families import FAMILIES, SMALL
from safetensors import safe_open
from transformers import AutoModelForMaskedLM, ModernBertConfig

from scaler.data import tokenizer
from scaler.model import build, saving


def random_network(recipe, family):
    """A masked LM of a family, in which no bias is zero."""
    vocabulary = tokenizer.read_vocabulary(recipe.tokenizer_folder)
    config = build.configuration({"model_type": family, **SMALL, **FAMILIES[family]}, vocabulary, 400, 32)
    network = build.build(config, seed=1).eval()
    with torch.no_grad():
        for weight in network.parameters():
            weight.add_(torch.randn_like(weight) / 10)
    return network


@pytest.mark.parametrize("family", FAMILIES)
def test_a_bias_has_all_its_names_a_matrix_one_and_the_umask_decides_who_reads(family, tiny_recipe, tmp_path):
    network = random_network(tiny_recipe, family)
    before = os.umask(0o027)
    try:
        saving.save(network, tokenizer.load_tokenizer(tiny_recipe.tokenizer_folder), tmp_path / "model", 38)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in (tmp_path / "model").iterdir()} == {0o640}
    state = network.state_dict()
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        written = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert {name for name, value in state.items() if value.ndim == 1} <= set(written)
    assert all(torch.equal(value, state[name]) for name, value in written.items())
    matrices = [value.data_ptr() for name, value in state.items() if name in written and value.ndim > 1]
    assert len(matrices) == len(set(matrices))
    again = AutoModelForMaskedLM.from_pretrained(tmp_path / "model", local_files_only=True).eval()
    ids = torch.arange(30).unsqueeze(0)
    assert torch.equal(again(input_ids=ids).logits, network(input_ids=ids).logits)
    assert set(FAMILIES) == saving.MODEL_TYPES


@pytest.mark.parametrize(
    ("layers", "every"),
    [("full full", 1), ("full sliding sliding full", 3), ("full sliding", 2), ("sliding full", None)],
)
def test_transformers_4_finds_modernberts_settings_by_its_own_names(layers, every):
    kinds = [f"{kind}_attention" for kind in layers.split()]
    config = ModernBertConfig(num_hidden_layers=len(kinds), layer_types=kinds)
    written = saving.names_of_version_4(config)
    assert (written["global_rope_theta"], written["local_rope_theta"]) == (160_000.0, 10_000.0)
    assert written.get("global_attn_every_n_layers") == every


def test_the_card_names_the_programs_that_were_tried():
    programs = "transformers 4.48.3, 4.57.6, 5.0.0, 5.24.0; sentence-transformers 5.1.2, 6.2.0; onnxruntime 1.32.0."
    assert saving.tried("roberta").endswith(f"read the same tokens and scores: {programs}")
    assert saving.tried("convbert").endswith("programs were not tried with model type convbert.")

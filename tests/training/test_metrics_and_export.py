"""Small parts of what comes out: durations, the ceiling, an export that is not what was trained."""

import json

import pytest
import torch
from transformers import AutoTokenizer

from scaler.core import text
from scaler.core.errors import ScalerError
from scaler.data import prepared
from scaler.distributed import devices
from scaler.model import build
from scaler.training import finish
from scaler.training.export import export


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0s"), (59.6, "1m00s"), (75, "1m15s"), (3599.7, "1h00m"), (90000, "25h00m")]
)
def test_durations_read_as_people_say_them(seconds, said):
    assert text.duration(seconds) == said


@pytest.mark.parametrize(
    "loss, said",
    [
        *((3.2, "0.46 nats below the unigram entropy"), (3.78, "0.12 nats above the unigram entropy")),
        *((3.6603, "as much as the unigram entropy"), (3.6551, "as much as the unigram entropy")),
    ],
)
def test_a_loss_above_that_without_context_is_said_to_be_above(loss, said):
    assert finish.compared(loss, 3.66) == said


@pytest.mark.parametrize("seconds", [0.0, 0.05])
def test_the_ceiling_is_measured_at_least_once(seconds):
    assert 0 < devices.measure_matmul_flops(torch.device("cpu"), torch.float32, seconds) < float("inf")


@pytest.fixture
def network(tiny_recipe):
    data = prepared.open_prepared(tiny_recipe)
    return build.build(build.configuration(tiny_recipe.model, data.vocabulary, 400, 32), seed=1)


def test_an_export_with_a_missing_parameter_is_refused(network, tiny_recipe, tmp_path):
    state = dict(network.named_parameters())
    state.popitem()
    with pytest.raises(ScalerError, match="not on both sides"):
        export(state, network, AutoTokenizer.from_pretrained(tiny_recipe.tokenizer_folder), "", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_an_export_whose_weights_do_not_survive_the_disk_is_refused(network, tiny_recipe, tmp_path, monkeypatch):
    save = type(network).save_pretrained

    def spoil(self, folder, **options):
        with torch.no_grad():
            self.lm_head.dense.weight.add_(1.0)
        save(self, folder, **options)
        with torch.no_grad():
            self.lm_head.dense.weight.sub_(1.0)

    monkeypatch.setattr(type(network), "save_pretrained", spoil)
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe.tokenizer_folder)
    with pytest.raises(ScalerError, match="logits of what was written differ"):
        export(dict(network.named_parameters()), network, tokenizer, "", tmp_path / "export")
    assert not (tmp_path / "export").exists()


def test_an_exported_tokenizer_cuts_where_the_model_has_no_more_positions(network, tiny_recipe, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_recipe.tokenizer_folder)
    export(dict(network.named_parameters()), network, tokenizer, "", tmp_path / "export")
    again = AutoTokenizer.from_pretrained(tmp_path / "export", local_files_only=True)
    ids = again("kana " * 500, truncation=True, return_tensors="pt").input_ids
    assert ids.shape == (1, network.config.max_position_embeddings - network.config.pad_token_id - 1)
    assert network(input_ids=ids).logits.isfinite().all()
    config = json.loads((tmp_path / "export" / "tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast" and "is_local" not in config

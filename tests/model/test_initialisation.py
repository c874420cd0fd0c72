"""Starting points: heads that look at neighbours, a decoder that knows word frequencies."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForMaskedLM

from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.model import initialisation


@pytest.fixture(scope="module")
def quickstart():
    recipe = load("quickstart")
    config = AutoConfig.for_model(**recipe.model, vocab_size=300)
    torch.manual_seed(0)
    return AutoModelForMaskedLM.from_config(config, attn_implementation="eager"), recipe


@pytest.mark.parametrize("offsets", [(-1, 1, -2, 2), (3, -4), (1,)])
def test_each_head_looks_most_at_its_neighbour(quickstart, offsets):
    network, _ = quickstart
    initialisation.look_at_neighbours(network, offsets)
    with torch.no_grad():
        attention = network(torch.randint(5, 300, (4, 100)), output_attentions=True).attentions[0].mean(0)
    for head, offset in enumerate(offsets):
        looks = {d: float(attention[head].diagonal(d).mean()) for d in range(-6, 7)}
        assert max(looks, key=looks.get) == offset
        assert looks.pop(offset) > 10 * max(looks.values())


def test_the_padding_position_stays_zero(quickstart):
    network, _ = quickstart
    initialisation.look_at_neighbours(network, (1,))
    positions = network.roberta.embeddings.position_embeddings.weight
    assert not positions[1].any() and positions[2].any()


def test_more_offsets_than_heads_are_refused(quickstart):
    with pytest.raises(ScalerError, match="names 5 heads, the model has 4"):
        initialisation.look_at_neighbours(quickstart[0], (1, 2, 3, 4, 5))


def test_an_unknown_layout_is_refused():
    config = AutoConfig.for_model("distilbert", vocab_size=300, dim=32, hidden_dim=64, n_layers=1, n_heads=2)
    with pytest.raises(ScalerError, match="distilbert"):
        initialisation.look_at_neighbours(AutoModelForMaskedLM.from_config(config), (1,))


def test_the_decoder_starts_at_the_word_frequencies(quickstart):
    network, _ = quickstart
    counts = np.arange(300) ** 2
    initialisation.start_from_unigram(network, counts)
    with torch.no_grad():
        network.roberta.embeddings.word_embeddings.weight.zero_()
        scores = network(torch.randint(5, 300, (1, 8))).logits.softmax(-1)
    expected = torch.from_numpy((counts + 1) / (counts + 1).sum()).float()
    assert torch.allclose(scores, expected.expand_as(scores), atol=1e-6)

"""The model: the published size, the exact loss, the right parameter groups, and what it refuses."""

import numpy as np
import pytest
import torch
from packed import VOCABULARY, make_documents, make_reader
from refusals import error_of
from torch.utils.flop_counter import FlopCounterMode

from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.data.batches import Batch
from scaler.data.tokenizer import Vocabulary
from scaler.model import build as model
from scaler.model import initialisation, parameters
from scaler.model import masked_lm as model_masked_lm
from scaler.model.kernels import cross_entropy

SMALL = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64}
ROBERTA = {"model_type": "roberta", "max_position_embeddings": 40, **SMALL}
SEQ_LEN = 32


def build(settings=ROBERTA, seed=0, **more):
    return model.build(model.configuration({**settings, **more}, VOCABULARY, 400, SEQ_LEN), seed)


@pytest.fixture
def batch(tmp_path) -> Batch:
    return make_reader(tmp_path, make_documents([20] * 30), SEQ_LEN, 4, first=2).at(0, 6)


def test_aws_roberta_has_the_published_number_of_parameters():
    recipe = load("aws_roberta")
    vocabulary = Vocabulary(recipe.tokenizer.vocab_size, 0, 2, 1, 4, (0, 1, 2, 3, 4))
    config = model.configuration(recipe.model, vocabulary, recipe.tokenizer.vocab_size, recipe.data.seq_len)
    with torch.device("meta"):
        assert parameters.count_parameters(model.build(config, 0)) == (82_170_201, 82_170_201)


def test_frozen_parameters_are_counted_but_not_trained():
    network = build()
    network.base_model.embeddings.requires_grad_(False)
    every, trained = parameters.count_parameters(network)
    assert every - trained == sum(p.numel() for p in network.base_model.embeddings.parameters())
    groups = parameters.parameter_groups(network, 0.1)
    assert sum(p.numel() for group in groups for p in group["params"]) == trained


def test_the_decoder_is_tied_to_the_embeddings():
    network = build()
    assert network.get_output_embeddings().weight is network.get_input_embeddings().weight


@pytest.mark.parametrize("at_once", [None, 1, 700])
@pytest.mark.parametrize("family", ["roberta", "bert", "distilbert", "modernbert", "shifted", "doubled"])
def test_the_head_on_masked_positions_scores_as_the_head_on_all(family, at_once, batch, monkeypatch):
    if at_once is not None:
        monkeypatch.setattr(cross_entropy, "SCORES_AT_ONCE", at_once)
        monkeypatch.setattr(model_masked_lm, "SCORES_TO_RANK", at_once)
    settings = {key: value for key, value in ROBERTA.items() if family != "distilbert" or key != "intermediate_size"}
    later = {"shifted": lambda scores: scores + torch.arange(400) / 100, "doubled": lambda scores: scores * 2}.get(
        family
    )
    network = build({**settings, "model_type": family if later is None else "roberta"}).eval()
    if later is not None:  # a model that does not leave its last layer's scores as they are
        network.lm_head.register_forward_hook(lambda module, arguments, scores: later(scores))
    with torch.no_grad():
        masked_lm = model_masked_lm.MaskedLM(network)
        loss, scores = masked_lm(batch)
        everywhere = network(  # the hook lets a plain call through
            input_ids=batch.input_ids,
            position_ids=batch.position_ids,
            attention_mask=model_masked_lm.attention_mask(network.config, batch.segment_ids),
        ).logits
    there = everywhere.gather(1, batch.masked_positions.unsqueeze(-1).expand(-1, -1, 400))
    naive = -there.double().log_softmax(-1).gather(2, batch.labels.unsqueeze(-1)).flatten()
    assert float(loss) == pytest.approx(float(naive.mean()), rel=1e-6)
    assert torch.allclose(scores.losses.double(), naive, rtol=1e-5)
    assert torch.equal(scores.guesses[:, 0], there.argmax(-1).flatten())
    assert torch.allclose(scores.probabilities, there.softmax(-1).flatten(0, 1).gather(1, scores.guesses), rtol=1e-4)
    assert masked_lm.whole_scores == (later is not None)
    masked_lm.training = True  # of the head alone: no dropout
    assert float(masked_lm(batch)[0].detach()) == pytest.approx(float(naive.mean()), rel=1e-5)


@pytest.mark.parametrize("at_once", [cross_entropy.SCORES_AT_ONCE, 700])
def test_every_parameter_takes_part_in_the_loss(batch, at_once, monkeypatch):
    monkeypatch.setattr(cross_entropy, "SCORES_AT_ONCE", at_once)
    masked_lm = model_masked_lm.MaskedLM(build())
    masked_lm(batch)[0].backward()
    assert [name for name, parameter in masked_lm.named_parameters() if parameter.grad is None] == []


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("at_once", [cross_entropy.SCORES_AT_ONCE, 700])
def test_a_lookup_gives_the_gradient_of_its_rows_to_that_of_the_head(batch, at_once, tied, monkeypatch):
    monkeypatch.setattr(cross_entropy, "SCORES_AT_ONCE", at_once)
    found = []
    for dense in (False, True):
        masked_lm = model_masked_lm.MaskedLM(build(tie_word_embeddings=tied).eval())
        lookup = masked_lm.model.get_input_embeddings()
        assert lookup.sparse is tied  # by itself it would be the gradient, which DeepSpeed needs dense
        if dense:
            lookup.sparse = False
        masked_lm.training = True  # of the head alone: no dropout
        masked_lm(batch)[0].backward()
        found.append(lookup.weight.grad)
    sparse, dense = found
    assert sparse.layout == torch.strided and dense.norm() > 0
    assert torch.allclose(sparse, dense, rtol=1e-5, atol=1e-8)


def test_a_model_keeps_its_mode_and_its_own_head(batch):
    for training in (True, False):
        network = build().train(training)
        masked_lm = model_masked_lm.MaskedLM(network)
        assert masked_lm.training is network.training is training
        masked_lm(batch)
        assert "forward" not in vars(network.get_output_embeddings())


def test_decay_spares_biases_and_norms_and_every_parameter_is_in_one_group():
    network = build()
    groups = {group["name"]: group for group in parameters.parameter_groups(network, 0.1)}
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    members = {group: {names[id(p)] for p in groups[group]["params"]} for group in groups}
    assert {group: groups[group]["weight_decay"] for group in groups} == {
        "embeddings": 0.1,
        "matrices": 0.1,
        "biases and norms": 0.0,
    }
    assert sorted(name for group in members.values() for name in group) == sorted(names.values())
    assert members["biases and norms"] == {
        n for n in names.values() if n.endswith("bias") or "LayerNorm" in n or "layer_norm" in n
    }
    assert members["embeddings"] == {n for n in names.values() if "_embeddings." in n}


def test_the_seed_decides_the_weights_and_no_other_randomness_is_touched():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, again, other = build(seed=1), build(seed=1), build(seed=2)
    assert torch.equal(torch.rand(3), expected)
    weights = [network.base_model.encoder.layer[0].output.dense.weight for network in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("family", ["roberta", "modernbert"])
def test_operations_are_those_that_torch_counts(family):
    # on the meta device attention is two matrix products, which the counter sees; it does nothing else of weight
    with torch.device("meta"):
        network = model_masked_lm.MaskedLM(build({**ROBERTA, "model_type": family}))
        ids = torch.zeros(3, SEQ_LEN, dtype=torch.long)
        masked = torch.zeros(3, 5, dtype=torch.long)
        with FlopCounterMode(display=False) as counter:
            network(Batch(ids, ids, ids, masked, masked))[0].backward()
    assert parameters.flops_per_row(network.model, SEQ_LEN, 5) == pytest.approx(counter.get_total_flops() / 3, rel=0.02)


def test_a_unigram_start_has_the_unigram_cross_entropy(tmp_path):
    chance = np.random.default_rng(0)
    frequency = 1 / np.arange(1, 396)  # Zipf
    documents = [5 + chance.choice(395, 30, p=frequency / frequency.sum()) for _ in range(200)]
    batch = make_reader(tmp_path, documents, SEQ_LEN, 8, first=2).at(0, 150)
    counts = np.bincount(np.concatenate(documents), minlength=400)
    share = (counts + 1) / (counts + 1).sum()
    entropy = -np.log(share[batch.labels]).mean()
    network = build().eval()
    with torch.no_grad():
        before = float(model_masked_lm.MaskedLM(network)(batch)[0])
        initialisation.start_from_unigram(network, counts)
        after = float(model_masked_lm.MaskedLM(network)(batch)[0])
    assert before - entropy > 0.5
    assert after == pytest.approx(entropy, abs=0.05)


@pytest.mark.parametrize(
    "settings, said",
    [
        (
            {"model_type": "robertta"},
            "model.model_type='robertta' has no masked LM in Transformers; did you mean 'roberta'",
        ),
        ({"model_type": "gpt2"}, "model.model_type='gpt2' has no masked LM"),
        ({"model_type": ["bert"]}, "has no masked LM"),
        ({"hidden_size": 32}, "model.model_type='None' has no masked LM"),
        ({**ROBERTA, "hiden_size": 64}, "unknown key model.hiden_size for roberta; did you mean 'hidden_size'"),
        ({**ROBERTA, 7: 64}, "unknown key model.7 for roberta"),
        ({**ROBERTA, "vocab_size": 400}, "model.vocab_size is decided by tokenizer.vocab_size"),
        ({**ROBERTA, "pad_token_id": 1}, "model.pad_token_id is decided by the tokenizer"),
        ({**ROBERTA, "max_position_embeddings": 33}, "max_position_embeddings=33, but data.seq_len=32 needs 34"),
        (
            {**ROBERTA, "hidden_size": "wide"},
            "Transformers refuses this model section: Validation error for field 'hidden_size'",
        ),
        ({**ROBERTA, "hidden_size": 30}, "hidden size (30) is not a multiple of the number of attention heads (4)"),
        ({**ROBERTA, "hidden_act": "gelluh"}, "Transformers refuses this model section: 'gelluh'"),
        ({"model_type": "bart"}, "model.model_type='bart' cannot keep the documents of a row apart"),
        ({"model_type": "mobilebert"}, "model.model_type='mobilebert' cannot keep the documents of a row apart"),
    ],
)
def test_a_wrong_model_section_is_refused_in_a_line(settings, said):
    assert said in error_of(build, settings)


def test_a_tokenizer_larger_than_its_recipe_says_is_refused():
    with pytest.raises(ScalerError, match=r"400 entries, tokenizer\.vocab_size is 399"):
        model.configuration(ROBERTA, VOCABULARY, 399, SEQ_LEN)


def test_bert_needs_no_more_positions_than_a_row_has():
    config = model.configuration(
        {**ROBERTA, "model_type": "bert", "max_position_embeddings": SEQ_LEN}, VOCABULARY, 400, SEQ_LEN
    )
    assert model.first_position(config) == 0


def test_the_special_ids_are_the_tokenizers():
    vocabulary = Vocabulary(400, 10, 11, 12, 13, (10, 11, 12, 13))
    config = model.configuration({"model_type": "modernbert", **SMALL}, vocabulary, 400, SEQ_LEN)
    assert (config.bos_token_id, config.cls_token_id) == (10, 10)
    assert (config.eos_token_id, config.sep_token_id, config.pad_token_id) == (11, 11, 12)

"""Models of different vocabularies on the same hidden words."""

import json
import math
import random
import re
import unicodedata

import pytest
import torch
from conftest import make_sentences
from refusals import refusal
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import DistilBertConfig, DistilBertForMaskedLM, PreTrainedTokenizerFast

from data_prep.formats import texts
from data_prep.pipeline.workers import WorkerPool
from data_prep.sources import corpus as corpus_stage
from data_prep.vocabulary import tokenizer
from scaler import compare
from scaler.config.data_sections import Corpus, Source
from scaler.config.data_sections import Tokenizer as TokenizerSettings
from scaler.core import words
from scaler.evaluation import compare as evaluation_compare

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Documents of some hundred words."""
    folder = tmp_path_factory.mktemp("compared")
    sentences = make_sentences(1500)
    documents = [" ".join(sentences[start : start + 20]) for start in range(0, 1500, 20)]
    (folder / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    sources = (Source(str(folder / "text.txt")),)
    corpus_stage.make(Corpus(sources=sources, heldout_percent=5, test_percent=20), folder / "corpus", WorkerPool())
    return folder / "corpus"


@pytest.fixture(scope="module")
def test_file(corpus):
    (entry,) = texts.entries(texts.manifest(corpus), "test")
    return corpus / f"{entry['name']}.jsonl.zst"


def exported(folder, tokenizer, positions=256):
    """A model with random weights and its tokenizer, in a folder."""
    torch.manual_seed(0)
    sizes = {"dim": 16, "hidden_dim": 16, "n_heads": 2, "n_layers": 1, "max_position_embeddings": positions}
    config = DistilBertConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **sizes)
    DistilBertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=["byte_bpe", "wordpiece", "words"])
def model_folder(request, corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    settings = {"kind": request.param, "lowercase": request.param != "byte_bpe", "pieces": 350}
    tokenizer.make(corpus, folder / "tokenizer", TokenizerSettings(600, **settings))
    return exported(folder / "model", PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer"))


def test_passages_are_of_sixty_words_and_hide_the_same_nine_each_time():
    text = " ".join(f"word{number}" for number in range(150)) + "."
    first, second = list(evaluation_compare.passages([text])), list(evaluation_compare.passages([text]))
    assert first == second and len(first) == 2  # 30 words are left
    for passage in first:
        assert len(re.findall(r"\w+", passage.text)) == 60 and len(passage.hidden) == 9
        assert all(re.fullmatch(r"word\d+", passage.text[begin:end]) for begin, end in passage.hidden)
    assert first[0].hidden != tuple((begin, end) for begin, end in first[1].hidden)


@pytest.mark.parametrize(
    "sentence", ["राम हर सुबह नदी के किनारे टहलने जाता है। ", "ทุกเช้าเขาเดินไปตามริมแม่น้ำ ", "今天天气很好,我们去公园。"]
)
def test_hidden_words_are_whole_in_every_script(sentence):
    (passage, *_) = evaluation_compare.passages([sentence * 20])
    assert len(passage.hidden) == 9
    hidden = [passage.text[begin:end] for begin, end in passage.hidden]
    assert set(hidden) <= set(words.words(sentence))
    for _, end in passage.hidden:  # no mark is cut off
        assert not unicodedata.category((passage.text + " ")[end]).startswith("M")


def test_every_token_of_a_hidden_word_is_guessed_and_no_other(model_folder, corpus):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    (passage, *_) = evaluation_compare.passages([" ".join(make_sentences(30))])
    ids, places = evaluation_compare.encoded(passage, tokenizer)
    kept = [token for place, token in enumerate(ids) if place not in {place for place, _ in places}]
    said = tokenizer.decode(kept, skip_special_tokens=True).lower().replace(" ", "")
    left = list(passage.text)
    for begin, end in reversed(passage.hidden):
        del left[begin:end]
    expected = "".join(left).lower().replace(" ", "")
    assert said == (expected.replace("é", "e") if "[CLS]" in tokenizer.get_vocab() else expected)
    assert {number for _, number in places} == set(range(9))


def test_a_model_that_knows_nothing_pays_a_uniform_price(model_folder, corpus, test_file):
    network = DistilBertForMaskedLM.from_pretrained(model_folder)
    torch.nn.init.zeros_(network.vocab_projector.weight)
    torch.nn.init.zeros_(network.vocab_projector.bias)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    passages = list(evaluation_compare.passages(evaluation_compare.read_texts([test_file], 1000)))
    found = evaluation_compare.measure(network, tokenizer, passages)
    characters = sum(end - begin for passage in passages for begin, end in passage.hidden)
    tokens = found.words * found.tokens_per_word
    assert found.loss_per_character == pytest.approx(tokens * math.log(len(tokenizer)) / characters, rel=1e-4)
    assert found.tokens_per_word >= 1 and found.unknown == 0


def test_a_model_that_has_one_word_gets_that_word_and_others_are_unknown(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({**{t: i for i, t in enumerate(SPECIALS)}, "yes": 5}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    loaded = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **dict(zip(names, SPECIALS, strict=True)))
    network = DistilBertForMaskedLM.from_pretrained(exported(tmp_path / "one", loaded))
    with torch.no_grad():
        network.vocab_projector.bias[5] = 100.0
    chance = random.Random(0)
    text = " ".join(chance.choice(["yes", "no"]) for _ in range(600))
    found = evaluation_compare.measure(network, loaded, evaluation_compare.passages([text]))
    assert found.words == 90 and found.right + found.unknown == 1 and 0.3 < found.right < 0.7


def test_the_command_prints_a_table_and_adds_runs_and_finetunings(model_folder, test_file, call, tmp_path):
    run = tmp_path / "run"
    (run).mkdir()
    (run / "export").symlink_to(model_folder)
    real = model_folder.resolve()
    (tmp_path / "tuned").mkdir()
    results = {
        "settings": {"model": str(real), "data": {"y/x/TREC.train.all": "0", "y/z.all": "1"}, "from_scratch": False},
        "chosen_by": "accuracy",
        "test": {"accuracy": {"mean": 0.8125, "deviation": 0.011}},
    }
    (tmp_path / "tuned" / "results.json").write_text(json.dumps(results))
    out = tmp_path / "compared.json"
    options = (run, "--texts", test_file, "--finetuned", tmp_path / "tuned", "--out", out)
    status, said, error = call(compare.main, *options)
    assert status == 0, error
    assert "81.25% ± 1.10%" in said and "x/TREC.train.all, accuracy" in said
    (row,) = json.loads(out.read_text())
    ended, said, error = call(compare.main, *options[:-1], tmp_path / "nowhere" / "compared.json")
    assert ended == 2 and "hidden words right" in said and error.count("\n") == 1  # the figures are not lost
    assert call(compare.main, tmp_path, *options[1:])[0] == 0  # the newest run of a folder
    assert json.loads(out.read_text()) == [{**row, "model": str(tmp_path)}]
    assert row["words"] > 100 and row["entries"] == 600 and 0 <= row["right"] < 0.2


def test_what_is_too_long_for_one_model_is_left_out_for_all(model_folder, test_file, call, tmp_path):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(model_folder)
    lengths = [
        len(evaluation_compare.encoded(some, tokenizer)[0])
        for some in evaluation_compare.passages(evaluation_compare.read_texts([test_file], 1000))
    ]
    small = exported(tmp_path / "small", tokenizer, positions=sorted(lengths)[len(lengths) // 2])
    out = tmp_path / "compared.json"
    status, said, error = call(compare.main, model_folder, small, "--texts", test_file, "--out", out)
    assert status == 0, error
    rows = json.loads(out.read_text())
    assert (
        rows[0]["words"]
        == rows[1]["words"]
        == 9 * sum(length <= sorted(lengths)[len(lengths) // 2] for length in lengths)
    )
    assert 0 < rows[0]["left_out"] == len(lengths) - rows[0]["words"] / 9 and f"{rows[0]['left_out']} passages" in said


def test_what_cannot_be_compared_is_refused_in_one_line(model_folder, test_file, call, tmp_path):
    small = exported(tmp_path / "small", PreTrainedTokenizerFast.from_pretrained(model_folder), positions=64)
    (tmp_path / "short.jsonl").write_text('{"text": "a few words"}\n')
    (tmp_path / "broken.jsonl").write_text('{"text": "a"}\nno json\n')
    (tmp_path / "nothing").mkdir()
    headless = tmp_path / "headless"
    DistilBertForMaskedLM.from_pretrained(model_folder).distilbert.save_pretrained(headless)
    PreTrainedTokenizerFast.from_pretrained(model_folder).save_pretrained(headless)
    cases = [
        ((headless, "--texts", test_file), "headless: its weights lack vocab_"),
        (
            (model_folder, "--texts", tmp_path / "short.jsonl"),
            "no passage of 60 words in them that all models can take",
        ),
        ((model_folder, "--texts", tmp_path / "broken.jsonl"), 'broken.jsonl: not JSON lines with a "text"'),
        ((model_folder, "--texts", tmp_path / "absent.jsonl"), 'absent.jsonl: not JSON lines with a "text"'),
        ((model_folder, small, "--texts", test_file), "no passage of 60 words in them that all models can take"),
        ((tmp_path / "nothing", "--texts", test_file), "no exported model here"),
        ((model_folder, "--texts", test_file, "--finetuned", tmp_path / "nothing"), "no results.json of a finished"),
    ]
    for options, complaint in cases:
        assert complaint in refusal(call(compare.main, *options))

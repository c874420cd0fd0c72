"""`python -m scaler.finetune`: tasks are learned, models load elsewhere, sweeps go on, faults are one line."""

import functools
import json
import os
import random
import shutil
import sys

import pytest
import torch
from conftest import ROOT, network_of
from failures import failing
from on_disk import flip
from tensorboard.summary.writer.record_writer import RecordWriter
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    pipeline,
)

from scaler import finetune
from scaler.core import charts
from scaler.data import tokenizer
from scaler.distributed.world import World
from scaler.finetuning import encoder, scores
from scaler.finetuning import folder as finetune_folder
from scaler.finetuning import report as finetune_report
from scaler.finetuning import sweep as finetune_sweep
from scaler.finetuning import trial as finetune_trial

WORDS = ["kana", "kapo", "lona", "lopo", "mina", "mipo", "runa", "rupo", "tena", "tepo"]
MARKS = {"shi": "kashi", "zu": "kazu", "lo": "loshi"}  # class -> the word that decides it
QUICK = ("--learning_rates", "5e-3", "--epochs", "12", "--patience", "12", "--batch_size", "16")


@pytest.fixture(scope="module")
def pretrained(tiny_recipe, tmp_path_factory):
    """An export as training leaves it: masked LM and tokenizer."""
    folder = tmp_path_factory.mktemp("run") / "export"
    network = network_of(tiny_recipe)
    with torch.no_grad():  # other weights than a seed would give
        for weight in network.parameters():
            weight.add_(0.01)
    network.save_pretrained(folder)
    tokenizer.load_tokenizer(tiny_recipe.tokenizer_folder).save_pretrained(folder)
    return folder


@pytest.fixture
def model(pretrained, tmp_path):
    """A copy to change."""
    return shutil.copytree(pretrained, tmp_path / "model")


@pytest.fixture
def command(call, tmp_path):
    return functools.partial(call, finetune.main)


@pytest.fixture
def few(tmp_path):
    """A file of sixty examples."""
    return classified(tmp_path / "a.jsonl", count=60)


def refusal(result):
    status, _, errors = result
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in errors, errors
    return lines[0]


def text(chance: random.Random, marks=(), least=3) -> str:
    words = [chance.choice(WORDS) for _ in range(chance.randint(least, least + 5))] + [MARKS[mark] for mark in marks]
    chance.shuffle(words)
    return " ".join(words)


def write(path, lines) -> str:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return str(path)


def classified(path, labels=("shi", "zu", "lo"), count=400) -> str:
    chance = random.Random(0)
    picked = [labels[number % len(labels)] for number in range(count)]
    return write(path, [json.dumps({"text": text(chance, [label]), "label": label}) for label in picked])


def sentences(path, count=300) -> str:
    """Each mark begins a name, and the word that follows it in two of three sentences goes on with the name."""
    chance, lines, behind = random.Random(0), [], {"kashi": "kana", "kazu": "lona", "loshi": "mina"}
    names = {mark: name for name, mark in MARKS.items()}
    for number in range(count):
        for word in text(chance, ["shi"] if number % 2 else ["zu", "lo"]).split():
            if word not in behind.values():
                lines.append(f"{word}\t{f'B-{names[word]}' if word in names else 'O'}")
            if word in names and number % 3:
                lines.append(f"{behind[word]}\tI-{names[word]}")
        lines.append("")
    return write(path, lines)


def results(folder) -> dict:
    return json.loads((folder / "results.json").read_text())


# ---- tasks


def test_classes_are_learned_and_a_pipeline_says_them(pretrained, tmp_path, command):
    out = tmp_path / "out"
    status, output, errors = command(
        pretrained.parent, "--data", classified(tmp_path / "a.jsonl"), *QUICK, "--out", out
    )
    assert status == 0, errors
    found = results(out)
    assert found["test"]["accuracy"] == {"mean": pytest.approx(1, abs=0.05), "deviation": None}
    assert found["without_learning"]["accuracy"] < 0.6
    assert "validation accuracy" in output and f"{found['test']['accuracy']['mean']:.2%}".replace("%", " %") in output
    classify = pipeline("text-classification", model=str(out / "model"))
    assert [classify(f"mina {word} lopo")[0]["label"] for word in MARKS.values()] == list(MARKS)
    classify(" ".join(["kana"] * 500), truncation=True)  # longer than the model's positions
    assert {path.name for path in (out / "model").iterdir()} >= {"model.safetensors", "tokenizer.json", "README.md"}
    assert not list(out.rglob("*.partial")) and not (out / "work").exists() and not (out / "candidates").exists()
    assert "read the same tokens and scores: transformers 4.48.3, 4.57.6" in (out / "model" / "README.md").read_text()
    for name in ("curves.png", "confusion.png"):
        assert (out / name).read_bytes().startswith(b"\x89PNG")
    assert len(list(out.glob("tensorboard/**/events*"))) == 2
    predictions = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert len(predictions) == found["examples"]["test"]
    right = sum(entry["labels"] == entry["predicted"] for entry in predictions)
    assert right / len(predictions) == found["test"]["accuracy"]["mean"]


def test_two_classes_are_sentiment(pretrained, tmp_path, command):
    classified(tmp_path / "a.jsonl", ("shi", "zu"), 240)
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    path = write(tmp_path / "b.txt", [f"{int(line['label'] == 'zu')} {line['text']}" for line in lines])
    out = tmp_path / "out"
    arguments = ("--data", path, "--task", "sentiment", "--format", "plain", *QUICK, "--out", out, "--json")
    status, output, errors = command(pretrained, *arguments)
    assert status == 0 and json.loads(output) == results(out) and "epoch 12/12" in errors
    assert results(out)["test"]["accuracy"]["mean"] > 0.95
    classify = pipeline("text-classification", model=str(out / "model"))
    assert [classify(f"mina {word} lopo")[0]["label"] for word in ("kashi", "kazu")] == ["negative", "positive"]


def test_several_labels_are_learned(pretrained, tmp_path, command):
    chance, lines = random.Random(0), []
    for number in range(320):
        marks = [mark for bit, mark in enumerate(["shi", "lo"]) if number >> bit & 1]
        lines.append(json.dumps({"text": text(chance, marks, least=1), "labels": marks}))
    path, out = write(tmp_path / "a.jsonl", lines), tmp_path / "out"
    arguments = ("--task", "multilabel", *QUICK, "--epochs", 20, "--out", out)
    assert command(pretrained, "--data", path, *arguments)[0] == 0
    assert results(out)["test"]["micro_f1"]["mean"] > 0.9 and results(out)["chosen_by"] == "micro_f1"
    classify = pipeline("text-classification", model=str(out / "model"), top_k=None)
    for said, labels in (("mina kashi lopo", {"shi"}), ("mina kashi loshi", {"shi", "lo"}), ("mina kapo", set())):
        assert {entry["label"] for entry in classify([said])[0] if entry["score"] > 0.5} == labels


def test_tags_of_words_are_learned(pretrained, tmp_path, command):
    out = tmp_path / "out"
    arguments = ("--data", sentences(tmp_path / "a.conll"), "--task", "tokens", *QUICK, "--out", out)
    assert command(pretrained, *arguments)[0] == 0
    assert results(out)["test"]["entity_f1"]["mean"] > 0.95
    assert results(out)["labels"] == ["O", "B-lo", "I-lo", "B-shi", "I-shi", "B-zu", "I-zu"]
    tag = pipeline("token-classification", model=str(out / "model"), aggregation_strategy="first")
    found = [(entry["entity_group"], entry["word"].strip()) for entry in tag("kapo kazu lona lopo loshi")]
    assert ("zu", "kazu lona") in found and ("lo", "loshi") in found
    tag(" ".join(["kana"] * 500))


def test_the_embeddings_may_be_large_and_frozen(tmp_path, pretrained, command):
    settings = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "max_position_embeddings": 40}
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    config = AutoConfig.for_model("distilbert", vocab_size=256_000, pad_token_id=tokenizer.pad_token_id, **settings)
    AutoModelForMaskedLM.from_config(config).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    data = classified(tmp_path / "a.jsonl", ("shi", "zu"), 200)
    arguments = ("--data", data, *QUICK[:2], "--epochs", 2, "--freeze_embeddings", "--out", out)
    assert command(tmp_path / "model", *arguments)[0] == 0
    before, after = (AutoModel.from_pretrained(folder).state_dict() for folder in (tmp_path / "model", out / "model"))
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"embeddings.word_embeddings.weight"}
    assert before["embeddings.word_embeddings.weight"].shape == (256_000, 32)
    assert pipeline("text-classification", model=str(out / "model"))("mina kashi")[0]["label"] in ("shi", "zu")


# ---- epochs, sweeps


def test_an_early_stop_brings_the_best_epoch_back(pretrained, tmp_path, command, monkeypatch):
    scripted, weights = iter([0.5, 0.9, 0.4, 0.3]), []
    real, say = scores.score, finetune_trial._Progress.on_evaluate

    def score(examples, found, labels, task):
        return {**real(examples, found, labels, task), "accuracy": next(scripted, 0.9)}

    def on_evaluate(self, *given, **more):
        weights.append({name: value.clone() for name, value in more["model"].state_dict().items()})
        say(self, *given, **more)

    monkeypatch.setattr(scores, "score", score)
    monkeypatch.setattr(finetune_trial._Progress, "on_evaluate", on_evaluate)
    out = tmp_path / "out"
    data = classified(tmp_path / "a.jsonl", count=200)
    assert command(pretrained, "--data", data, *QUICK[:2], "--epochs", 9, "--patience", 2, "--out", out)[0] == 0
    (record,) = results(out)["runs"]
    assert (record["epochs"], record["best_epoch"]) == (4, 2)
    assert [epoch["accuracy"] for epoch in record["history"]] == [0.5, 0.9, 0.4, 0.3]
    kept = AutoModelForSequenceClassification.from_pretrained(out / "model").state_dict()
    assert all(torch.equal(kept[name], value) for name, value in weights[1].items())
    assert not all(torch.equal(kept[name], value) for name, value in weights[3].items())


def test_a_stopped_sweep_goes_on_and_ends_as_one_that_was_not(pretrained, tmp_path, command, monkeypatch):
    data = classified(tmp_path / "a.jsonl", count=100)
    arguments = ("--data", data, "--learning_rates", "1e-3", "5e-3", "--seeds", 3, 4, "--epochs", 1)
    assert command(pretrained, *arguments, "--out", tmp_path / "whole")[0] == 0
    real, calls = finetune_trial.run, []

    def run(*given):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(given[1:3])
        return real(*given)

    out = tmp_path / "out"
    monkeypatch.setattr(finetune_trial, "run", run)
    assert command(pretrained, *arguments, "--out", out)[0] == 130
    assert calls == [(1e-3, 3), (1e-3, 4)] and not (out / "results.json").exists()
    monkeypatch.setattr(finetune_trial, "run", lambda *given: calls.append(given[1:3]) or real(*given))
    status, output, _ = command(pretrained, *arguments, "--out", out)
    assert status == 0 and "2 of 4 runs to do" in output
    assert calls[2:] == [(5e-3, 3), (5e-3, 4)]
    one, two = results(tmp_path / "whole"), results(out)
    for found in (one, two):
        for record in found["runs"]:
            del record["seconds"]
    for key in ("runs", "chosen", "test", "learning_rates", "settings", "without_learning"):
        assert one[key] == two[key], key
    assert (out / "model" / "model.safetensors").read_bytes() == (
        tmp_path / "whole" / "model" / "model.safetensors"
    ).read_bytes()
    # what is finished is only told again; other settings are another sweep
    status, output, _ = command(pretrained, *arguments, "--out", out)
    assert status == 0 and len(calls) == 4 and "validation accuracy, 2 seeds" in output
    said = refusal(command(pretrained, *arguments, "--out", out, "--batch_size", 8))
    assert "was begun with batch_size=32, and not 8; name another folder" in said


def test_the_choice_is_by_validation_and_means_are_of_the_test():
    def record(rate, seed, validation, test):
        return {
            **{"learning_rate": rate, "seed": seed},
            **{"validation": {"accuracy": validation}, "test": {"accuracy": test}},
        }

    found = finetune_sweep.finetune_report.summary(
        [record(1, 0, 0.8, 0.9), record(1, 1, 0.7, 1.0), record(2, 0, 0.6, 0.1), record(2, 1, 0.96, 0.3)],
        "classification",
    )
    assert found["chosen"] == {"learning_rate": 2, "seed": 1}
    assert found["test"]["accuracy"] == {"mean": pytest.approx(0.2), "deviation": pytest.approx(0.1 * 2**0.5)}


def test_from_scratch_is_the_same_architecture_with_other_weights(pretrained):
    given = (str(pretrained), "classification", ["a", "b"], 0)
    tuned, scratch, again = (encoder.load(*given, from_scratch) for from_scratch in (False, True, True))
    assert {n: p.shape for n, p in tuned.named_parameters()} == {n: p.shape for n, p in scratch.named_parameters()}
    source = AutoModel.from_pretrained(pretrained).state_dict()
    mine, other, third = (network.base_model.state_dict() for network in (tuned, scratch, again))
    assert all(torch.equal(source[name], value) for name, value in mine.items())
    differ = {name for name, value in other.items() if not torch.equal(value, mine[name])}
    assert {name for name in mine if mine[name].ndim == 2} <= differ
    assert all(torch.equal(third[name], value) for name, value in other.items())
    assert {(c.problem_type, c.num_labels) for c in (tuned.config, scratch.config)} == {
        ("single_label_classification", 2)
    }


# ---- what is no part of the result, and a result that is lost


@pytest.fixture
def quick(pretrained, tmp_path, command, few):
    """Fine-tune for an epoch with two seeds."""
    options = ("--data", few, "--epochs", 1, "--seeds", 1, 2, "--out", tmp_path / "out")
    return functools.partial(command, pretrained, *options)


def test_pictures_and_curves_that_fail_cost_a_warning(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(charts, "save", failing)
    monkeypatch.setattr(RecordWriter, "write", failing)
    ended, said, errors = quick()
    assert ended == 0 and "Traceback" not in errors and "validation accuracy" in said
    assert "curves.png: no picture: no such colour" in errors and "confusion.png: no picture" in errors
    assert "TensorBoard's curves end here" in errors
    assert results(tmp_path / "out")["chosen"] and (tmp_path / "out" / "model" / "model.safetensors").is_file()


def test_labels_with_two_dollars_are_drawn(quick, tmp_path):
    labels = (r"US$_x$", "EUR$^$", "long" * 50_000)
    chance = random.Random(0)
    lines = [json.dumps({"text": f"{text(chance)} {n}", "label": labels[n % 3]}) for n in range(120)]
    assert quick("--data", write(tmp_path / "dollars.jsonl", lines))[0] == 0
    assert (tmp_path / "out" / "confusion.png").read_bytes().startswith(b"\x89PNG")
    assert results(tmp_path / "out")["labels"] == sorted(labels)


def test_a_thousand_classes_are_drawn_in_a_picture_of_a_page(tmp_path):
    names = [f"class {number}" for number in range(1000)]
    figure = finetune_report._confusion(names, names, [[int(x == y) for x in range(1000)] for y in range(1000)])
    assert max(figure.get_size_inches()) <= finetune_report.MOST_INCHES + 1


def test_the_model_is_on_the_disk_before_its_record_says_that_it_is_done(quick, tmp_path, monkeypatch):
    out, order, fsync, write = tmp_path / "out", [], os.fsync, finetune_sweep.write_json

    def noted(descriptor):
        order.append(os.path.relpath(os.readlink(f"/proc/self/fd/{descriptor}"), out))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(
        finetune_sweep, "write_json", lambda path, content: order.append(path.name) or write(path, content)
    )
    assert quick()[0] == 0
    before = order[: next(place for place, name in enumerate(order) if name.startswith("lr-"))]
    files = [path.name for path in (out / "model").iterdir() if path.name != "README.md"]
    assert {f"candidates/partial/{name}" for name in [*files, "predictions.jsonl"]} <= set(before)
    assert before.index("candidates/partial") < before.index("candidates")
    assert "." in order[: order.index("results.json")]


@pytest.mark.parametrize("how", ["removed", "emptied", "flipped"])
def test_a_model_that_is_lost_is_trained_again(quick, tmp_path, how):
    quick()
    out, weights = tmp_path / "out", tmp_path / "out" / "model" / "model.safetensors"
    before, written = results(out), weights.read_bytes()
    if how == "removed":
        shutil.rmtree(out / "model")
    elif how == "emptied":
        weights.write_bytes(b"")
    else:
        flip(weights)
    ended, said, errors = quick()
    assert ended == 0 and "2 of 2 runs to do" in said and "are done again, because the best of them is lost" in errors
    assert weights.read_bytes() == written
    assert results(out)["chosen"] == before["chosen"] and results(out)["test"] == before["test"]
    assert (out / "model.damaged").exists() == (how != "removed")
    assert "0 of 2 runs to do" in quick()[1]


# ---- what is refused


def bin_weights(model):
    network = AutoModelForMaskedLM.from_pretrained(model)
    (model / "model.safetensors").unlink()
    torch.save(network.state_dict(), model / "pytorch_model.bin")


def set_config(**changes):
    def change(model):
        content = json.loads((model / "config.json").read_text())
        (model / "config.json").write_text(json.dumps(content | changes))

    return change


def fewer_entries(model):
    config = AutoConfig.from_pretrained(model)
    config.vocab_size = 300
    AutoModelForMaskedLM.from_config(config).save_pretrained(model)


def another_encoder(model):
    config = AutoConfig.for_model("bert", vocab_size=400, hidden_size=32, num_attention_heads=4, num_hidden_layers=1)
    config.intermediate_size = 64
    network = AutoModelForMaskedLM.from_config(config)
    network.save_pretrained(model / "other")
    shutil.copy(model / "other" / "model.safetensors", model)


def unfinished(model):
    (model / "config.json").unlink()
    (model / "recipe.yaml").write_text("")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: (model / "tokenizer.json").unlink(), "model: no tokenizer here; save there the one"),
        (lambda model: (model / "tokenizer.json").write_text("{"), "the tokenizer cannot be read"),
        (fewer_entries, "the tokenizer has 400 entries, but the model's embedding 300 rows"),
        (set_config(pad_token_id=3), "the model's pad_token_id is 3, the tokenizer's 1"),
        (bin_weights, "no encoder that Transformers loads from safetensors"),
        (another_encoder, "its weights lack roberta."),
        (lambda model: (model / "config.json").write_text("{"), "no configuration that Transformers can load"),
        (unfinished, "this run has no export"),
    ],
)
def test_a_model_that_cannot_be_fine_tuned_is_refused(model, tmp_path, command, change, said, few):
    change(model)
    assert said in refusal(command(model, "--data", few, "--epochs", 1, "--out", tmp_path / "out"))
    assert not (tmp_path / "out" / "results.json").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--max_length", 39), "takes 3 to 38 tokens"),
        (("--max_length", 2), "takes 3 to 38 tokens"),
        (("--batch_size", 0), "--batch_size 0: 1 is the least"),
        (("--learning_rates", 5), "--learning_rates 5.0: 0 < rate < 1"),
        (("--deepspeed_config", "nowhere.json"), "--deepspeed_config nowhere.json: no such file; known by name are "),
        (("--test", "nowhere.jsonl"), "nowhere.jsonl: cannot be read"),
    ],
)
def test_settings_that_cannot_be_are_refused(pretrained, tmp_path, command, arguments, said, few):
    out = tmp_path / "out"
    assert said in refusal(command(pretrained, "--data", few, *arguments, "--out", out))
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere/at/all", "no run and no exported model here"),
        ("runs/none", "no run and no exported model here"),
        ("nobody/nothing", "nobody/nothing: no configuration"),
    ],
)
def test_what_is_no_model_and_no_hub_id_that_loads_is_refused(command, few, name, said):
    assert said in refusal(command(name, "--data", few))


def test_a_folder_of_something_else_is_refused(pretrained, tmp_path, command, few):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    said = refusal(command(pretrained, "--data", few, "--out", tmp_path / "out"))
    assert "is neither new nor a fine-tuning (no settings.json)" in said
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_texts_that_are_cut_are_counted(pretrained, tmp_path, command):
    chance = random.Random(0)
    lines = [f"{number % 2} {text(chance)} {number}" for number in range(90)]
    test = [f"{n % 2} {text(chance, least=8) * (1 + 20 * (n < 3))} {n}" for n in range(12)]
    arguments = ("--test", write(tmp_path / "b.all", test), "--format", "plain", "--epochs", 1)
    out = tmp_path / "out"
    status, output, _ = command(pretrained, "--data", write(tmp_path / "a.all", lines), *arguments, "--out", out)
    assert status == 0
    said = "test examples that are cut at 38 tokens: 3 of 12 (25.0%)"
    assert said in output and said in results(out)["notes"]
    assert said in (out / "model" / "README.md").read_text()


def test_words_that_are_cut_off_count_as_missed(pretrained, tmp_path, command):
    path, out = tmp_path / "long.conll", tmp_path / "out"
    path.write_text("\n".join([*["kana\tO"] * 60, *["kashi\tB-shi"] * 5]) + "\n\nkashi\tB-shi\n")
    data = sentences(tmp_path / "a.conll", 90)
    arguments = ("--test", path, "--task", "tokens", "--epochs", 1, "--out", out)
    status, output, _ = command(pretrained, "--data", data, *arguments)
    assert status == 0 and "tokens: 1 of 2 (50.0%)" in output
    (lost,) = (note for note in results(out)["notes"] if "without a token" in note)
    # each "kana" is at least one piece, so at most 36 of the 65 words are left
    assert 29 <= int(lost.rpartition(" ")[2]) < 65
    predicted = [json.loads(line)["predicted"] for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [len(tags) for tags in predicted] == [65, 1] and set(predicted[0][36:]) == {"O"}


def test_a_second_sweep_in_the_same_folder_waits_its_turn(pretrained, tmp_path):
    lock = finetune_folder.begin(tmp_path / "out", {"a": 1})
    with pytest.raises(finetune.ScalerError, match="another run is at work in it"):
        finetune_folder.begin(tmp_path / "out", {"a": 1})
    lock.close()
    finetune_folder.begin(tmp_path / "out", {"a": 1}).close()


def test_weights_that_were_written_otherwise_are_not_kept(pretrained, tmp_path, monkeypatch):
    network = encoder.load(str(pretrained), "classification", ["a", "b"], 0, False)
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    real = type(network).save_pretrained

    def save_pretrained(self, folder, **options):
        with torch.no_grad():
            next(self.parameters()).add_(1)
            real(self, folder, **options)
            next(self.parameters()).sub_(1.5)

    monkeypatch.setattr(type(network), "save_pretrained", save_pretrained)
    with pytest.raises(finetune.ScalerError, match="reads back with other values; not saved"):
        finetune_sweep.save(network, tokenizer, 38, tmp_path / "out")


def test_packages_that_are_missing_are_named(pretrained, tmp_path, command, monkeypatch, few):
    monkeypatch.setattr(finetune.importlib.util, "find_spec", lambda name: None if name == "seqeval" else name)
    said = refusal(command(pretrained, "--data", few, "--out", tmp_path / "out"))
    assert said == "error: fine-tuning needs seqeval; install it with `pip install '.[finetune]'`"


# ---- ranks


@pytest.mark.slow
def test_ranks_with_and_without_deepspeed_learn_what_one_does(pretrained, tmp_path, run_command):
    train = classified(tmp_path / "a.jsonl", count=96)
    test = classified(tmp_path / "b.jsonl", count=30)
    arguments = ("--data", train, "--validation", test, "--test", test, *QUICK[:2], "--seeds", 0, 1, "--epochs", 2)
    launchers = {
        "one": (sys.executable, "-m"),
        "ranks": ("torchrun", "--nproc-per-node", 2, "-m"),
        "zero": ("torchrun", "--nproc-per-node", 2, "-m"),
        "deepspeed": ("deepspeed", "--num_gpus", 2, "--module"),
    }
    losses = {}
    for name, launcher in launchers.items():
        engine = ("--deepspeed_config", ROOT / "ds_configs" / "zero2.json") if name in ("zero", "deepspeed") else ()
        done = run_command(
            *(*launcher, "scaler.finetune", pretrained, *arguments, *engine, "--out", tmp_path / name),
            cwd=tmp_path, CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1",
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        runs = results(tmp_path / name)["runs"]
        losses[name] = [
            epoch[key] for run in runs for epoch in run["history"] for key in ("train_loss", "validation_loss")
        ]
    for name in launchers:
        assert losses[name] == pytest.approx(losses["one"], rel=1e-3)


def test_weights_in_parts_are_refused_and_batches_that_ranks_cannot_share(tmp_path):
    given = ("m", "classification", 1, 10, 1, "fp32", False, False)
    with pytest.raises(finetune.ScalerError, match="stage=3 shards the weights"):
        finetune_trial.check(finetune_trial.Settings(*given, str(ROOT / "ds_configs" / "zero3.json")), World())
    with pytest.raises(finetune.ScalerError, match="--batch_size 10 cannot be shared equally by 4 ranks"):
        finetune_trial.check(finetune_trial.Settings(*given, None), World(size=4))

"""`python -m data_prep.labels`: what the markup and the services' names become, and what is kept apart."""

import functools
import json
import re

import pytest
from refusals import refusal

from data_prep import labels
from data_prep.labelling import aws_labels, tasks
from data_prep.labelling.tasks import Text
from data_prep.sources import aws_docs
from scaler.finetuning import examples
from scaler.finetuning.examples import Reading

API = {
    "metadata": {"serviceFullName": "Amazon Simple Queue Service", "serviceId": "SQS", "endpointPrefix": "sqs"},
    "operations": {"GetQueue": {"documentation": "<p>Gets.</p>"}, "NoText": {}},
    "shapes": {"Queue": {"documentation": "A queue.", "members": {"maxItems": {"documentation": "Most."}}}},
}


@pytest.fixture
def services(monkeypatch):
    """Few of botocore's services, and small ones."""
    from botocore.loaders import Loader

    some = ["ecr", "fis", "grafana", "mwaa", "pi", "sqs", "sns", "swf", "schemas", "signer", "drs"]
    monkeypatch.setattr(Loader, "list_available_services", lambda self, kind: some)
    return some


@pytest.fixture
def command(call):
    return functools.partial(call, labels.main)


def test_descriptions_are_those_of_operations_types_and_members():
    assert list(aws_labels.descriptions(API)) == ["<p>Gets.</p>", "", "A queue.", "Most."]


def test_a_service_has_the_names_of_its_model():
    assert aws_labels.names_of("sqs", API) == {"sqs", "simple queue"}
    metadata = {"serviceFullName": "Amazon Simple Systems Manager (SSM)", "serviceAbbreviation": "AWS SSM"}
    assert aws_labels.names_of("ssm", {"metadata": metadata}) == {"ssm", "simple systems manager"}


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("Sends to Amazon SQS now.", "Sends to Amazon now."),
        ("The SimpleQueueName of a simple-queue, please.", "The of a please."),
        ("An sqs:Send for SQSQueue and sqs_x", "An :Send for Queue and _x"),
        ("Backwardsqs stay as they are", "Backwardsqs stay as they are"),
    ],
)
def test_names_are_taken_out_of_texts(text, left):
    names = tasks.name_pattern({"sqs": API})
    assert aws_labels.without(names, text) == left


def test_markup_says_which_words_are_names():
    known = aws_labels.known_names(API)
    words, tags = aws_labels.tagged(
        "Call <code>GetQueue</code> with <code>MaxItems</code>, <a>GetQueue</a> or <a href='x'>the guide</a>; "
        "it&apos;s <code>403 Forbidden</code> or <b>bold</b>.",
        known,
    )
    assert [(word, tag) for word, tag in zip(words, tags, strict=True) if tag != "O"] == [
        ("GetQueue", "B-operation"),
        ("MaxItems", "B-parameter"),
        ("GetQueue", "B-operation"),
        ("403", "B-value"),
        ("Forbidden", "I-value"),
    ]
    assert words[6:12] == ["or", "the", "guide", ";", "it's", "403"]


def test_blocks_are_paragraphs_and_list_items():
    found = aws_labels.blocks("<p>One.</p> <ul> <li> <p>Two</p> </li></ul>")
    assert [aws_labels.text_of(block) for block in found] == ["One.", "Two", ""]


def test_near_copies_are_left_out_and_texts_of_two_services_belong_to_none():
    base = "The identifier of the resource that the request asks for in this very account and region today"
    texts = [
        Text("a", base, ("a",)),
        Text("a", base.replace("today", "now"), ("a",)),
        Text("a", "Something that nobody else says about queues of messages and their order", ("a",)),
        Text("b", base, ("b",)),
    ]
    kept, left_out = tasks.without_repeats(texts, shared_too=True)
    assert ([text.text for text in kept], left_out) == ([texts[2].text], 3)
    kept, left_out = tasks.without_repeats(texts, shared_too=False)
    assert ([text.text for text in kept], left_out) == ([texts[0].text, texts[2].text], 2)


def shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[place : place + 2]) for place in range(len(words) - 1)}


def test_the_command_writes_what_fine_tuning_reads(services, tmp_path, command):
    out = tmp_path / "labels"
    arguments = ("--out", out, "--services", 6, "--texts_a_service", 60, "--sentences_a_service", 20)
    status, output, errors = command(*arguments)
    assert status == 0, errors
    assert "written" in output and "the service whose name is in the text as it was written" in output
    manifest = json.loads((out / "manifest.json").read_text())
    texts, sentences = {}, {}
    for split in ("train", "validation", "test"):
        texts[split], _ = examples.read(out / "service" / f"{split}.jsonl", Reading("classification"))
        sentences[split], _ = examples.read(out / "names" / f"{split}.conll", Reading("tokens"))
        assert len(texts[split]) == manifest["tasks"]["service"][split]["examples"]
        assert len(sentences[split]) == manifest["tasks"]["names"][split]["examples"]
    assert {example.labels[0] for example in texts["train"]} <= set(services)
    assert len({example.labels[0] for example in texts["train"]}) == 6
    assert {tag for some in sentences["train"] for tag in some.labels} >= {"O", "B-operation", "B-parameter", "B-value"}
    for kind in (texts, sentences):  # nothing of the test is nearly in training
        known = [shingles(example.text) for example in kind["train"]]
        for example in kind["test"]:
            mine = shingles(example.text)
            assert all(len(mine & other) <= 0.7 * len(mine | other) for other in known if mine)
    rules = list(manifest["accuracy_of_rules"].values())
    assert rules[2] <= rules[1] and all(0 <= share <= 1 for share in rules)
    assert "Without learning" in (out / "README.md").read_text()
    # the same again, to the byte; and other settings are made anew
    before = {path.name: path.read_bytes() for path in out.rglob("*.*")}
    assert "is up to date" in command(*arguments)[1]
    (out / "manifest.json").unlink()
    assert command("--out", tmp_path / "again", *arguments[2:])[0] == 0
    assert (tmp_path / "again" / "service" / "test.jsonl").read_bytes() == (out / "service" / "test.jsonl").read_bytes()
    assert (tmp_path / "again" / "manifest.json").read_bytes() == before["manifest.json"]


def test_names_are_of_other_services_in_each_split(services):
    models = dict(aws_docs.models())
    of = {}
    for text in tasks.name_sentences(models):
        of.setdefault(tasks.split_of(text.service), set()).add(text.service)
    assert sum(map(len, of.values())) == len(set().union(*of.values()))


def test_too_few_are_refused_and_nothing_is_written(services, tmp_path, command):
    assert "--services 1: two services" in refusal(command("--out", tmp_path / "out", "--services", 1))
    few = ("--services", 2, "--texts_a_service", 1)
    assert "take more with the options" in refusal(command("--out", tmp_path / "out", *few))
    assert not (tmp_path / "out").exists()

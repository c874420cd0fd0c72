"""Make labelled tasks from the AWS API reference."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import xxhash

from data_prep.cleaning.dedup import keys_of
from data_prep.formats import manifests
from data_prep.labelling import aws_labels
from data_prep.pipeline import folders
from data_prep.sources import aws_docs
from scaler.config.data_sections import Dedup
from scaler.core.errors import ScalerError
from scaler.core.files import checksum

KIND = "labels"
SERVICES, TEXTS_A_SERVICE, SENTENCES_A_SERVICE = 20, 300, 30
LEAST_CHARACTERS = 60  # of a text whose service is asked for
WORDS = range(5, 61)  # of a sentence
PERCENT = {"test": 10, "validation": 10}
PICK_SEED, SPLIT_SEED = 11, 12  # of the hashes that pick texts and split them
# Stricter than the recipe's, for texts are short: found are 87 % of the pairs that share half of their runs of two
# words, and all but two in ten thousand of those that share 0.7
SAME = Dedup(ngram=2, bands=32, band_rows=4)


class Text(NamedTuple):
    """A text with its labels: a service, or a tag for each word."""

    service: str
    text: str
    labels: tuple[str, ...]
    as_written: str = ""  # with the names in it


def hashed(text: str, seed: int) -> float:
    """Return a number in [0, 1) that depends on the text and the seed alone."""
    return float(xxhash.xxh3_64_intdigest(text.encode(), seed=seed) / 2**64)


def split_of(text: str) -> str:
    """Return the split that a text or a service falls into."""
    place = hashed(text, SPLIT_SEED) * 100
    for split, percent in PERCENT.items():
        if place < percent:
            return split
        place -= percent
    return "train"


def without_repeats(found: Iterable[Text], shared_too: bool) -> tuple[list[Text], int]:
    """Return the texts that repeat no earlier one, not even nearly, and the number of those that do.

    Args:
        shared_too: leave a text out, too, when another service has one like it, because it fits both.
    """
    every = list(found)
    keys = [keys_of(text.text.lower(), SAME) for text in every]
    owners: dict[Hashable, set[str]] = defaultdict(set)
    for text, some in zip(every, keys, strict=True):
        for key in enumerate(some):
            owners[key].add(text.service)
    seen: set[Hashable] = set()
    kept = []
    for text, some in zip(every, keys, strict=True):
        numbered = set(enumerate(some))
        shared = shared_too and any(len(owners[key]) > 1 for key in numbered)
        if not shared and not numbered & seen:
            kept.append(text)
        seen |= numbered
    return kept, len(every) - len(kept)


def some_of_each(found: Iterable[Text], most: int) -> list[Text]:
    """Return at most `most` texts of each service, chosen by hash."""
    of: dict[str, list[Text]] = defaultdict(list)
    for text in found:
        of[text.service].append(text)
    return [
        text for texts in of.values() for text in sorted(texts, key=lambda text: hashed(text.text, PICK_SEED))[:most]
    ]


def service_texts(models: Mapping[str, dict[str, Any]], count: int) -> Iterator[Text]:
    """Yield texts of the `count` services with the most operations, without the names of these."""
    chosen = sorted(models, key=lambda name: (-len(models[name]["operations"]), name))[:count]
    names = name_pattern({service: models[service] for service in chosen})
    for service in chosen:
        for description in aws_labels.descriptions(models[service]):
            as_written = aws_labels.text_of(description)
            text = aws_labels.without(names, as_written)
            if len(text) >= LEAST_CHARACTERS:
                yield Text(service, text, (service,), as_written)


def name_pattern(models: Mapping[str, dict[str, Any]]) -> re.Pattern[str]:
    """Return a pattern of all the services' names, longer ones first."""
    names = {name for service, api in models.items() for name in aws_labels.names_of(service, api)}
    return re.compile("|".join(map(aws_labels.pattern, sorted(names, key=lambda name: (-len(name), name)))))


def name_sentences(models: Mapping[str, dict[str, Any]]) -> Iterator[Text]:
    """Yield paragraphs and list items in which something is marked, as words with tags."""
    for service, api in models.items():
        known = aws_labels.known_names(api)
        for description in aws_labels.descriptions(api):
            for block in aws_labels.blocks(description):
                if "<code" in block or "<a" in block:
                    words, tags = aws_labels.tagged(block, known)
                    if len(words) in WORDS and set(tags) != {"O"}:
                        yield Text(service, " ".join(words), tuple(tags))


def by_name(models: Mapping[str, dict[str, Any]], texts: Sequence[Text], most_common: str, removed: bool) -> float:
    """Return the accuracy of a rule without learning: the service of the longest name in a text, else the most common.

    Args:
        removed: look at the texts as they are given out, not as they were written.
    """
    patterns = [
        (len(name), service, re.compile(aws_labels.pattern(name)))
        for service in {text.service for text in texts}
        for name in aws_labels.names_of(service, models[service])
    ]
    patterns.sort(key=lambda entry: (-entry[0], entry[1]))
    right = 0
    for text in texts:
        where = text.text if removed else text.as_written
        said = next((service for _, service, name in patterns if name.search(where)), most_common)
        right += said == text.service
    return right / len(texts)


def make(folder: Path, services: int, texts_a_service: int, sentences_a_service: int) -> bool:
    """Write both tasks unless the folder already is the result; return True when it was written."""
    made_from = {
        **{"botocore": aws_docs.version(), "services": services},
        **{"texts_a_service": texts_a_service, "sentences_a_service": sentences_a_service},
    }
    if folders.is_current(folder, KIND, made_from):
        return False
    if min(services - 1, texts_a_service, sentences_a_service) < 1:
        raise ScalerError(f"--services {services}: two services, and a text of each, are the least")
    models = dict(aws_docs.models())
    with folders.staged(folder, KIND, made_from) as partial:
        texts, left_out = without_repeats(service_texts(models, services), shared_too=True)
        texts = some_of_each(texts, texts_a_service)
        sentences, sentences_left_out = without_repeats(name_sentences(models), shared_too=False)
        sentences = some_of_each(sentences, sentences_a_service)
        tasks = {
            "service": _write(partial / "service", ".jsonl", texts, lambda text: split_of(text.text)),
            "names": _write(partial / "names", ".conll", sentences, lambda text: split_of(text.service)),
        }
        content = {
            "tasks": tasks,
            "repeats_left_out": {"service": left_out, "names": sentences_left_out},
            "accuracy_of_rules": rules(models, texts),
        }
        folders.write_manifest(partial, KIND, made_from, _card(made_from, content), **content)
    return True


def rules(models: Mapping[str, dict[str, Any]], texts: Sequence[Text]) -> dict[str, float]:
    """Return the accuracies of rules without learning on the test texts."""
    of = {split: [text for text in texts if split_of(text.text) == split] for split in (*PERCENT, "train")}
    most_common = Counter(text.service for text in of["train"]).most_common(1)[0][0]
    test = of["test"]
    return {
        "the most common service": sum(text.service == most_common for text in test) / len(test),
        "the service whose name is in the text as it was written": by_name(models, test, most_common, removed=False),
        "the same in the text as it is here": by_name(models, test, most_common, removed=True),
    }


def _write(
    folder: Path, suffix: str, texts: Sequence[Text], choose: Callable[[Text], str]
) -> dict[str, dict[str, Any]]:
    """Write a file for each split; return its name, checksum and counts by split."""
    folder.mkdir()
    splits: dict[str, dict[str, Any]] = {}
    for split in ("train", *reversed(PERCENT)):
        mine = [text for text in texts if choose(text) == split]
        if not mine:
            raise ScalerError(f"{folder.name}: no text falls into the {split} split; take more with the options")
        path = folder / (split + suffix)
        path.write_text("".join(map(_as_json if suffix == ".jsonl" else _as_conll, mine)), encoding="utf-8")
        splits[split] = {
            **{"file": f"{folder.name}/{path.name}", "xxh3": checksum(path), "examples": len(mine)},
            **{"services": len({text.service for text in mine})},
            "labels": dict(Counter(label for text in mine for label in text.labels).most_common()),
        }
    return splits


def _as_json(text: Text) -> str:
    return json.dumps({"text": text.text, "label": text.service}, ensure_ascii=False) + "\n"


def _as_conll(text: Text) -> str:
    words = zip(text.text.split(" "), text.labels, strict=True)
    return "".join(f"{word}\t{tag}\n" for word, tag in words) + "\n"


def _card(made_from: Mapping[str, Any], content: Mapping[str, Any]) -> str:
    """Return the folder's README."""
    rows = [
        f"| {task} | {split} | {entry['examples']:,} | {entry['services']:,} | {sum(entry['labels'].values()):,} |"
        for task, splits in content["tasks"].items()
        for split, entry in splits.items()
    ]
    rules_said = [f"- {name}: {share:.1%}" for name, share in content["accuracy_of_rules"].items()]
    return "\n".join(
        [
            "# Labelled tasks out of the AWS API reference",
            f"From botocore {made_from['botocore']} (Apache-2.0), with `scaler labels`.",
            "",
            "| task | split | examples | services | labels |",
            "|---|---|---|---|---|",
            *rows,
            "",
            "`service`: which service a description is of, without the words in which a service's name occurs; split",
            "by hash of the text. `names`: which words are operations, parameters and values, as their markup says;",
            "split by service. Near-duplicates are left out before splitting. What is not marked counts as no name.",
            "",
            "Without learning, on the test texts of `service`:",
            *rules_said,
            "",
        ]
    )


def render(folder: Path) -> str:
    """Return the sizes of the tasks in a folder, and how often their rules are right, a line each."""
    content = manifests.read(folder, KIND)
    lines = []
    for task, splits in content["tasks"].items():
        sizes = ", ".join(f"{split} {entry['examples']:,}" for split, entry in splits.items())
        lines.append(f"  {task}: {sizes}; {content['repeats_left_out'][task]:,} repeats left out")
    lines += [f"  {fraction:6.1%}  {name}" for name, fraction in content["accuracy_of_rules"].items()]
    return "\n".join(lines)

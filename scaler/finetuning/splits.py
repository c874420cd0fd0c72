"""Split files or a Hugging Face data set into training, validation and test examples that share no text."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, count
from pathlib import Path
from typing import Any

import xxhash

from scaler.core import hub
from scaler.core.errors import ScalerError
from scaler.core.files import checksum
from scaler.finetuning import examples as labelled
from scaler.finetuning.examples import MULTILABEL, SENTIMENT, TOKENS, Example, Reading

TRAIN, VALIDATION, TEST = "train", "validation", "test"
SPLIT_SEED = 7  # of the hash that assigns a text to a split


@dataclass(frozen=True)
class Sources:
    """The sources of each split; a split without one is split off the training files.

    Attributes:
        train: files, or the id of a Hugging Face data set.
        validation, test: files.
        percent: the part of the training texts that a split without files gets.
    """

    train: Sequence[str]
    validation: Sequence[str] = ()
    test: Sequence[str] = ()
    percent: Mapping[str, float] = field(default_factory=lambda: {VALIDATION: 10.0, TEST: 10.0})
    hub_config: str | None = None
    hub_revision: str | None = None


@dataclass(frozen=True)
class Splits:
    """The examples of each split, all classes, and notes for a reader of the results.

    Attributes:
        labels: classes in the order of their ids; for sentences all tags, "O" first.
        checksums: XXH3-128 of each file, or of a hub data set's texts, by name.
        notes: a line each.
    """

    examples: dict[str, list[Example]]
    labels: list[str]
    checksums: dict[str, str]
    notes: list[str]


def load(sources: Sources, how: Reading) -> Splits:
    """Read, split and check the examples. Raises ScalerError for whatever would change the meaning of the scores."""
    given = {TRAIN: sources.train, VALIDATION: sources.validation, TEST: sources.test}
    notes: list[str] = []
    if len(sources.train) == 1 and not Path(sources.train[0]).exists():
        examples = _hub(sources, how, notes)
        for split in (VALIDATION, TEST):
            if given[split]:
                examples[split] = _files(given[split], how, notes)
        checksums = {f"{sources.train[0]}/{split}": _digest(of_split) for split, of_split in examples.items()}
    else:
        examples = {split: _files(paths, how, notes) for split, paths in given.items() if paths}
        checksums = {path: checksum(Path(path)) for paths in given.values() for path in paths}
    lacking = {split: sources.percent[split] for split in (VALIDATION, TEST) if not examples.get(split)}
    if lacking:
        examples |= split_off(examples[TRAIN], lacking)
    labels = classes(examples, how.task)
    notes += _remarks(examples)
    return Splits({split: examples[split] for split in given}, labels, checksums, notes)


def _files(paths: Sequence[str], how: Reading, notes: list[str]) -> list[Example]:
    examples = []
    for path in paths:
        of_file, skipped = labelled.read(Path(path), how)
        examples += of_file
        if skipped:
            notes.append(f"{path}: empty texts left out: {skipped:,}")
    return examples


def key(example: Example) -> str:
    """Return a text's form in which case and white space do not count."""
    return " ".join(example.text.casefold().split())


def split_off(examples: Sequence[Example], percent: Mapping[str, float]) -> dict[str, list[Example]]:
    """Assign examples to splits by a hash of their text alone, so that equal texts share a split in any order of files.

    Raises: ScalerError when a split stays empty, or the percentages leave nothing to train on.
    """
    for split, share in percent.items():
        if not 0 < share < 50:
            raise ScalerError(f"--{split}_percent {share}: 0 < share < 50 is needed, or files for --{split}")
    names, bounds = [*percent, TRAIN], list(accumulate(percent.values()))
    splits: dict[str, list[Example]] = {split: [] for split in names}
    for example in examples:
        place = xxhash.xxh3_64_intdigest(key(example).encode(), seed=SPLIT_SEED) / 2**64 * 100
        splits[names[bisect_right(bounds, place)]].append(example)
    for split, of_split in splits.items():
        if not of_split:
            raise ScalerError(
                f"{len(examples)} examples leave none for {split}; name files for it, or raise its percentage"
            )
    return splits


def classes(examples: Mapping[str, Sequence[Example]], task: str) -> list[str]:
    """Return the classes of the training examples in the order of their ids: numbers by size, others by letter.

    Raises: ScalerError for a split with a single class, or a label that does not occur in training.
    """
    labels_of = {
        split: {label for example in of_split for label in example.labels} for split, of_split in examples.items()
    }
    for split, labels in labels_of.items():
        entities = labels - {"O"} if task == TOKENS else labels
        if len(entities) < (1 if task == TOKENS else 2):
            file = examples[split][0].where.rpartition(":")[0]
            only = f"only the class {min(labels)!r}" if labels else "no label at all"
            raise ScalerError(f"{file}: the {split} examples have {only}, but two classes are needed; name other files")
    if task == TOKENS:
        kinds = sorted({label[2:] for label in labels_of[TRAIN] - {"O"}})
        ordered = ["O", *(f"{begin}-{kind}" for kind in kinds for begin in "BI")]
    else:
        numbers = all(label.isdecimal() for label in labels_of[TRAIN])
        ordered = sorted(labels_of[TRAIN], key=lambda label: (int(label) if numbers else 0, label))
    for split, of_split in examples.items():
        for example in of_split:
            for label in sorted(set(example.labels).difference(ordered)):
                raise ScalerError(
                    f"{example.where}: the label {label!r} ({split}) does not occur in training; add examples of it "
                    "there, or take it out"
                )
    if task == SENTIMENT and len(ordered) != 2:
        some_labels = ", ".join(ordered[:5]) + (" ..." if len(ordered) > 5 else "")
        raise ScalerError(
            f"{examples[TRAIN][0].where.rpartition(':')[0]}: {len(ordered)} classes ({some_labels}), but {SENTIMENT} "
            "has two; use --task classification"
        )
    return ordered


def _remarks(examples: Mapping[str, Sequence[Example]]) -> Iterator[str]:
    """Yield notes on what in the data limits the scores."""
    labels_of: dict[str, set[tuple[str, ...]]] = defaultdict(set)
    for of_split in examples.values():
        for example in of_split:
            labels_of[key(example)].add(tuple(sorted(example.labels)) if not example.words else example.labels)
    if contradicted := sum(len(different) > 1 for different in labels_of.values()):
        yield f"texts that occur with different labels: {contradicted:,}; no model can be right about both"
    in_training = {key(example) for example in examples[TRAIN]}
    for split in (VALIDATION, TEST):
        if shared := sum(key(example) in in_training for example in examples[split]):
            yield f"{split} examples that are training examples, too: {shared:,} of {len(examples[split]):,}"


def _hub(sources: Sources, how: Reading, notes: list[str]) -> dict[str, list[Example]]:
    """Return the splits train, validation and test of a Hugging Face data set, as far as it has them."""
    import datasets

    name = sources.train[0]
    commit = hub.commit_of(name, sources.hub_revision)
    try:
        data_set = datasets.load_dataset(name, sources.hub_config, revision=commit)
    except Exception as error:  # the hub client's errors have no common base
        raise hub.unloadable(name, error) from error
    if TRAIN not in data_set:
        only = ", ".join(map(str, data_set))
        raise ScalerError(f"{name}: has no split {TRAIN!r}, only {only}; name another data set")
    examples = {}
    for split in (TRAIN, VALIDATION, TEST):
        if split in data_set:
            examples[split], skipped = labelled.without_empty(
                _of_rows(data_set[split], f"{name}/{split}", how), how, name
            )
            if skipped:
                notes.append(f"{name}/{split}: empty texts left out: {skipped:,}")
    return examples


def _of_rows(rows: Any, where: str, how: Reading) -> Iterator[Example]:
    """Yield the rows of a data set as examples; classes that it keeps as numbers get their names."""
    label_field = how.fields[1]
    kind = rows.features.get(label_field)
    several = how.task in (TOKENS, MULTILABEL)
    names = getattr(getattr(kind, "feature", None) if several else kind, "names", None)
    for number, row in zip(count(), rows, strict=False):
        record = dict(row)
        if names and label_field in record:
            ids = (record[label_field] or []) if several else [record[label_field]]
            # -1 and None are "unknown" there
            named = [names[i] if i is not None and 0 <= i < len(names) else "" for i in ids]
            record[label_field] = named if several else named[0]
        yield labelled.of_record(record, f"{where}:{number}", how)


def _digest(examples: Sequence[Example]) -> str:
    """Return the XXH3-128 of texts and labels, in their order."""
    state = xxhash.xxh3_128()
    for example in examples:
        state.update("\0".join((example.text, *example.labels, "\n")).encode())
    return state.hexdigest()

"""Score predictions: accuracy and F1 of classes, F1 of several labels, F1 of entities."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaler.finetuning.examples import MULTILABEL, TOKENS, Example
from scaler.finetuning.features import Encoded

# the score that chooses epoch, learning rate and model
CHOSEN_BY = {MULTILABEL: "micro_f1", TOKENS: "entity_f1"}  # others: "accuracy"


def chosen_by(task: str) -> str:
    """Return the name of the score that chooses the model of a task."""
    return CHOSEN_BY.get(task, "accuracy")


def predicted(logits: NDArray[Any], encoded: Encoded, labels: Sequence[str], task: str) -> list[tuple[str, ...]]:
    """Return the predicted labels of each text, or of each sentence the tags of all words.

    A word has the tag of its first piece; without a piece "O".

    Args:
        logits: (texts, labels); of sentences (sentences, pieces, labels); in the order of `encoded`.
    """
    if task == TOKENS:
        best = logits.argmax(-1)  # (sentences, pieces)
        return [
            tuple("O" if piece is None else labels[best[number, piece]] for piece in pieces)
            for number, pieces in enumerate(encoded.first_pieces)
        ]
    if task == MULTILABEL:  # a sigmoid above one half
        return [tuple(label for label, value in zip(labels, row, strict=True) if value > 0) for row in logits]
    return [(labels[number],) for number in logits.argmax(-1)]


def score(
    examples: Sequence[Example], predictions: Sequence[tuple[str, ...]], labels: Sequence[str], task: str
) -> dict[str, float]:
    """Return the scores of predictions, all in [0, 1].

    An entity is right as in seqeval's strict mode over IOB2: its type and both ends are right. A predicted I- without
    its B- is no entity. Macro F1 is the mean over all classes; it is 0 for a class that is neither present nor
    predicted.
    """
    from sklearn.metrics import accuracy_score, f1_score

    gold = [example.labels for example in examples]
    if task == TOKENS:
        return _entities(gold, predictions)
    if task == MULTILABEL:
        marked = [_marked(of_all, labels) for of_all in (gold, predictions)]
        kinds = ("micro", "macro")
        averaged = {f"{kind}_f1": float(f1_score(*marked, average=kind, zero_division=0)) for kind in kinds}
        return {**averaged, "exact": float(accuracy_score(*marked))}
    truth, guess = ([labels_of_text[0] for labels_of_text in of_all] for of_all in (gold, predictions))
    return {
        "accuracy": float(accuracy_score(truth, guess)),
        "macro_f1": float(f1_score(truth, guess, labels=list(labels), average="macro", zero_division=0)),
    }


def _marked(many: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return which labels each text has: (texts, labels)."""
    return np.array([[label in labels_of_text for label in labels] for labels_of_text in many])


def _entities(gold: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]]) -> dict[str, float]:
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(tags) for tags in gold],
        [list(tags) for tags in predictions],
        average="micro", scheme=IOB2, zero_division=0,
    )  # fmt: skip
    right = sum(a == b for some, other in zip(gold, predictions, strict=True) for a, b in zip(some, other, strict=True))
    return {
        "entity_f1": float(f1),
        "entity_precision": float(precision),
        "entity_recall": float(recall),
        "word_accuracy": right / sum(map(len, gold)),
    }


def without_learning(
    train: Sequence[Example], test: Sequence[Example], labels: Sequence[str], task: str
) -> dict[str, float]:
    """Return the scores of a constant answer: the most common labels of training; for a word, its most common tag."""
    if task == TOKENS:
        of_word: dict[str, Counter[str]] = defaultdict(Counter)
        for example in train:
            for word, tag in zip(example.words, example.labels, strict=True):
                of_word[word][tag] += 1
        commonest = {word: tags.most_common(1)[0][0] for word, tags in of_word.items()}
        return score(test, [tuple(commonest.get(w, "O") for w in example.words) for example in test], labels, task)
    ((most, _),) = Counter(tuple(sorted(example.labels)) for example in train).most_common(1)
    return score(test, [most] * len(test), labels, task)


def confusion(
    examples: Sequence[Example], predictions: Sequence[tuple[str, ...]], labels: Sequence[str], task: str
) -> tuple[list[list[int]], list[str]]:
    """Return a matrix of counts, a row for each label, and the names of its columns.

    The columns are the predicted labels; with several labels per text: found, missed, wrongly found.
    """
    from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

    gold = [example.labels for example in examples]
    if task == MULTILABEL:
        counts = multilabel_confusion_matrix(
            *(_marked(many, labels) for many in (gold, predictions))
        )  # (labels, 2, 2): [[tn, fp], [fn, tp]]
        return np.stack([counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1]], 1).tolist(), ["found", "missed", "wrong"]
    truth, guess = ([label for some in many for label in some] for many in (gold, predictions))
    return confusion_matrix(truth, guess, labels=list(labels)).tolist(), list(labels)

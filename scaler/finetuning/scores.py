"""What predictions are worth: accuracy and F1 of classes, F1 of several labels, F1 of entities."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaler.finetuning.examples import MULTILABEL, TOKENS, Example
from scaler.finetuning.features import Encoded

# the score that chooses epoch, learning rate and model, and what it is called for people
CHOSEN_BY = {MULTILABEL: "micro_f1", TOKENS: "entity_f1"}  # others: "accuracy"


def chosen_by(task: str) -> str:
    """The name of the score that a task is chosen by."""
    return CHOSEN_BY.get(task, "accuracy")


def tags_of(logits: NDArray[Any], encoded: Encoded, labels: Sequence[str]) -> list[list[str]]:
    """The predicted tag of every word, from its first piece; "O" for one without a piece.

    Args:
        logits: (sentences, pieces, labels), sentences in the order of `encoded`.
    """
    best = logits.argmax(-1)  # (sentences, pieces)
    return [
        ["O" if piece is None else labels[best[number, piece]] for piece in pieces]
        for number, pieces in enumerate(encoded.first_pieces)
    ]


def predicted(logits: NDArray[Any], encoded: Encoded, labels: Sequence[str], task: str) -> list[tuple[str, ...]]:
    """The labels of each text, or the tags of each sentence, that a model's logits mean."""
    if task == TOKENS:
        return [tuple(tags) for tags in tags_of(logits, encoded, labels)]
    if task == MULTILABEL:  # a sigmoid above one half
        return [tuple(label for label, value in zip(labels, row, strict=True) if value > 0) for row in logits]
    return [(labels[number],) for number in logits.argmax(-1)]


def score(
    examples: Sequence[Example], found: Sequence[tuple[str, ...]], labels: Sequence[str], task: str
) -> dict[str, float]:
    """Scores of predictions, all in [0, 1].

    Entities count as seqeval's strict mode over IOB2 does: the right type, and both ends right; a predicted I- without
    its B- is none. Macro F1 is the mean over all classes, 0 for one that is neither there nor predicted.
    """
    from sklearn.metrics import accuracy_score, f1_score

    gold = [example.labels for example in examples]
    if task == TOKENS:
        return _entities(gold, found)
    if task == MULTILABEL:
        truth, guess = (_marked(many, labels) for many in (gold, found))
        averaged = {f"{kind}_f1": f1_score(truth, guess, average=kind, zero_division=0) for kind in ("micro", "macro")}
        return {
            **{name: float(value) for name, value in averaged.items()},
            "exact": float(accuracy_score(truth, guess)),
        }
    right, said = ([some[0] for some in many] for many in (gold, found))
    return {
        "accuracy": float(accuracy_score(right, said)),
        "macro_f1": float(f1_score(right, said, labels=list(labels), average="macro", zero_division=0)),
    }


def _marked(many: Sequence[Sequence[str]], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Which labels each text has: (texts, labels)."""
    return np.array([[label in some for label in labels] for some in many])


def _entities(gold: Sequence[Sequence[str]], found: Sequence[Sequence[str]]) -> dict[str, float]:
    from seqeval.metrics.v1 import precision_recall_fscore_support
    from seqeval.scheme import IOB2

    precision, recall, f1, _ = precision_recall_fscore_support(
        [list(tags) for tags in gold],
        [list(tags) for tags in found],
        average="micro", scheme=IOB2, zero_division=0,
    )  # fmt: skip
    right = sum(a == b for some, other in zip(gold, found, strict=True) for a, b in zip(some, other, strict=True))
    return {
        "entity_f1": float(f1),
        "entity_precision": float(precision),
        "entity_recall": float(recall),
        "word_accuracy": right / sum(map(len, gold)),
    }


def without_learning(
    train: Sequence[Example], test: Sequence[Example], labels: Sequence[str], task: str
) -> dict[str, float]:
    """The scores of always saying what is most common in training: of texts; of a word, its own commonest tag."""
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
    examples: Sequence[Example], found: Sequence[tuple[str, ...]], labels: Sequence[str], task: str
) -> tuple[list[list[int]], list[str]]:
    """A matrix of counts, a row for each label, and what its columns are.

    Of one class a text, and of words' tags: the predicted label. Of several labels: found, missed, wrongly found.
    """
    from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

    gold = [example.labels for example in examples]
    if task == MULTILABEL:
        counts = multilabel_confusion_matrix(
            *(_marked(many, labels) for many in (gold, found))
        )  # (labels, 2, 2): [[tn, fp], [fn, tp]]
        return np.stack([counts[:, 1, 1], counts[:, 1, 0], counts[:, 0, 1]], 1).tolist(), ["found", "missed", "wrong"]
    right, said = ([label for some in many for label in some] for many in (gold, found))
    return confusion_matrix(right, said, labels=list(labels)).tolist(), list(labels)

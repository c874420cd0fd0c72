"""Turn texts into token ids, and choose the piece of each word that carries the word's tag."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from scaler.core.errors import ScalerError
from scaler.finetuning.examples import MULTILABEL, TOKENS, Example

NO_LABEL = -100  # what torch's cross-entropy leaves out


@dataclass(frozen=True)
class Encoded:
    """A split as model input.

    Attributes:
        rows: input_ids, attention_mask ... and labels of each example.
        first_pieces: for each word of each sentence the position of its first piece; None for a word that was cut
            off, or for which the tokenizer returns no piece. Empty for texts.
        cut: number of examples that were longer than the model takes.
    """

    rows: list[dict[str, Any]]
    first_pieces: list[list[int | None]]
    cut: int

    @property
    def lost_words(self) -> int:
        """Return the number of words without a piece."""
        return sum(piece is None for pieces in self.first_pieces for piece in pieces)


def encode(examples: Sequence[Example], tokenizer: Any, labels: Sequence[str], task: str, max_length: int) -> Encoded:
    """Tokenize and label; longer texts keep their first `max_length` tokens, special ones included.

    A sentence is tokenized as a text, words with one space between, as in pretraining and in Transformers' pipeline.

    Raises: ScalerError for a text for which the tokenizer returns no piece.
    """
    ids = {label: number for number, label in enumerate(labels)}
    tokenized = tokenizer([example.text for example in examples], truncation=True, max_length=max_length)
    rows, first_pieces, cut = [], [], 0
    for number, (example, encoding) in enumerate(zip(examples, tokenized.encodings, strict=True)):
        if all(encoding.special_tokens_mask):
            raise ScalerError(f"{example.where}: the tokenizer returns nothing for {example.text[:40]!r}; take it out")
        cut += bool(encoding.overflowing)
        row = {name: values[number] for name, values in tokenized.items()}
        if task == TOKENS:
            pieces = align(example.words, encoding.offsets, encoding.special_tokens_mask)
            first_pieces.append(pieces)
            row["labels"] = [NO_LABEL] * len(encoding.ids)
            for tag, piece in zip(example.labels, pieces, strict=True):
                if piece is not None:
                    row["labels"][piece] = ids[tag]
        elif task == MULTILABEL:
            row["labels"] = [float(label in example.labels) for label in labels]
        else:
            row["labels"] = ids[example.labels[0]]
        rows.append(row)
    return Encoded(rows, first_pieces, cut)


def align(words: Sequence[str], offsets: Sequence[tuple[int, int]], special: Sequence[int]) -> list[int | None]:
    """Return the position of each word's first piece; None without a piece.

    Args:
        words: joined by one space they are the text that was tokenized.
        offsets: characters [begin, end) of each piece in that text; a space before a word may be among them.
        special: 1 for pieces that represent none of the text.
    """
    starts = [0, *accumulate(len(word) + 1 for word in words[:-1])]
    text = " ".join(words)
    pieces: list[int | None] = [None] * len(words)
    for piece, ((begin, end), is_special) in enumerate(zip(offsets, special, strict=True)):
        letters = text[begin:end].lstrip()
        if is_special or not letters:
            continue
        word = bisect_right(starts, end - len(letters)) - 1
        if pieces[word] is None:
            pieces[word] = piece
    return pieces

"""Compare masked language models of any vocabulary on the same hidden words.

A masked-LM loss is measured per token, and another vocabulary has other tokens. So each model reads the same passages
with the same words hidden, however its tokenizer splits them.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
import zstandard
from transformers import PreTrainedModel

from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import write_json
from scaler.core.words import spans
from scaler.data.batches import Batch
from scaler.data.tokenizer import load_tokenizer
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.model import exported, parameters
from scaler.model.build import first_position, positions
from scaler.model.masked_lm import MaskedLM

WORDS = 60  # of a passage: some 100 tokens, which all models can take
HIDDEN_FRACTION = 0.15  # of the words, as of tokens in training (Devlin et al. 2019)
ROWS = 16  # passages at once


@dataclass(frozen=True)
class Passage:
    """Some words of a document, and the places of the hidden ones in it: (begin, end) in characters."""

    text: str
    hidden: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class HiddenWords:
    """A model's score on the hidden words.

    Attributes:
        words: number of hidden words.
        right: fraction of them of which every token was the model's first guess.
        loss_per_character: cross-entropy of their tokens in nats, each guessed by itself, per character.
        tokens_per_word: tokens of the model's vocabulary per hidden word.
        unknown: fraction of the words that the vocabulary cannot spell; they count as wrong.
    """

    words: int
    right: float
    loss_per_character: float
    tokens_per_word: float
    unknown: float


def passages(texts: Iterable[str]) -> Iterator[Passage]:
    """Cut documents into passages, and hide words by a hash of text and place; shorter remainders are dropped."""
    for text in texts:
        words = list(spans(text))
        for first in range(0, len(words) - WORDS + 1, WORDS):
            begin, end = words[first][0], words[first + WORDS - 1][1]
            part = text[begin:end]
            seed = xxhash.xxh3_64_intdigest(part.encode())
            drawn = ((xxhash.xxh3_64_intdigest(bytes([place]), seed=seed), place) for place in range(WORDS))
            places = sorted(place for _, place in sorted(drawn)[: round(WORDS * HIDDEN_FRACTION)])
            hidden = (words[first + place] for place in places)
            yield Passage(part, tuple((start - begin, stop - begin) for start, stop in hidden))


def encoded(passage: Passage, tokenizer: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Tokenize a passage, unmasked; return ids, and (place of the token, number of its word) of each token to guess."""
    found = tokenizer(passage.text, return_offsets_mapping=True, verbose=False)
    places = []
    for place, (begin, end) in enumerate(found["offset_mapping"]):
        for number, (start, stop) in enumerate(passage.hidden):
            if begin < stop and end > start:
                places.append((place, number))
    return found["input_ids"], places


def fits(passage: Passage, network: PreTrainedModel, tokenizer: Any) -> bool:
    """Return whether the model has positions for all tokens of a passage."""
    most = positions(network.config)
    return most is None or len(encoded(passage, tokenizer)[0]) <= most


def measure(network: PreTrainedModel, tokenizer: Any, texts: Iterable[Passage]) -> HiddenWords:
    """Let a model guess the hidden words of passages that it has positions for; it is switched to evaluation."""
    rows = [(passage, *encoded(passage, tokenizer)) for passage in texts]
    masked_lm = MaskedLM(network.eval())
    words = right = tokens = unknown = characters = 0
    loss = 0.0
    rows.sort(key=lambda row: len(row[1]))  # so that a batch has little padding
    for start in range(0, len(rows), ROWS):
        some = rows[start : start + ROWS]
        losses, is_right = _guessed(masked_lm, tokenizer, [(ids, places) for _, ids, places in some])
        loss += sum(map(sum, losses))
        for (passage, ids, places), guesses in zip(some, is_right, strict=True):
            spelt = {number for _, number in places}
            spelt -= {number for place, number in places if ids[place] == tokenizer.unk_token_id}
            wrong = {number for (_, number), well in zip(places, guesses, strict=True) if not well}
            words += len(passage.hidden)
            unknown += len(passage.hidden) - len(spelt)
            right += len(spelt - wrong)
            tokens += len(places)
            characters += sum(stop - begin for begin, stop in passage.hidden)
    count = max(1, words)
    return HiddenWords(words, right / count, loss / max(1, characters), tokens / count, unknown / count)


def _guessed(
    masked_lm: MaskedLM, tokenizer: Any, rows: Sequence[tuple[list[int], list[tuple[int, int]]]]
) -> tuple[list[list[float]], list[list[bool]]]:
    """Return the cross-entropy of each token to guess, and whether it was the first guess, row by row."""
    length, most = max(len(ids) for ids, _ in rows), max(len(places) for _, places in rows)
    config = masked_lm.model.config
    ids = torch.full((len(rows), length), int(tokenizer.pad_token_id))
    segments = torch.zeros_like(ids)
    masked, labels = torch.zeros(len(rows), most, dtype=torch.int64), torch.zeros(len(rows), most, dtype=torch.int64)
    for row, (tokens, places) in enumerate(rows):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        segments[row, : len(tokens)] = 1
        where = torch.tensor([place for place, _ in places])
        masked[row, : len(places)] = where
        labels[row, : len(places)] = ids[row, where]
        ids[row, where] = int(tokenizer.mask_token_id)
    batch = Batch.of_documents(ids, segments, masked, labels, first_position(config))
    with torch.no_grad():
        _, scores = masked_lm(batch.to(masked_lm.model.device))
    assert scores is not None  # in evaluation
    losses = scores.losses.view(len(rows), most).tolist()
    well = (scores.guesses[:, 0].cpu() == labels.flatten()).view(len(rows), most).tolist()
    counts = [len(places) for _, places in rows]
    return (
        [row[:count] for row, count in zip(losses, counts, strict=True)],
        [row[:count] for row, count in zip(well, counts, strict=True)],
    )


def read_texts(files: Sequence[Path], most: int) -> Iterator[str]:
    """Read the first documents of JSON lines with a field "text", plain or zstd, as data preparation writes them.

    Raises: ScalerError for a file without them.
    """
    left = most
    for path in files:
        try:
            with path.open("rb") as file:
                raw = zstandard.ZstdDecompressor().stream_reader(file) if path.suffix == ".zst" else file
                for line in io.TextIOWrapper(raw, encoding="utf-8"):
                    if left == 0:
                        return
                    yield str(json.loads(line)["text"]).encode(errors="replace").decode()
                    left -= 1
        except (OSError, ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
            reason = " ".join(str(error).split())
            raise ScalerError(f'{path}: not JSON lines with a "text" ({reason}); name such files') from error


def load_masked_lm(folder: Path) -> tuple[PreTrainedModel, Any]:
    """Load a masked LM and its tokenizer. Raises ScalerError when they cannot be loaded."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise ScalerError(f"{folder}: its tokenizer has no mask or no pad token; name a masked LM")
    return exported.load_whole(folder), tokenizer


def render(content: Sequence[dict[str, Any]]) -> str:
    """Format the figures as a Markdown table with a row for each model."""
    tasks = list(dict.fromkeys(task for row in content for task in row["finetuned"]))
    head = ["model", "parameters", "entries", "tokens a word", "unknown words", "nats a character"]
    lines = [[*head, "hidden words right", *tasks]]
    for row in content:
        lines.append(
            [
                *(row["model"], f"{row['parameters']:,}", f"{row['entries']:,}", f"{row['tokens_per_word']:.3f}"),
                *(f"{row['unknown']:.2%}", f"{row['loss_per_character']:.4f}", f"{row['right']:.2%}"),
                *(_format_score(row["finetuned"].get(task)) for task in tasks),
            ]
        )
    lines.insert(1, ["---"] * len(lines[0]))
    first = content[0]
    return "\n".join(
        [
            f"{first['words']:,} hidden words, the same for all; each token of a word is guessed by itself. "
            f"{first['left_out']:,} passages were too long for some model.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
        ]
    )


def _format_score(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    deviation = score["deviation"]
    return f"{score['mean']:.2%}" if deviation is None else f"{score['mean']:.2%} ± {deviation:.2%}"


def run(arguments: argparse.Namespace, folders: Sequence[Path], scores: Mapping[Path, Any]) -> None:
    """Compare the models of a command line, and print the table.

    Args:
        folders: of the exported models, in the order in which they were named.
        scores: of each of them, the scores of its fine-tunings.
    """
    found = list(passages(read_texts(arguments.texts, arguments.most)))
    models = [load_masked_lm(folder) for folder in folders]
    short = [some for some in found if all(fits(some, *loaded) for loaded in models)]
    if not short:
        raise ScalerError(
            f"--texts: no passage of {WORDS} words in them that all models can take; name longer ones, or "
            "leave a model of few positions out"
        )
    world, content = World(), []
    for name, folder, (network, tokenizer) in zip(arguments.models, folders, models, strict=True):
        score = measure(network.to(devices.device(world)), tokenizer, short)
        row = {"model": str(name), "parameters": parameters.count_parameters(network)[0], "entries": len(tokenizer)}
        content.append({**row, **asdict(score), "finetuned": scores[folder], "left_out": len(found) - len(short)})
    # first, because the disk may refuse the file
    print(json.dumps(content, indent=2) if arguments.json else render(content), flush=True)
    if arguments.out:
        with explain_disk_errors(arguments.out):
            write_json(arguments.out, content)

"""Compare masked language models of any vocabulary on the same hidden words."""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zstandard
from transformers import PreTrainedModel

from scaler.core.errors import ScalerError
from scaler.core.files import write_json
from scaler.data.tokenizer import load_tokenizer
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.evaluation import masked_words
from scaler.model import exported, parameters


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
    passages = list(masked_words.passages(read_texts(arguments.texts, arguments.most)))
    models = [load_masked_lm(folder) for folder in folders]
    short = [some for some in passages if all(masked_words.fits(some, *loaded) for loaded in models)]
    if not short:
        raise ScalerError(
            f"--texts: no passage of {masked_words.WORDS} words in them that all models can take; name longer ones, or "
            "leave a model of few positions out"
        )
    world, content = World(), []
    for name, folder, (network, tokenizer) in zip(arguments.models, folders, models, strict=True):
        found = masked_words.measure(network.to(devices.device(world)), tokenizer, short)
        row = {"model": str(name), "parameters": parameters.count_parameters(network)[0], "entries": len(tokenizer)}
        content.append({**row, **asdict(found), "finetuned": scores[folder], "left_out": len(passages) - len(short)})
    if arguments.out:
        write_json(arguments.out, content)
    print(json.dumps(content, indent=2) if arguments.json else render(content))

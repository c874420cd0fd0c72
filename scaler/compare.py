"""Models of any vocabulary side by side: `python -m scaler.compare runs/A runs/B --texts data/R/dedup/test-*`.

Each guesses the same hidden words of the same texts; of fine-tunings named by --finetuned the score on their test
examples is added. An uncased model has the easier words: it need not guess capitals and accents.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import zstandard
from transformers import PreTrainedModel

from scaler import evaluate
from scaler.core.errors import ScalerError, command
from scaler.core.files import write_json
from scaler.data.prepared import load_tokenizer
from scaler.distributed import world as world_facts
from scaler.evaluation import masked_words
from scaler.fill_mask import find_export
from scaler.finetuning import folder as finetune_folder
from scaler.model import build as model


def read_texts(files: Sequence[Path], most: int) -> Iterator[str]:
    """The first documents of JSON lines with a field "text", plain or zstd, as data preparation leaves them.

    Raises: ScalerError for a file that is none.
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
    """A masked LM and its tokenizer. Raises ScalerError when they cannot be loaded."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise ScalerError(f"{folder}: its tokenizer has no mask or no pad token; name a masked LM")
    return evaluate.load_whole(folder), tokenizer


def of_finetunings(folders: Sequence[Path], models: Sequence[Path]) -> dict[Path, dict[str, dict[str, Any]]]:
    """Test scores of fine-tunings by model and data: mean and deviation over their seeds.

    Raises: ScalerError for a folder without results, or of another model.
    """
    scores: dict[Path, dict[str, dict[str, Any]]] = {path: {} for path in models}
    for folder in folders:
        try:
            content = json.loads((folder / finetune_folder.RESULTS).read_text(encoding="utf-8"))
            settings, name = content["settings"], content["chosen_by"]
            origin, score = Path(settings["model"]).resolve(), content["test"][name]
            task = "/".join(Path(next(iter(settings["data"]))).parts[-2:])  # the first file of training
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            problem = f"{folder}: no {finetune_folder.RESULTS} of a finished fine-tuning in it; finish it first"
            raise ScalerError(problem) from error
        if origin not in scores:
            raise ScalerError(f"{folder}: fine-tuned from {settings['model']}, which is not among the models")
        column = f"{task}{' from scratch' * bool(settings['from_scratch'])}, {name.replace('_', ' ')}"
        if column in scores[origin]:
            raise ScalerError(f"{folder}: {settings['model']} has a fine-tuning on {task} already; name one of the two")
        scores[origin][column] = score
    return scores


def render(content: Sequence[dict[str, Any]]) -> str:
    """The table, in Markdown: a line a model."""
    tasks = list(dict.fromkeys(task for row in content for task in row["finetuned"]))
    head = ["model", "parameters", "entries", "tokens a word", "unknown words", "nats a character"]
    lines = [[*head, "hidden words right", *tasks]]
    for row in content:
        lines.append(
            [
                *(row["model"], f"{row['parameters']:,}", f"{row['entries']:,}", f"{row['tokens_per_word']:.3f}"),
                *(f"{row['unknown']:.2%}", f"{row['loss_per_character']:.4f}", f"{row['right']:.2%}"),
                *(_said(row["finetuned"].get(task)) for task in tasks),
            ]
        )
    lines.insert(1, ["---"] * len(lines[0]))
    first = content[0]
    return "\n".join(
        [
            f"{first['words']:,} hidden words, the same for all; each token of a word is guessed by itself. "
            f"{first['left_out']:,} stretches of text were too long for some model.",
            "",
            *("| " + " | ".join(line) + " |" for line in lines),
        ]
    )


def _said(score: dict[str, Any] | None) -> str:
    if score is None:
        return "-"
    deviation = score["deviation"]
    return f"{score['mean']:.2%}" if deviation is None else f"{score['mean']:.2%} ± {deviation:.2%}"


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="runs, their exports, or Transformers folders")
    parser.add_argument(
        "--texts", nargs="+", type=Path, required=True, help="that none was trained on: .jsonl, .jsonl.zst"
    )
    parser.add_argument("--most", type=int, default=2000, help="documents that are read (2,000)")
    parser.add_argument("--finetuned", nargs="+", type=Path, default=[], help="folders of scaler.finetune")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    folders = [find_export(path).resolve() for path in arguments.models]
    scores = of_finetunings(arguments.finetuned, folders)
    stretches = list(masked_words.stretches(read_texts(arguments.texts, arguments.most)))
    models = [load_masked_lm(folder) for folder in folders]
    short = [some for some in stretches if all(masked_words.fits(some, *loaded) for loaded in models)]
    if not short:
        raise ScalerError(
            f"--texts: no stretch of {masked_words.WORDS} words in them that all models can take; name longer ones, or "
            "leave a model of few positions out"
        )
    here, content = world_facts.World(), []
    for asked, folder, (network, tokenizer) in zip(arguments.models, folders, models, strict=True):
        found = masked_words.measure(network.to(world_facts.device(here)), tokenizer, short)
        row = {"model": str(asked), "parameters": model.count_parameters(network)[0], "entries": len(tokenizer)}
        content.append({**row, **asdict(found), "finetuned": scores[folder], "left_out": len(stretches) - len(short)})
    if arguments.out:
        write_json(arguments.out, content)
    print(render(content))


if __name__ == "__main__":
    main()

"""Models of any vocabulary side by side: `python -m scaler.compare runs/A runs/B --texts data/R/dedup/test-*`.

Each guesses the same hidden words of the same texts; of their runs the size, the vocabulary and the held-out loss are
added, and of fine-tunings named by --finetuned the score on their test examples.
"""

from __future__ import annotations

import argparse
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import zstandard
from transformers import AutoModelForMaskedLM
from transformers.utils.logging import disable_progress_bar

from scaler import masked_words, metrics, model, sweep_folder
from scaler import world as world_facts
from scaler.errors import ScalerError, command
from scaler.fill_mask import find_export
from scaler.manifests import write_json
from scaler.prepared import load_tokenizer

disable_progress_bar()  # of loading weights


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
                    yield str(json.loads(line)["text"])
                    left -= 1
        except (OSError, ValueError, KeyError, TypeError, zstandard.ZstdError) as error:
            reason = " ".join(str(error).split())
            raise ScalerError(f'{path}: not JSON lines with a "text" ({reason}); name such files') from error


def of_model(folder: Path, texts: Sequence[str]) -> dict[str, Any]:
    """What a model makes of the hidden words, and how large it is. Raises ScalerError when it cannot be loaded."""
    tokenizer = load_tokenizer(folder)
    if tokenizer.mask_token_id is None or tokenizer.pad_token_id is None:
        raise ScalerError(f"{folder}: its tokenizer has no mask or no pad token; name a masked LM")
    try:
        network = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=model.ATTENTION,
            dtype=torch.float32,
        )
    except Exception as error:  # of many kinds, for a configuration or weights that are damaged or of another kind
        reason = " ".join(str(error).split())[:300]
        raise ScalerError(f"{folder}: no masked LM that Transformers loads from safetensors ({reason})") from error
    here = world_facts.World()
    found = masked_words.measure(network.to(world_facts.device(here)), tokenizer, texts)
    parameters, _ = model.count_parameters(network)
    return {"parameters": parameters, "entries": len(tokenizer), **asdict(found)}


def of_run(folder: Path) -> dict[str, Any]:
    """The last step and held-out loss of the run that a model was exported by, if it lies in one."""
    logged = [record for record in metrics.records(folder.parent / metrics.METRICS) if "heldout_loss" in record]
    return {"step": logged[-1]["step"], "heldout_loss": logged[-1]["heldout_loss"]} if logged else {}


def of_finetunings(folders: Sequence[Path], models: Sequence[Path]) -> dict[Path, dict[str, dict[str, Any]]]:
    """Test scores of fine-tunings by model and data: mean and deviation over their seeds.

    Raises: ScalerError for a folder without results, or of another model.
    """
    scores: dict[Path, dict[str, dict[str, Any]]] = {path: {} for path in models}
    for folder in folders:
        try:
            content = json.loads((folder / sweep_folder.RESULTS).read_text(encoding="utf-8"))
            settings, name = content["settings"], content["chosen_by"]
            origin, score = Path(settings["model"]).resolve(), content["test"][name]
            task = "/".join(Path(next(iter(settings["data"]))).parts[-2:])  # the first file of training
        except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
            problem = f"{folder}: no {sweep_folder.RESULTS} of a finished fine-tuning in it; finish it first"
            raise ScalerError(problem) from error
        if origin not in scores:
            raise ScalerError(f"{folder}: fine-tuned from {settings['model']}, which is not among the models")
        scratch = " from scratch" * bool(settings["from_scratch"])
        scores[origin][f"{task}{scratch}, {name.replace('_', ' ')}"] = score
    return scores


def render(content: Sequence[dict[str, Any]]) -> str:
    """The table, in Markdown: a line a model."""
    tasks = list(dict.fromkeys(task for row in content for task in row["finetuned"]))
    head = ["model", "parameters", "entries", "tokens a word", "unknown words", "held-out loss", "nats a character"]
    lines = [[*head, "hidden words right", *tasks]]
    for row in content:
        loss = f"{row['heldout_loss']:.3f} at step {row['step']:,}" if "heldout_loss" in row else "-"
        lines.append(
            [
                *(row["model"], f"{row['parameters']:,}", f"{row['entries']:,}", f"{row['tokens_per_word']:.3f}"),
                *(f"{row['unknown']:.2%}", loss, f"{row['loss_per_character']:.4f}", f"{row['right']:.2%}"),
                *(_said(row["finetuned"].get(task)) for task in tasks),
            ]
        )
    lines.insert(1, ["---"] * len(lines[0]))
    first = content[0]
    return "\n".join(
        [
            f"{first['words']:,} hidden words of the same texts; each token of a word is guessed by itself.",
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
    texts = list(read_texts(arguments.texts, arguments.most))
    content = []
    for asked, folder in zip(arguments.models, folders, strict=True):
        content.append({"model": str(asked), **of_model(folder, texts), **of_run(folder), "finetuned": scores[folder]})
    row = max(content, key=lambda row: row["too_long"])
    each = f"stretches of {masked_words.WORDS} words"
    if not any(row["words"] for row in content):
        raise ScalerError(
            f"--texts: {len(texts)} documents hold no {each} that these models can take; name longer ones"
        )
    if len({row["words"] for row in content}) > 1:
        raise ScalerError(
            f"{row['model']}: {row['too_long']} {each} are too long for it, and models are compared on the same words; "
            "leave it out"
        )
    if arguments.out:
        write_json(arguments.out, content)
    print(render(content))


if __name__ == "__main__":
    main()

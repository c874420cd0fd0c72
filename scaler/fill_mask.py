"""Fill the mask in a sentence with an exported model: `python -m scaler.fill_mask runs/quickstart "... <mask> ..."`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.core.errors import ScalerError, command
from scaler.data.prepared import load_tokenizer

disable_progress_bar()
EXAMPLES = (
    "The Amazon Resource Name (ARN) of the <mask>.",
    "The name of the S3 <mask> where the results are stored.",
    "You do not have permission to perform this <mask>.",
)


def find_export(path: Path) -> Path:
    """The export folder that `path` is or contains; of several runs, the newest. Raises ScalerError if none."""
    for candidate in (path, path / "export"):
        if (candidate / "config.json").is_file():
            return candidate
    runs = sorted(path.glob("*/export/config.json"), key=lambda config: config.stat().st_mtime)
    if runs:
        return runs[-1].parent
    raise ScalerError(f"{path}: no exported model here; `make pretrain` makes one in runs/quickstart")


def guesses(model: PreTrainedModel, tokenizer: Any, sentence: str, top: int) -> list[list[tuple[str, float]]]:
    """The `top` likeliest tokens and their probabilities for each mask of a sentence."""
    sentence = sentence.replace("<mask>", tokenizer.mask_token)
    inputs = tokenizer(sentence, return_tensors="pt")
    masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    if not len(masks):
        raise ScalerError(f"{sentence!r} has no <mask>; write one where a word is to be guessed")
    with torch.no_grad():
        probabilities = model(input_ids=inputs["input_ids"]).logits[0, masks].softmax(-1)
    best = probabilities.topk(top)
    return [
        [(tokenizer.decode([int(token)]).strip(), float(share)) for share, token in zip(shares, tokens, strict=True)]
        for shares, tokens in zip(best.values, best.indices, strict=True)
    ]


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scaler.fill_mask", description=__doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, default=Path("runs"), help="a run, an export, or a folder of runs"
    )
    parser.add_argument("sentence", nargs="*", help="sentences with <mask>; without one, some examples")
    parser.add_argument("--top", type=int, default=5, help="guesses for each mask (5)")
    arguments = parser.parse_args()
    folder = find_export(arguments.model)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True).eval()
    print(folder)
    for sentence in arguments.sentence or EXAMPLES:
        print(f"\n  {sentence}")
        for mask in guesses(model, tokenizer, sentence, arguments.top):
            print("    " + "   ".join(f"{word!r} {share:.0%}" for word, share in mask))


if __name__ == "__main__":
    main()

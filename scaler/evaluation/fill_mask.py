"""Guess the masked words of a sentence with an exported model."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.core.errors import ScalerError
from scaler.data.tokenizer import load_tokenizer
from scaler.model.exported import find_newest

disable_progress_bar()
EXAMPLES = (
    "The Amazon Resource Name (ARN) of the <mask>.",
    "The name of the S3 <mask> where the results are stored.",
    "You do not have permission to perform this <mask>.",
)


def guesses(model: PreTrainedModel, tokenizer: Any, sentence: str, top: int) -> list[list[tuple[str, float]]]:
    """Return the `top` likeliest tokens and their probabilities for each mask of a sentence.

    Raises: ScalerError when the sentence has no mask.
    """
    sentence = sentence.replace("<mask>", tokenizer.mask_token)
    inputs = tokenizer(sentence, return_tensors="pt")
    masks = (inputs["input_ids"][0] == tokenizer.mask_token_id).nonzero().flatten()
    if not len(masks):
        raise ScalerError(f"{sentence!r} has no <mask>; write one where a word is to be guessed")
    with torch.no_grad():
        probabilities = model(input_ids=inputs["input_ids"]).logits[0, masks].softmax(-1)
    best = probabilities.topk(top)
    return [
        [
            (tokenizer.decode([int(token)]).strip(), float(probability))
            for probability, token in zip(some, tokens, strict=True)
        ]
        for some, tokens in zip(best.values, best.indices, strict=True)
    ]


def run(arguments: argparse.Namespace) -> None:
    """Load a model, and print its guesses for each mask of each sentence."""
    folder = find_newest(arguments.model)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True).eval()
    sentences = arguments.sentence or EXAMPLES
    if arguments.json:
        found = {sentence: guesses(model, tokenizer, sentence, arguments.top) for sentence in sentences}
        print(json.dumps({"model": str(folder), "guesses": found}, indent=2, ensure_ascii=False))
        return
    print(folder)
    for sentence in sentences:
        print(f"\n  {sentence}")
        for mask in guesses(model, tokenizer, sentence, arguments.top):
            print("    " + "   ".join(f"{word!r} {probability:.0%}" for word, probability in mask))

"""Guess the masked words of a sentence with an exported model."""

from __future__ import annotations

import argparse
import json
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.core.errors import ScalerError
from scaler.data.tokenizer import load_tokenizer
from scaler.model import build
from scaler.model.exported import find_newest, load_whole

disable_progress_bar()
EXAMPLES = (
    "The Amazon Resource Name (ARN) of the <mask>.",
    "The name of the S3 <mask> where the results are stored.",
    "You do not have permission to perform this <mask>.",
)


def guesses(model: PreTrainedModel, tokenizer: Any, sentence: str, top: int) -> list[list[tuple[str, float]]]:
    """Return the `top` likeliest tokens and their probabilities for each mask of a sentence.

    Raises: ScalerError when the sentence has no mask, is too long for the model, or is no text; and for a `top` beyond
        the vocabulary.
    """
    if top > model.config.vocab_size:
        raise ScalerError(f"--top {top:,}: the model's vocabulary has {model.config.vocab_size:,} entries; lower it")
    try:
        sentence.encode()
    except UnicodeEncodeError as error:
        raise ScalerError(f"{sentence!r} is not UTF-8; give UTF-8, and look at the terminal's encoding") from error
    sentence = sentence.replace("<mask>", tokenizer.mask_token)
    inputs = tokenizer(sentence, return_tensors="pt", truncation=False)
    tokens, most = inputs["input_ids"].shape[1], build.positions(model.config)
    if most is not None and tokens > most:
        raise ScalerError(f"{sentence[:40]!r}...: {tokens:,} tokens, and the model takes {most:,}; shorten the text")
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
    if tokenizer.mask_token is None:
        raise ScalerError(f"{folder}: its tokenizer has no mask token, so that it is no masked LM; name another model")
    model = load_whole(folder)
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

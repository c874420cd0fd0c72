"""Guess the masked words of a sentence with an exported model."""

from __future__ import annotations

from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.core.errors import ScalerError

disable_progress_bar()
EXAMPLES = (
    "The Amazon Resource Name (ARN) of the <mask>.",
    "The name of the S3 <mask> where the results are stored.",
    "You do not have permission to perform this <mask>.",
)


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

"""Initialise a masked LM so that it skips the first, flat part of its loss curve. The architecture does not change.

Otherwise a small model spends most of a short run at the unigram entropy. It learns word frequencies first and, much
later, to attend to neighbours. docs/log/2026-11.md has the figures.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from scaler.core.errors import ScalerError

# Found by measurement on the quickstart recipe (docs/log/2026-11.md), together with initializer_range 0.05.
POSITION_AMPLITUDE = 0.07  # root mean square of the position embeddings
HEAD_STRENGTH = 1.3  # of the written part of query and key
RANDOM_FRACTION = 0.2  # of their random part, which is kept
ROWS_AT_ONCE = 8192


def start_from_unigram(model: PreTrainedModel, unigram_counts: np.ndarray) -> None:
    """Set the decoder's bias to the log-frequency of each token, smoothed by one occurrence.

    The model then starts at the unigram entropy, and its first steps need not learn word frequencies.
    """
    frequency = torch.from_numpy(unigram_counts + 1.0)
    log_frequency = (frequency / frequency.sum()).log().float()
    decoder = model.get_output_embeddings()
    with torch.no_grad():
        decoder.bias[: len(log_frequency)] = log_frequency - log_frequency.mean()
        decoder.bias[len(log_frequency) :] = log_frequency.min() - log_frequency.mean()


def length_of_vectors(width: int, initializer_range: float) -> float:
    """Return the root mean square length of the model's own random embeddings of this width."""
    return initializer_range * math.sqrt(width)


def at_length(vectors: np.ndarray, length: float) -> np.ndarray:
    """Scale vectors (entries, width) to a length; a vector of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * (np.float32(length) / np.where(lengths > 0, lengths, 1))


def start_from_vectors(model: PreTrainedModel, vectors: np.ndarray) -> None:
    """Set the token embeddings to the directions of word vectors (entries, width); padding stays zero.

    The lengths are not taken over, because they grow thirtyfold from rare to frequent words. Long vectors outweigh the
    position embeddings and saturate the head, and the model learns worse than from random ones (docs/log/2026-11.md).
    """
    embedding = cast(nn.Embedding, model.get_input_embeddings())
    length = length_of_vectors(vectors.shape[1], model.config.initializer_range)
    with torch.no_grad():
        places = embedding.weight[: len(vectors)].split(ROWS_AT_ONCE)
        for place, some in zip(places, in_parts(vectors), strict=True):
            place.copy_(torch.from_numpy(at_length(some, length)))
        if embedding.padding_idx is not None:
            embedding.weight[embedding.padding_idx] = 0


def in_parts(vectors: np.ndarray) -> Iterator[np.ndarray]:
    """Split vectors into parts of some thousand rows, because all are as large as the rest of the model."""
    return (vectors[start : start + ROWS_AT_ONCE] for start in range(0, len(vectors), ROWS_AT_ONCE))


def look_at_neighbours(model: PreTrainedModel, offsets: Sequence[int]) -> None:
    """Let the first layer's head h start by attending to the token `offsets[h]` places on.

    Position p is embedded as sin(w p), cos(w p) over frequencies w spread evenly over (0, pi). That is the encoding of
    Vaswani et al. 2017 with another spacing, so that the inner product of two positions peaks at distance 0 alone. A
    head's key copies those features, and its query turns them by `w * offset`, so that their product peaks at the
    offset. These weights are trained like all others.

    Raises: ScalerError for an architecture without learned positions or with fewer heads than offsets.
    """
    encoder = model.base_model
    try:
        positions = encoder.embeddings.position_embeddings.weight  # (positions, hidden)
        attention = encoder.encoder.layer[0].attention.self
        heads, head_size = attention.num_attention_heads, attention.attention_head_size
    except AttributeError as error:
        raise ScalerError(
            "recipe: initialisation.neighbour_heads works with the layout of BERT and RoBERTa, not with that of "
            f"{model.config.model_type}"
        ) from error
    if len(offsets) > heads:
        raise ScalerError(f"recipe: initialisation.neighbour_heads names {len(offsets)} heads, the model has {heads}")
    hidden = positions.shape[1]
    frequencies = math.pi * (torch.arange(hidden // 2) + 0.5) / (hidden // 2)
    angles = torch.arange(len(positions)).unsqueeze(1) * frequencies  # (positions, hidden / 2)
    waves = torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)  # (positions, hidden), sine and cosine in turn
    chosen = torch.linspace(0, hidden // 2 - 1, head_size // 2).round().long()  # this many frequencies fit in a head
    even, odd = torch.arange(0, head_size - 1, 2), torch.arange(1, head_size, 2)
    with torch.no_grad():
        positions.copy_(math.sqrt(2) * POSITION_AMPLITUDE * waves)
        padding = encoder.embeddings.position_embeddings.padding_idx
        if padding is not None:
            positions[padding] = 0
        for head, offset in enumerate(offsets):
            key, query = torch.zeros(head_size, hidden), torch.zeros(head_size, hidden)
            key[even, 2 * chosen] = key[odd, 2 * chosen + 1] = 1.0
            turn = frequencies[chosen] * offset
            query[even, 2 * chosen] = query[odd, 2 * chosen + 1] = turn.cos()
            query[even, 2 * chosen + 1] = turn.sin()
            query[odd, 2 * chosen] = -turn.sin()
            rows = slice(head * head_size, (head + 1) * head_size)
            _blend(attention.query, rows, query)
            _blend(attention.key, rows, key)


def _blend(linear: nn.Linear, rows: slice, written: torch.Tensor) -> None:
    linear.weight[rows] = RANDOM_FRACTION * linear.weight[rows] + HEAD_STRENGTH * written.to(linear.weight.device)

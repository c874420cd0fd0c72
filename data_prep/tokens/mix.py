"""Compute the mix: how many tokens of each source one pass over the training data has, exactly, and which ones.

Everything is a function of integers: from counts of tokens to documents.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from scaler.config.data_sections import Corpus
from scaler.core.errors import ScalerError
from scaler.data import order


def apportion(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Divide `total` into whole numbers by fractions, which sum to 1, by the largest remainders (Hamilton's method)."""
    exact = [total * share for share in shares]
    dealt = [int(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda place: (dealt[place] - exact[place], place))
    for place in by_remainder[: total - sum(dealt)]:
        dealt[place] += 1
    return dealt


def tokens_of_each(corpus: Corpus, available: dict[str, int]) -> dict[str, int]:
    """Return the training tokens of each source in one pass.

    With weights, in their proportion: `corpus.tokens` in all, or as many as there are until the first source is used
    up. Otherwise each source's tokens, times its epochs.

    Args:
        available: training tokens by name of source.

    Raises: ScalerError for a source with a weight or epochs that has no tokens left.
    """
    for source in corpus.sources:
        if not available.get(source.name) and (source.weight or source.epochs):
            part = f"weight {source.weight}" if source.weight is not None else f"epochs {source.epochs}"
            raise ScalerError(
                f"the source {source.name} has {part} in the mix, but no training tokens: all its documents were "
                "dropped or held out; take it out of corpus.sources, or drop less"
            )
    if corpus.sources[0].weight is None:
        return {
            s.name: int(available.get(s.name, 0) * _exact(s.epochs or 1.0) + Fraction(1, 2)) for s in corpus.sources
        }
    weights = [_exact(source.weight or 0.0) for source in corpus.sources]
    shares = [weight / sum(weights) for weight in weights]
    most = min(int(available[source.name] / share) for source, share in zip(corpus.sources, shares, strict=True))
    dealt = apportion(most if corpus.tokens is None else corpus.tokens, shares)
    return {source.name: tokens for source, tokens in zip(corpus.sources, dealt, strict=True)}


def _exact(number: float) -> Fraction:
    """Return the number as it was written, 0.1 and not 0.1000000000000000055."""
    return Fraction(repr(number))


def choose(lengths: np.ndarray, tokens: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose documents that hold exactly so many tokens: all of them as often as they fit, then some at random.

    Args:
        lengths: int64 (documents,), tokens of each, above 0 in sum.
        tokens: to choose; the last document chosen is cut where they are reached.

    Returns: the number of each document and how many of its tokens count, both int64 (chosen,).
    """
    times, rest = divmod(tokens, int(lengths.sum()))
    whole = np.tile(np.arange(len(lengths)), times)
    some = order.permute(np.arange(len(lengths)), len(lengths), order.key(seed))
    ends = np.cumsum(lengths[some])
    some = some[: int(np.searchsorted(ends, rest)) + 1] if rest else some[:0]
    kept = np.concatenate([lengths[whole], lengths[some]])
    if rest:
        kept[-1] -= ends[len(some) - 1] - rest
    return np.concatenate([whole, some]), kept

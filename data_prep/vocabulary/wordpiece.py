"""Train vocabularies of BERT's tokenizer: a WordPiece, or whole words with a small WordPiece behind them.

WordPiece takes the longest entry that a word begins with (Wu et al. 2016), so a word that is an entry is always one
token, and only the other words are cut. Unknown are words with a character that no entry has, and those of more than
100 characters.
"""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import regex
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from scaler.config.data_sections import Tokenizer as Settings
from scaler.core.errors import ScalerError

SPECIAL_TOKENS: dict[str, Any] = {
    **{"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"},
    "mask_token": "[MASK]",
}  # in the order of Devlin et al. 2019
ALPHABET = 4000  # characters; a word with any other is unknown as a whole, unless it is an entry
LONGEST = 100  # characters of a word; a longer one is unknown (Devlin et al. 2019)
# marks but for accents of Latin, Greek and Cyrillic letters, and for variants of symbols
SIGNS = regex.compile(r"(?V1)[\p{Mn}--[\u0300-\u036f\u0483-\u0487\p{Variation_Selector}]]")
MIN_FREQUENCY = 2  # of pieces and words alike: of what occurs once nothing can be learned

logger = logging.getLogger(__name__)


def train(sample: Callable[[], Iterator[str]], settings: Settings) -> Tokenizer:
    """Train a tokenizer of kind "wordpiece" or "words".

    Args:
        sample: returns an iterator over the texts, a new one at each call.

    Raises: ScalerError when the texts have fewer words than the vocabulary asks for.
    """
    pieces = settings.vocab_size if settings.kind == "wordpiece" else settings.pieces
    # each character is two entries, and half of all are left for longer ones
    alphabet = _alphabet(sample(), settings, min(ALPHABET, pieces // 4))
    entries = _pieces(sample(), settings, alphabet, pieces)
    if settings.kind == "wordpiece":
        return _with(entries, settings)
    for word in _words(sample(), settings):
        if len(entries) == settings.vocab_size:
            break
        if len(word) <= LONGEST:
            entries.setdefault(word, len(entries))
    if len(entries) < settings.vocab_size:
        raise ScalerError(
            f"tokenizer.vocab_size={settings.vocab_size:,}, but the text has words and pieces that occur "
            f"{MIN_FREQUENCY} times or more for {len(entries):,} entries; lower it to that, or take more text"
        )
    return _with(entries, settings)


def _alphabet(texts: Iterator[str], settings: Settings, most: int) -> list[str]:
    """Return the most frequent characters, in the order of their codes."""
    counts: Counter[str] = Counter()
    stripped = 0
    normalise = _normalizer(settings).normalize_str
    for text in texts:
        counts.update(normalise(text))
        stripped += settings.lowercase and SIGNS.search(text) is not None
    if stripped:
        logger.warning(
            f"tokenizer.lowercase=true strips vowel signs of {stripped:,} documents, as uncased BERT does, which makes "
            "one word of several; set it to false for Indic, Hebrew, Arabic or Thai text"
        )
    ranked = sorted((-count, character) for character, count in counts.items() if not character.isspace())
    return sorted(character for _, character in ranked[:most])


def _pieces(texts: Iterator[str], settings: Settings, alphabet: list[str], vocab_size: int) -> dict[str, int]:
    """Return the entries of a WordPiece: id by text."""
    tokenizer = _with({}, settings)
    # what continues a word would get its ids in an order of chance, and with them pieces of one frequency their turn
    given = [*SPECIAL_TOKENS.values(), *alphabet, *(f"##{character}" for character in alphabet)]
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=MIN_FREQUENCY,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        special_tokens=given,
        show_progress=sys.stderr.isatty(),
    )
    tokenizer.train_from_iterator(texts, trainer)
    found: dict[str, int] = tokenizer.get_vocab()
    ordered = (entry for entry in sorted(found, key=found.__getitem__) if len(entry.removeprefix("##")) <= LONGEST)
    return {entry: number for number, entry in enumerate(ordered)}


def _words(texts: Iterator[str], settings: Settings) -> list[str]:
    """Return the words of the texts, the most frequent first."""
    tokenizer = Tokenizer(models.WordLevel(unk_token=SPECIAL_TOKENS["unk_token"]))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _normalizer(settings), pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordLevelTrainer(
        vocab_size=settings.vocab_size, min_frequency=MIN_FREQUENCY, show_progress=sys.stderr.isatty()
    )
    tokenizer.train_from_iterator(texts, trainer)
    found: dict[str, int] = tokenizer.get_vocab()
    return sorted(found, key=found.__getitem__)


def _normalizer(settings: Settings) -> normalizers.Normalizer:
    return normalizers.BertNormalizer(lowercase=settings.lowercase, strip_accents=settings.lowercase)


def _with(entries: dict[str, int], settings: Settings) -> Tokenizer:
    """Return a tokenizer that cuts text into these entries."""
    unknown = SPECIAL_TOKENS["unk_token"]
    tokenizer = Tokenizer(models.WordPiece(entries, unk_token=unknown, max_input_chars_per_word=LONGEST))
    tokenizer.normalizer, tokenizer.pre_tokenizer = _normalizer(settings), pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer

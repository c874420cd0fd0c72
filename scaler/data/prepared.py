"""Open the rows and the tokenizer that data preparation wrote, and check that they belong together."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from scaler.config import recipe as masking
from scaler.config.recipe import Recipe
from scaler.core.errors import ScalerError
from scaler.core.files import checksum
from scaler.data import token_rows
from scaler.data.batches import RowReader
from scaler.data.token_rows import PREPARE, Manifest, TokenRows
from scaler.data.tokenizer import Vocabulary, load_tokenizer, vocabulary_of

FIXED_SEED = 0  # of the masks of held-out and test rows, which are the same for every run


@dataclass(frozen=True)
class Prepared:
    """The opened rows of a recipe with their tokenizer."""

    manifest: Manifest
    tokenizer: Any
    vocabulary: Vocabulary

    def rows(self, split: str, recipe: Recipe, first_position: int) -> RowReader:
        """Return a reader of a split's packed rows, masked after the recipe.

        Raises: ScalerError when there are none, or some have too few tokens to mask.
        """
        training = split == "train"
        keys = ("mask_probability", "final_mask_probability") if training else ("heldout_mask_probability",)
        probabilities = {key: getattr(recipe.objective, key) or 0.0 for key in keys}
        key, probability = max(probabilities.items(), key=lambda item: item[1])
        masked = masking.masked_per_row(recipe.data.seq_len, probability)
        least = self.manifest.least_maskable(split)
        if masked > least:
            raise ScalerError(
                f"{self.manifest.folder}: some rows have only {least} tokens to mask, but "
                f"objective.{key}={probability} masks {masked}; run `scaler prepare` to pack them anew"
            )
        rows = TokenRows(self.manifest, split)
        if not len(rows):
            raise ScalerError(f"{self.manifest.folder}: the split {split!r} has no rows; {PREPARE}")
        seed = recipe.seed if training else FIXED_SEED
        return RowReader(rows, self.vocabulary, masked, first_position, seed)


def open_prepared(recipe: Recipe, remedy: str = PREPARE) -> Prepared:
    """Open a recipe's rows and tokenizer, and check that they belong together.

    Args:
        remedy: what to run where there are no rows.

    Raises: ScalerError when either is missing or damaged, or the rows are another tokenizer's or of another length.
    """
    manifest = token_rows.read(recipe.rows_folder, remedy)
    tokenizer = load_tokenizer(recipe.tokenizer_folder)
    found = checksum(recipe.tokenizer_folder / "tokenizer.json")
    if found != manifest.tokenizer_xxh3:
        raise ScalerError(
            f"{recipe.rows_folder}: made with the tokenizer {manifest.tokenizer_xxh3[:8]}, "
            f"but {recipe.tokenizer_folder} is {found[:8]}; {remedy} to make the rows anew"
        )
    if manifest.seq_len != recipe.data.seq_len:
        raise ScalerError(
            f"{recipe.rows_folder}: rows of {manifest.seq_len} tokens, but data.seq_len={recipe.data.seq_len}; "
            f"{remedy} to make them anew"
        )
    manifest.unigram_counts()  # refuses a missing or damaged file
    vocabulary = vocabulary_of(tokenizer, recipe.tokenizer_folder)
    return Prepared(manifest, tokenizer, vocabulary)

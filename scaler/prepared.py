"""What data preparation left for training: shards and tokenizer, opened, and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from scaler import masking, packing, token_shards
from scaler.batches import RowReader, Vocabulary
from scaler.errors import ScalerError
from scaler.recipe import Recipe
from scaler.token_shards import Manifest, TokenDataset

HELDOUT_SEED = 0  # held-out masks are the same for every run, whatever its seed


def load_tokenizer(folder: Path) -> Any:
    """Load a Transformers tokenizer folder. Raises ScalerError when there is none."""
    if not (folder / "tokenizer.json").is_file():
        raise ScalerError(f"{folder}: no tokenizer here; run `make data` or `python -m data_prep`")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes the tokenizers library raise
        reason = " ".join(str(error).split())
        raise ScalerError(f"{folder}: the tokenizer cannot be read ({reason}); prepare the data again") from error


def vocabulary_of(tokenizer: Any, folder: Path) -> Vocabulary:
    """The special ids that rows need. Raises ScalerError when the tokenizer lacks one."""
    ids = {
        "begin_id": tokenizer.cls_token_id,
        "end_id": tokenizer.sep_token_id,
        "pad_id": tokenizer.pad_token_id,
        "mask_id": tokenizer.mask_token_id,
    }
    for name, value in ids.items():
        if value is None:
            raise ScalerError(f"{folder}: the tokenizer has no {name[:-3]} token, which masked-LM rows need")
    return Vocabulary(size=len(tokenizer), special_ids=tuple(sorted(tokenizer.all_special_ids)), **ids)


@dataclass(frozen=True)
class Prepared:
    """Opened shards with their tokenizer."""

    manifest: Manifest
    tokenizer: Any
    vocabulary: Vocabulary

    def rows(self, split: str, recipe: Recipe, first_position: int) -> RowReader:
        """The packed rows of "train" or "heldout", masked as the recipe says. Raises ScalerError if there is none."""
        heldout = split == "heldout"
        probability = recipe.objective.heldout_mask_probability if heldout else recipe.objective.mask_probability
        masked = masking.masked_per_row(recipe.data.seq_len, probability)
        dataset = TokenDataset(self.manifest, split)
        table = packing.pack(*dataset.documents(), recipe.data.seq_len, min_tokens=masked)
        if table.n_rows == 0:
            raise ScalerError(
                f"{self.manifest.folder}: the {split} split has {self.manifest.count(split, 'tokens'):,} tokens, "
                f"not enough for one row of data.seq_len={recipe.data.seq_len}; bring more text or shorter rows"
            )
        seed = HELDOUT_SEED if heldout else recipe.seed
        return RowReader(dataset, table, self.vocabulary, masked, first_position, seed)


def open_prepared(recipe: Recipe) -> Prepared:
    """Open a recipe's shards and tokenizer, and check that they belong together.

    Raises: ScalerError when either is missing or damaged, or the shards are another tokenizer's.
    """
    manifest = token_shards.read_manifest(recipe.shards_folder)
    tokenizer = load_tokenizer(recipe.tokenizer_folder)
    found = token_shards.checksum(recipe.tokenizer_folder / "tokenizer.json")
    if found != manifest.tokenizer_xxh3:
        raise ScalerError(
            f"{recipe.shards_folder}: written with the tokenizer {manifest.tokenizer_xxh3[:8]}, "
            f"but {recipe.tokenizer_folder} is {found[:8]}; run `python -m data_prep` to make the shards anew"
        )
    manifest.unigram_counts()  # refuses a missing or damaged file
    vocabulary = vocabulary_of(tokenizer, recipe.tokenizer_folder)
    return Prepared(manifest, tokenizer, vocabulary)

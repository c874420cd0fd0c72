"""What repeats of held-out documents in the training text do to the held-out loss, for one or more exported models.

The held-out documents of `clean/` fall into those that training text nearly repeats, and the others. Each model's loss
on the same masked tokens of both is printed; compare a model trained with repeats with one trained without:
`python benchmarks/contamination.py runs/with/export runs/without/export`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer

from data_prep.cleaning import dedup
from data_prep.formats import texts
from scaler.config.data_sections import Dedup
from scaler.config.recipe import load
from scaler.data import masking, order

MASKED_SHARE = 0.15


def keys(folder: Path, split: str, settings: Dedup) -> list[tuple[str, set[tuple[int, int]]]]:
    """Each document of a split, and its keys by band."""
    found = texts.entries(texts.manifest(folder), split)
    documents = (document.text for entry in found for document in texts.read(folder, entry))
    return [(text, set(enumerate(dedup.keys_of(text, settings)))) for text in documents]


def losses(export: Path, documents: list[str], seq_len: int) -> np.ndarray:
    """Mean loss of each document's masked tokens, in nats: (documents,)."""
    tokenizer = AutoTokenizer.from_pretrained(export)
    model = AutoModelForMaskedLM.from_pretrained(export).eval()
    ordinary = np.setdiff1d(np.arange(len(tokenizer)), tokenizer.all_special_ids)
    found = []
    for number, text in enumerate(documents):
        ids = np.array([tokenizer(text, truncation=True, max_length=seq_len).input_ids])
        maskable = ~np.isin(ids, tokenizer.all_special_ids)
        key = order.key(0, np.array([number]))
        count = max(1, round(maskable.sum() * MASKED_SHARE))
        positions = masking.choose_positions(maskable, count, key)
        labels = masking.mask_rows(ids, positions, key, tokenizer.mask_token_id, ordinary)
        with torch.no_grad():
            logits = model(torch.from_numpy(ids)).logits[0, positions[0]]
        found.append(float(torch.nn.functional.cross_entropy(logits, torch.from_numpy(labels[0]))))
    return np.array(found)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("exports", type=Path, nargs="+")
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument(
        "--bands", type=int, default=20, help="with --band_rows 5, half of the pairs of similarity 0.51"
    )
    parser.add_argument("--band_rows", type=int, default=5)
    arguments = parser.parse_args()
    recipe = load(arguments.recipe)
    folder = Path(recipe.data.folder) / "clean"
    settings = Dedup(bands=arguments.bands, band_rows=arguments.band_rows)
    trained_on = {key for _, found in keys(folder, "train", settings) for key in found}
    heldout = keys(folder, "heldout", settings)
    repeated = np.array([not found.isdisjoint(trained_on) for _, found in heldout])
    print(f"{len(heldout)} held-out documents, of which {repeated.sum()} are nearly repeated by training text")
    for export in arguments.exports:
        found = losses(export, [text for text, _ in heldout], recipe.data.seq_len)
        print(
            f"{export}: loss {found.mean():.3f}; repeated {found[repeated].mean():.3f}, "
            f"others {found[~repeated].mean():.3f}"
        )


if __name__ == "__main__":
    main()

"""Prepare all data of a recipe, each stage only if it is not up to date."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from data_prep.cleaning import clean, dedup, tally
from data_prep.formats import manifests, texts
from data_prep.pipeline import accounts, folders
from data_prep.pipeline.workers import WorkerPool
from data_prep.sources import corpus
from data_prep.tokens import rows, shards
from data_prep.vocabulary import tokenizer, word2vec
from scaler.config import recipe as masking
from scaler.config.data_sections import Cleaning
from scaler.config.recipe import Recipe
from scaler.core.text import percent

SHORT = 8  # documents of less than this part of a row are far shorter than it
NEARLY_ALL = 0.9  # fraction of the documents


def prepare(recipe: Recipe, pool: WorkerPool, threads: int | None = None) -> None:
    """Make corpus, clean text, tokenizer, shards, word vectors and rows in the recipe's data folder; print each step.

    The vectors are trained by `threads` of this machine (one a core).
    """
    folder, tokenizer_folder = recipe.text_folder, recipe.tokenizer_folder
    corpus_folder, shards_folder = folder / "corpus", Path(recipe.data.folder) / "shards"
    if folders.is_current(shards_folder, "shards", folders.ADOPTED):
        print(f"{shards_folder}: adopted, used as it is; {_counts(shards_folder, 'shards')}", flush=True)
    else:
        text = corpus_folder
        _stage(text, "corpus", lambda: corpus.make(recipe.corpus, corpus_folder, pool))
        _print(accounts.of_sources(texts.manifest(text)))
        if recipe.cleaning != Cleaning():
            before, text = text, folder / "clean"
            _stage(text, "clean", lambda: clean.make(before, text, recipe.cleaning, pool))
        if recipe.dedup.exact or recipe.dedup.near:
            before_dedup, text = text, folder / "dedup"
            _stage(text, "dedup", lambda: dedup.make(before_dedup, text, recipe.dedup, pool))
        _stage(tokenizer_folder, "tokenizer", lambda: tokenizer.make(text, tokenizer_folder, recipe.tokenizer))
        _stage(shards_folder, "shards", lambda: shards.make(text, tokenizer_folder, shards_folder, pool))
        _print(lengths_beside_rows(shards_folder, recipe.data.seq_len))
    vectors = recipe.word2vec
    if vectors is not None:
        made = (shards_folder, tokenizer_folder, recipe.word2vec_folder, vectors, recipe.seed, threads)
        _stage(recipe.word2vec_folder, "word2vec", lambda: word2vec.make(*made))
    seq_len = recipe.data.seq_len
    masked = dict.fromkeys(texts.SPLITS, masking.masked_per_row(seq_len, recipe.objective.heldout_mask_probability))
    masked["train"] = recipe.most_masked_per_row
    _stage(
        recipe.rows_folder,
        "rows",
        lambda: rows.make(shards_folder, tokenizer_folder, recipe.rows_folder, seq_len, masked, recipe.corpus, pool),
    )


def _print(lines: list[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _stage(folder: Path, kind: str, make: Callable[[], bool]) -> None:
    start = time.perf_counter()
    print(f"{folder}: ...", flush=True)
    how = f"written in {time.perf_counter() - start:.1f} s" if make() else "up to date"
    print(f"{folder}: {how}; {_counts(folder, kind)}", flush=True)


def _counts(folder: Path, kind: str) -> str:
    if kind == "word2vec":
        return word2vec.describe(folder)
    manifest = manifests.read(folder, kind)
    if "splits" not in manifest:
        return f"{manifest['vocab_size']:,} entries"
    whats = {"shards": ("documents", "tokens"), "rows": ("rows", "tokens")}.get(kind, ("documents", "characters"))
    counts = ", ".join(
        split + " " + ", ".join(f"{sum(entry[what] for entry in entries):,} {what}" for what in whats)
        for split, entries in manifest["splits"].items()
    )
    drops = bool(manifest.get("counts")) or kind in ("clean", "dedup")
    return f"{counts}; {tally.summary(manifest.get('counts', {}))}" if drops else counts


def lengths_beside_rows(shards_folder: Path, seq_len: int) -> list[str]:
    """Return lines about the tokens of training documents beside the length of a row; none for shards of before."""
    entries = manifests.read(shards_folder, "shards")["splits"]["train"]
    if not all("lengths" in entry for entry in entries):
        return []
    counts: Counter[int] = Counter()  # by the power of two that a length reaches
    for entry in entries:
        counts.update(dict(enumerate(entry["lengths"])))
    documents = max(1, sum(counts.values()))
    short = 1 << (seq_len // SHORT).bit_length() - 1  # tokens: the power of two at or below that part of a row
    fraction = sum(count for power, count in counts.items() if 2 << power <= short) / documents
    mean = sum(entry["tokens"] for entry in entries) / documents
    lines = [
        f"{shards_folder}: a training document has {mean:,.0f} tokens on average, {percent(fraction)} have fewer than "
        f"{short}; a row has data.seq_len={seq_len}"
    ]
    if fraction >= NEARLY_ALL:
        lines.append(
            f"{shards_folder}: nearly all documents are far shorter than a row, so nothing is learned across more text "
            "than that; set text_unit: file where the paragraphs of a file belong together, or shorten data.seq_len"
        )
    return lines

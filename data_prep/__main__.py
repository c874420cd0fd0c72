"""Prepare all data of a recipe, each stage only if it is not up to date: `python -m data_prep --recipe quickstart`."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

from data_prep import corpus, folders, shards, tokenizer
from scaler.errors import command
from scaler.recipe import DEFAULT_RECIPE, Recipe, load


def prepare(recipe: Recipe, processes: int) -> None:
    """Make corpus, tokenizer and shards in the recipe's data folder, and say what each stage did."""
    folder = Path(recipe.data.folder)
    if folders.is_current(folder / "shards", "shards", folders.ADOPTED):
        print(f"{folder}: adopted, used as it is; {_counts(folder / 'shards', 'shards')}", flush=True)
        return
    stages = {
        "corpus": lambda: corpus.make(recipe.corpus, folder / "corpus"),
        "tokenizer": lambda: tokenizer.make(folder / "corpus", folder / "tokenizer", recipe.tokenizer),
        "shards": lambda: shards.make(folder / "corpus", folder / "tokenizer", folder / "shards", processes),
    }
    for name, make in stages.items():
        start = time.perf_counter()
        print(f"{folder / name}: ...", flush=True)
        written = make()
        how = f"written in {time.perf_counter() - start:.1f} s" if written else "up to date"
        print(f"{folder / name}: {how}; {_counts(folder / name, name)}", flush=True)


def _counts(folder: Path, kind: str) -> str:
    manifest = folders.read_manifest(folder, kind)
    if "splits" not in manifest:
        return f"{manifest['vocab_size']:,} entries"
    what = "characters" if kind == "corpus" else "tokens"
    counts = {
        split: (sum(entry["documents"] for entry in entries), sum(entry[what] for entry in entries))
        for split, entries in manifest["splits"].items()
    }
    return ", ".join(f"{split} {documents:,} documents, {size:,} {what}" for split, (documents, size) in counts.items())


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep", description=__doc__)
    parser.add_argument("--recipe", default=DEFAULT_RECIPE, help=f"name or YAML file ({DEFAULT_RECIPE})")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="that tokenise (one a core)")
    parser.add_argument("overrides", nargs="*", metavar="section.key=value", help="overrides of the recipe")
    arguments = parser.parse_args()
    prepare(load(arguments.recipe, arguments.overrides), arguments.processes)


if __name__ == "__main__":
    main()

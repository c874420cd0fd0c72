"""Evaluate an exported model on rows that training never read."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.config.recipe import Recipe, load
from scaler.core.errors import ScalerError, explain_disk_errors
from scaler.core.files import checksum, write_json
from scaler.data import prepared, token_rows
from scaler.data.token_rows import Manifest
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.evaluation import heldout
from scaler.model import build, masked_lm
from scaler.model.exported import find_with_recipe, load_whole

disable_progress_bar()  # of loading weights


def check_tokenizer(folder: Path, recipe: Recipe, manifest: Manifest) -> None:
    """Check that the rows hold tokens of the model's tokenizer. Raises ScalerError when they do not."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ScalerError(f"{path}: missing, so nothing says that the rows hold this model's tokens; save it there")
    found = checksum(path)
    if found != manifest.tokenizer_xxh3 and _tokens(path) != _tokens(recipe.tokenizer_folder / "tokenizer.json"):
        raise ScalerError(
            f"{folder}: its tokenizer is {found[:8]}, but {manifest.folder} was made with "
            f"{manifest.tokenizer_xxh3[:8]}; name a --recipe whose data was made with the model's tokenizer"
        )


def _tokens(path: Path) -> tuple[dict[str, int], Any]:
    """Return a tokenizer's vocabulary and model, which do not depend on the layout of its file."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more narrow
        raise ScalerError(f"{path}: not a tokenizer ({error}); save it again with save_pretrained") from error
    return tokenizer.get_vocab(with_added_tokens=True), json.loads(tokenizer.to_str())["model"]


def load_model(folder: Path, manifest: Manifest) -> PreTrainedModel:
    """Load a masked LM for rows. Raises ScalerError when it cannot be loaded whole, or cannot take the rows."""
    network = load_whole(folder)
    build.check_rows_fit(network.config, manifest.seq_len, f"{folder / 'config.json'}: ")
    entries = network.get_input_embeddings().num_embeddings
    if entries < manifest.vocab_size:
        raise ScalerError(
            f"{folder}: the model has {entries:,} entries, but the rows of {manifest.folder} have "
            f"{manifest.vocab_size:,}; evaluate it on rows of its own tokenizer"
        )
    return network


def measure(folder: Path, recipe: Recipe, split: str) -> dict[str, Any]:
    """Evaluate the model in a folder on a split of the recipe's rows.

    Raises: ScalerError when rows or model are absent or damaged, or do not fit together.
    """
    data = prepared.open_prepared(recipe)
    manifest = data.manifest
    if not manifest.splits.get(split):
        raise ScalerError(
            f"{manifest.folder}: has no {split} split; prepare the data, and train, with corpus.test_percent above 0, "
            "or evaluate with --split heldout"
        )
    check_tokenizer(folder, recipe, manifest)
    token_rows.verify(manifest, splits=[split])
    network = load_model(folder, manifest)
    reader = data.rows(split, recipe, build.first_position(network.config))
    world = World()
    engine = masked_lm.MaskedLM(network).to(devices.device(world))
    found = heldout.evaluate(engine, reader, recipe.training.max_micro_rows, world)
    return {
        "model": str(folder),
        "data": str(manifest.folder),
        "split": split,
        "rows": len(reader.rows),
        "masked_tokens": found.tokens,
        "unigram_entropy": heldout.unigram_entropy(reader, manifest.unigram_counts()),
        "loss": found.loss,
        "perplexity": found.perplexity,
        "loss_per_character": found.loss_per_character,
        "masked_accuracy": found.masked_accuracy,
        "sources": {name: asdict(score) for name, score in found.sources.items()},
    }


def render(content: dict[str, Any]) -> str:
    """Format the figures as a table."""
    per_character = content["loss_per_character"]
    shown = "unknown" if per_character is None else f"{per_character:.4f}"
    lines = [
        f"{content['model']} on the {content['split']} split of {content['data']}",
        f"  masked tokens        {content['masked_tokens']:>12,} in {content['rows']:,} rows",
        f"  unigram entropy      {content['unigram_entropy']:>12.4f} nats",
        f"  loss                 {content['loss']:>12.4f} nats",
        f"  perplexity           {content['perplexity']:>12.4g}",
        f"  loss per character   {shown:>12}{' nats' * (per_character is not None)}",
        f"  masked accuracy      {content['masked_accuracy']:>12.2%}",
    ]
    if content["sources"]:
        wide = max(map(len, content["sources"]))
        lines.append(f"  {'source':<{wide}} {'masked tokens':>14} {'loss':>9} {'masked accuracy':>16}")
    for name, score in content["sources"].items():
        lines.append(f"  {name:<{wide}} {score['tokens']:>14,} {score['loss']:>9.4f} {score['masked_accuracy']:>16.2%}")
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Evaluate a model on the rows of its run or of a recipe; write the figures beside it, and print them."""
    folder, place, recipe = find_with_recipe(arguments.model, arguments.recipe)
    content = measure(folder, load(recipe), arguments.split)
    path = place / f"evaluation_{arguments.split}.json"
    # first, because the disk may refuse the file
    print(json.dumps(content, indent=2) if arguments.json else render(content), flush=True)
    with explain_disk_errors(place):
        write_json(path, content)
    if not arguments.json:
        print(f"  {path}")

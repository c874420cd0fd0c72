"""Evaluate an exported model on rows that training never read: `python -m scaler.evaluate runs/quickstart`.

Rows and masks are fixed, so the figures of models with one tokenizer can be compared; the loss per character compares
vocabularies, too. They are printed, and written to evaluation_SPLIT.json in the run's folder (or the model's own).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.config.recipe import Recipe, load
from scaler.core.errors import ScalerError, command, naming_full_disk
from scaler.core.files import checksum, write_json
from scaler.data import prepared, token_rows
from scaler.data.token_rows import Manifest
from scaler.distributed import world as world_facts
from scaler.distributed.world import World
from scaler.evaluation import heldout
from scaler.model import build as model

disable_progress_bar()  # of loading weights
SPLITS = ("test", "heldout")  # the first is opened nowhere else


def find_model(path: Path, recipe: str | None) -> tuple[Path, Path, str]:
    """What to evaluate: the folder of the model, the one for the result, and the recipe that names the rows.

    Args:
        path: a run, its export, or any Transformers folder.
        recipe: name or file; by default that of the run.

    Raises: ScalerError when there is no model, or no recipe.
    """
    path = path.resolve()  # "." has no parent
    folder = path if (path / "config.json").is_file() else path / "export"
    run = folder.parent if folder.name == "export" and (folder.parent / "recipe.yaml").is_file() else None
    if not (folder / "config.json").is_file():
        if run:
            raise ScalerError(f"{path}: this run has no export yet, for it is not finished; evaluate it once it is")
        raise ScalerError(f"{path}: no run and no exported model here; name a folder such as runs/quickstart")
    if not run and recipe is None:
        raise ScalerError(f"{path}: no run's folder, so nothing says which rows to evaluate on; name a --recipe")
    return folder, run or folder, recipe or str(folder.parent / "recipe.yaml")


def check_tokenizer(folder: Path, recipe: Recipe, manifest: Manifest) -> None:
    """Raises ScalerError when the model's tokenizer is another than that of the rows."""
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
    """The vocabulary of a tokenizer, and how it cuts words, however the file is laid out."""
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the tokenizers library raises nothing more narrow
        raise ScalerError(f"{path}: not a tokenizer ({error}); save it again with save_pretrained") from error
    return tokenizer.get_vocab(with_added_tokens=True), json.loads(tokenizer.to_str())["model"]


def load_whole(folder: Path) -> PreTrainedModel:
    """A masked LM in fp32, with its head, from safetensors alone and without code of its own.

    Raises: ScalerError when it cannot be loaded whole.
    """
    try:
        network, loaded = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=model.ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, for a configuration or weights that are damaged or of another kind
        reason = " ".join(str(error).split())[:300]
        raise ScalerError(f"{folder}: no masked LM that Transformers loads from safetensors ({reason})") from error
    if loaded["missing_keys"]:
        some = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ScalerError(f"{folder}: its weights lack {some}; evaluate a whole masked LM, with its head")
    return network.eval()


def load_model(folder: Path, manifest: Manifest) -> PreTrainedModel:
    """The same, for some rows. Raises ScalerError when it cannot be loaded whole, or cannot take the rows."""
    network = load_whole(folder)
    model.check_rows_fit(network.config, manifest.seq_len, f"{folder / 'config.json'}: ")
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
    reader = data.rows(split, recipe, model.first_position(network.config))
    here = World()
    engine = model.MaskedLM(network).to(world_facts.device(here))
    found = heldout.evaluate(engine, reader, recipe.training.max_micro_rows, here)
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
    """The figures as a table for people."""
    per_character = content["loss_per_character"]
    said = "unknown" if per_character is None else f"{per_character:.4f}"
    lines = [
        f"{content['model']} on the {content['split']} split of {content['data']}",
        f"  masked tokens        {content['masked_tokens']:>12,} in {content['rows']:,} rows",
        f"  unigram entropy      {content['unigram_entropy']:>12.4f} nats",
        f"  loss                 {content['loss']:>12.4f} nats",
        f"  perplexity           {content['perplexity']:>12.4g}",
        f"  loss per character   {said:>12}{' nats' * (per_character is not None)}",
        f"  masked accuracy      {content['masked_accuracy']:>12.2%}",
    ]
    if content["sources"]:
        wide = max(map(len, content["sources"]))
        lines.append(f"  {'source':<{wide}} {'masked tokens':>14} {'loss':>9} {'masked accuracy':>16}")
    for name, score in content["sources"].items():
        lines.append(f"  {name:<{wide}} {score['tokens']:>14,} {score['loss']:>9.4f} {score['masked_accuracy']:>16.2%}")
    return "\n".join(lines)


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", type=Path, help="a run, an export, or any Transformers folder")
    parser.add_argument("--split", choices=SPLITS, default=SPLITS[0], help=f"({SPLITS[0]})")
    parser.add_argument("--recipe", help="whose data to evaluate on, name or YAML file (the run's)")
    parser.add_argument("--json", action="store_true", help="the figures as JSON")
    arguments = parser.parse_args()
    folder, place, recipe = find_model(arguments.model, arguments.recipe)
    content = measure(folder, load(recipe), arguments.split)
    path = place / f"evaluation_{arguments.split}.json"
    with naming_full_disk(place):
        write_json(path, content)
    print(json.dumps(content, indent=2) if arguments.json else f"{render(content)}\n  {path}")


if __name__ == "__main__":
    main()

"""Evaluate an exported model on rows that training never read: `python -m scaler.evaluate runs/quickstart`.

Rows and masks are fixed, so the figures of models with one tokenizer can be compared; the loss per character compares
vocabularies, too. They are printed, and written to evaluation_SPLIT.json in the run's folder (or the model's own).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import nn
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler import model, prepared, token_rows
from scaler import world as world_facts
from scaler.batches import Batch, RowReader
from scaler.errors import ScalerError, command, naming_full_disk
from scaler.manifests import checksum, write_json
from scaler.recipe import Recipe, load
from scaler.token_rows import Manifest
from scaler.world import World

disable_progress_bar()  # of loading weights
SPLITS = ("test", "heldout")  # the first is opened nowhere else
TOP_GUESSES = 3
CONTEXT_TOKENS = 12
LOGITS_AT_ONCE = 1 << 24  # in fp32 64 MB, and as much again inside of the cross-entropy


@dataclass(frozen=True)
class Score:
    """Mean cross-entropy in nats and share of right guesses over `tokens` masked tokens."""

    loss: float
    masked_accuracy: float
    tokens: int


@dataclass(frozen=True)
class HeldOut(Score):
    """The score of a whole split.

    Attributes:
        loss_per_character: the loss times the tokens that the split's text has a character, in nats. It compares
            vocabularies: longer tokens are harder to guess, but fewer. (Masks hide whole tokens, so it is no exact
            measure of compression.) None where the text's characters are unknown.
        sources: the score of each source by its name; none where there are fewer than two.
    """

    loss_per_character: float | None = None
    sources: Mapping[str, Score] = field(default_factory=dict)

    @property
    def perplexity(self) -> float:
        """exp(loss), infinite where that is more than a float holds."""
        return float(torch.tensor(self.loss, dtype=torch.float64).exp())

    def records(self, prefix: str) -> dict[str, float]:
        """The figures by name, as `metrics.RunLog.write` takes them: PREFIX_loss, PREFIX_loss_SOURCE and so on."""
        per_character = {} if self.loss_per_character is None else {"loss_per_character": self.loss_per_character}
        figures = {
            **{f"loss_{name}": score.loss for name, score in self.sources.items()},
            **{"loss": self.loss, "perplexity": self.perplexity, "masked_accuracy": self.masked_accuracy},
            **per_character,
        }
        return {f"{prefix}_{name}": value for name, value in figures.items()}


def heldout_rows(reader: RowReader, micro_rows: int) -> list[np.ndarray]:
    """The held-out rows in batches of at most `micro_rows`: int64 arrays."""
    rows = np.arange(len(reader.rows))
    return [rows[start : start + micro_rows] for start in range(0, len(rows), micro_rows)]


def read_fixed(reader: RowReader, rows: np.ndarray) -> Batch:
    """Held-out rows as they always are: masked as in epoch 0."""
    return reader.read(np.zeros_like(rows), rows)


def heldout(engine: Callable[..., Any], reader: RowReader, micro_rows: int, world: World) -> HeldOut:
    """Evaluate all held-out rows, shared among the ranks batch by batch; every rank gets the same answer.

    Each rank runs the same number of forward passes, for at ZeRO-3 each of them is a collective.

    Args:
        engine: gives the mean loss of a batch, and its logits (rows, masked, vocab).
        reader: of the rows.
        micro_rows: rows of a forward pass, at most.
        world: the ranks that share the work.
    """
    batches = heldout_rows(reader, micro_rows)
    device = world_facts.device(world)
    names = reader.rows.sources
    sums = torch.zeros(len(names), 3, dtype=torch.float64, device=device)
    with torch.no_grad():
        for turn in range(-(-len(batches) // world.size)):
            number = turn * world.size + world.rank
            rows = batches[number % len(batches)]
            batch = read_fixed(reader, rows).to(device)
            _, logits = engine(batch)
            if number < len(batches):
                source = torch.from_numpy(reader.rows.source_of(rows)).to(device)
                is_of = nn.functional.one_hot(source, len(names)).to(sums)  # (rows, sources)
                sums += is_of.T @ score_rows(logits, batch.labels)
    by_source = world_facts.total(sums)
    scores = {name: _score(found) for name, found in zip(names, by_source, strict=True)}
    whole, text = _score(by_source.sum(0)), reader.rows
    per_character = None
    if text.text_tokens and text.characters:
        per_character = whole.loss * text.text_tokens / text.characters
    return HeldOut(**vars(whole), loss_per_character=per_character, sources=scores if len(scores) > 1 else {})


def score_rows(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy in nats, right guesses, and masked tokens of each row: float64 (rows, 3).

    Args:
        logits: (rows, masked, vocab); the cross-entropy is computed in fp32, some positions at a time.
        labels: int64 (rows, masked).
    """
    flat, truth = logits.flatten(0, 1), labels.flatten()
    step = max(1, LOGITS_AT_ONCE // flat.shape[-1])
    losses = [
        nn.functional.cross_entropy(some.float(), wanted, reduction="none")
        for some, wanted in zip(flat.split(step), truth.split(step), strict=True)
    ]
    loss, correct = torch.cat(losses).double(), (flat.argmax(-1) == truth).double()
    of_tokens = torch.stack([loss, correct, torch.ones_like(loss)], dim=-1)  # (rows * masked, 3)
    return of_tokens.view(*labels.shape, 3).sum(1)


def _score(sums: torch.Tensor) -> Score:
    loss, correct, tokens = sums.tolist()
    return Score(loss / tokens, correct / tokens, int(tokens))


def unigram_entropy(reader: RowReader, unigram_counts: np.ndarray) -> float:
    """Cross-entropy in nats of the held-out masked tokens under the training split's token frequencies.

    The best that a model without any context can do; frequencies are smoothed by one occurrence.
    """
    probability = (unigram_counts + 1.0) / (unigram_counts.sum() + len(unigram_counts))
    labels = np.concatenate([read_fixed(reader, rows).labels.numpy().ravel() for rows in heldout_rows(reader, 256)])
    return float(-np.log(probability[labels]).mean())


def filled_masks(engine: Callable[..., Any], reader: RowReader, tokenizer: Any, world: World, count: int = 6) -> str:
    """Guess a few held-out masks and show them in their context, as Markdown. Every rank must call it."""
    rows = np.arange(min(count, len(reader.rows)))
    batch = read_fixed(reader, rows)
    with torch.no_grad():
        _, logits = engine(batch.to(world_facts.device(world)))
    lines = []
    for row in range(len(rows)):
        is_mask = batch.input_ids[row, batch.masked_positions[row]] == reader.vocabulary.mask_id
        chosen = int(is_mask.nonzero()[0]) if is_mask.any() else 0
        position = int(batch.masked_positions[row, chosen])
        left = batch.input_ids[row, max(0, position - CONTEXT_TOKENS) : position]
        right = batch.input_ids[row, position + 1 : position + 1 + CONTEXT_TOKENS]
        guesses = logits[row, chosen].float().softmax(-1).topk(TOP_GUESSES)
        shown = ", ".join(
            f"{tokenizer.decode([int(token)]).strip()!r} {float(share):.0%}"
            for share, token in zip(guesses.values, guesses.indices, strict=True)
        )
        truth = tokenizer.decode([int(batch.labels[row, chosen])]).strip()
        text = f"{tokenizer.decode(left)} **[{truth}]** {tokenizer.decode(right)}"
        lines.append(f"- {text.replace('<', '&lt;')}  \n  guesses: {shown}")
    return "\n".join(lines)


# ---- the command


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


def load_model(folder: Path, manifest: Manifest) -> PreTrainedModel:
    """A masked LM in fp32, from safetensors alone and without code of its own.

    Raises: ScalerError when it cannot be loaded whole, or cannot take the rows.
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
    model.check_rows_fit(network.config, manifest.seq_len, f"{folder / 'config.json'}: ")
    entries = network.get_input_embeddings().num_embeddings
    if entries < manifest.vocab_size:
        raise ScalerError(
            f"{folder}: the model has {entries:,} entries, but the rows of {manifest.folder} have "
            f"{manifest.vocab_size:,}; evaluate it on rows of its own tokenizer"
        )
    return network.eval()


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
    found = heldout(engine, reader, recipe.training.max_micro_rows, here)
    return {
        "model": str(folder),
        "data": str(manifest.folder),
        "split": split,
        "rows": len(reader.rows),
        "masked_tokens": found.tokens,
        "unigram_entropy": unigram_entropy(reader, manifest.unigram_counts()),
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

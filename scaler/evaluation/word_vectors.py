"""Describe word vectors, and compare runs that start from them with others."""

from __future__ import annotations

import argparse
import json
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scaler.config.recipe import Recipe, load
from scaler.core import charts, files, words
from scaler.core.board import Board
from scaler.core.errors import ScalerError, dispensable, explain_disk_errors
from scaler.core.files import read_manifest, write_json
from scaler.data import prepared, word_vectors
from scaler.model import build, embeddings, initialisation

PROJECTOR = "projector"
PROJECTED = 10_000  # entries in the projector; all 256,000 of 768 numbers would be 4 GB of text
NEIGHBOURS = 5
KNOWN_WORDS = 12  # whose neighbours are shown where none are named
LEAST_LETTERS = 5  # of these, because shorter words are mostly function words
PERCENTILES = (1, 25, 50, 75, 99)


def norms(matrix: np.ndarray) -> dict[str, float]:
    """Return percentiles of the lengths of vectors (entries, width)."""
    lengths = np.concatenate([np.linalg.norm(some, axis=1) for some in initialisation.in_parts(matrix)])
    return {
        f"p{percentile}": float(value)
        for percentile, value in zip(PERCENTILES, np.percentile(lengths, PERCENTILES), strict=True)
    }


def neighbours(matrix: np.ndarray, entry: int, among: np.ndarray) -> list[tuple[int, float]]:
    """Return the entries nearest to one by cosine, best first, out of those in `among`: (entry, cosine)."""
    wanted = matrix[entry] / np.linalg.norm(matrix[entry])
    cosines = np.concatenate(
        [some @ wanted / np.maximum(np.linalg.norm(some, axis=1), 1e-12) for some in initialisation.in_parts(matrix)]
    )
    allowed = np.full(len(matrix), -np.inf)
    allowed[among] = cosines[among]
    allowed[entry] = -np.inf
    best = np.argsort(-allowed)[:NEIGHBOURS]
    return [(int(number), float(allowed[number])) for number in best if np.isfinite(allowed[number])]


def known_words(tokens: list[str], counts: np.ndarray) -> list[int]:
    """Return the most frequent entries that look like words: long ones first, because some scripts have few.

    Args:
        tokens: the text of each entry.
    """
    ranked = [entry for entry in np.argsort(-counts).tolist() if words.is_of_letters(tokens[entry])]
    long = (entry for entry in ranked if len(tokens[entry]) >= LEAST_LETTERS)
    short = (entry for entry in ranked if len(tokens[entry]) < LEAST_LETTERS)
    return list(islice(chain(long, short), KNOWN_WORDS))


def describe_vectors(recipe: Recipe, named: list[str], out: Path) -> dict[str, Any]:
    """Compute figures of a recipe's vectors, and write TensorBoard's projector to `out`/projector.

    Raises: ScalerError for a recipe without vectors, or a word that is no entry.
    """
    data = prepared.open_prepared(recipe)
    config = build.configuration_of(recipe, data.vocabulary)
    folder = recipe.word2vec_folder
    found = word_vectors.read(folder, data.manifest.tokenizer_xxh3, embeddings.width(config))
    tokens = data.tokenizer.convert_ids_to_tokens(range(len(found.vectors)))
    numbers = {token: entry for entry, token in enumerate(tokens)}
    for word in named:
        if word not in numbers:
            raise ScalerError(f"--words {word}: no entry of {recipe.tokenizer_folder}; name a whole word that is one")
    # a byte-level BPE writes bytes as other letters
    spelled = [data.tokenizer.convert_tokens_to_string([token]).strip() for token in tokens]
    shown = [numbers[word] for word in named] or known_words(spelled, found.counts)
    frequent = np.argsort(-found.counts, kind="stable")[: min(PROJECTED, int((found.counts > 0).sum()))]
    board = Board(out / PROJECTOR)
    board.add_embedding(
        torch.from_numpy(found.vectors[frequent]), [tokens[entry] for entry in frequent], tag="word2vec"
    )
    board.close()
    used = np.flatnonzero(found.counts)
    return {
        "entries": len(found.vectors),
        "width": int(found.vectors.shape[1]),
        "coverage": read_manifest(folder, word_vectors.KIND)["coverage"],
        "initializer_range": config.initializer_range,
        "norms": norms(found.vectors),
        "norm_in_model": initialisation.length_of_vectors(found.vectors.shape[1], config.initializer_range),
        "neighbours": {
            tokens[entry]: [
                (tokens[other], round(cosine, 3)) for other, cosine in neighbours(found.vectors, entry, used)
            ]
            for entry in shown
        },
    }


def compare_runs(runs: list[Path], until: int) -> dict[str, dict[int, float]]:
    """Return held-out losses of runs at their evaluations up to a step.

    Raises: ScalerError for a folder without such losses.
    """
    curves: dict[str, dict[int, float]] = {}
    for run in runs:
        logged = [record for record in files.records(run / files.METRICS) if "heldout_loss" in record]
        if not logged:
            raise ScalerError(f"{run}: no held-out losses in its {files.METRICS}; name the folder of a run")
        if run.name in curves:
            raise ScalerError(f"{run}: another run is called {run.name}, too; rename one")
        curves[run.name] = {record["step"]: record["heldout_loss"] for record in logged if record["step"] <= until}
    return curves


def draw(curves: dict[str, dict[int, float]], path: Path) -> None:
    """Draw the held-out losses of runs."""
    figure, axes = charts.one_panel(layout="tight")
    for name, curve in curves.items():
        axes.plot([*curve], [*curve.values()], marker="o", markersize=3, label=name)
    axes.set(xlabel="optimizer step", ylabel="held-out masked-LM loss (nats)")
    axes.legend()
    axes.grid(alpha=0.3)
    charts.save(figure, path)


def render(content: dict[str, Any]) -> str:
    """Format the report as text."""
    coverage = content["coverage"]
    lines = [
        f"{content['entries']:,} vectors of {content['width']} numbers; {coverage['entries']:.2%} of the entries have "
        f"one of their own, which stand for {coverage['tokens']:.2%} of the training tokens",
        "  percentile          " + "".join(f"{f'{percentile} %':>9}" for percentile in PERCENTILES),
        "  length as trained   " + "".join(f"{content['norms'][f'p{percentile}']:>9.4f}" for percentile in PERCENTILES),
        f"  length of all in the model, for initializer_range {content['initializer_range']}: "
        f"{content['norm_in_model']:.4f}",
        "nearest by cosine",
        *(
            f"  {word:<16} " + ", ".join(f"{other} {cosine:.2f}" for other, cosine in near)
            for word, near in content["neighbours"].items()
        ),
    ]
    for name, curve in content["runs"].items():
        lines.append(
            f"{name}: held-out loss " + ", ".join(f"{loss:.3f} at step {step:,}" for step, loss in curve.items())
        )
    return "\n".join(lines)


def run(arguments: argparse.Namespace) -> None:
    """Write the report of a command line, and print it."""
    content = describe_vectors(load(arguments.recipe), arguments.words, arguments.out)
    content["runs"] = compare_runs(arguments.runs, arguments.until)
    # first, because the disk may refuse the files
    print(json.dumps(content, indent=2) if arguments.json else render(content), flush=True)
    path = arguments.out / "report.json"
    with explain_disk_errors(arguments.out):
        arguments.out.mkdir(parents=True, exist_ok=True)
        write_json(path, content)
    if arguments.runs:
        with dispensable(f"{arguments.out}: no picture"):
            draw(content["runs"], arguments.out / "runs.png")
    if not arguments.json:
        print(f"  {path}\n  tensorboard --logdir {arguments.out / PROJECTOR}")

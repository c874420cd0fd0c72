"""Recipes: the description of one experiment. Frozen, and strict about every key and value."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field

from scaler.config import typed
from scaler.config.data_sections import Cleaning, Corpus, Data, Dedup, Tokenizer, Word2Vec
from scaler.config.training_sections import (
    Checkpoint,
    Faults,
    Initialisation,
    Objective,
    Optimizer,
    Schedule,
    Training,
)
from scaler.core.errors import ScalerError, nearest

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT_RECIPE = "quickstart"
EXTENDS = "extends"  # names the recipe that a file changes
Section = typing.TypeVar("Section")


@typed.settings("")
class Recipe:
    """A frozen description of one experiment."""

    name: str
    """Name of the experiment, and of its run's folder; by default the name of the file."""
    corpus: Corpus
    tokenizer: Tokenizer
    data: Data
    model: Mapping[str, Any]
    """Settings of Transformers' configuration class of `model_type`; sizes of vocabulary and special tokens follow
    from the tokenizer."""
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    cleaning: Cleaning = field(default_factory=Cleaning)
    dedup: Dedup = field(default_factory=Dedup)
    word2vec: Word2Vec | None = None
    objective: Objective = field(default_factory=Objective)
    initialisation: Initialisation = field(default_factory=Initialisation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    faults: Faults = field(default_factory=Faults)
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)] = 0
    """Seed of weights, order of rows, masks and dropout."""

    def __post_init__(self) -> None:
        wanted = self.initialisation.word2vec
        rule = "it needs a section word2vec, which describes the vectors"
        typed.require(not wanted or self.word2vec is not None, "initialisation.word2vec", wanted, rule)
        for key, probability in vars(self.objective).items():
            if probability is not None:
                masked_per_row(self.data.seq_len, probability, key)

    def masked_per_row(self, done: float) -> int:
        """Return the masked positions of a training row when the fraction `done` of the steps is done."""
        return masked_per_row(self.data.seq_len, self.objective.at(done))

    @property
    def most_masked_per_row(self) -> int:
        """Return the most masked positions of a row over the whole training."""
        return max(self.masked_per_row(0.0), self.masked_per_row(1.0))

    @property
    def text_folder(self) -> Path:
        """Return the folder of corpus, clean and dedup."""
        return Path(self.data.text_folder or self.data.folder)

    @property
    def tokenizer_folder(self) -> Path:
        """Return the folder of the tokenizer."""
        return Path(self.data.folder) / "tokenizer"

    @property
    def word2vec_folder(self) -> Path:
        """Return the folder of the vectors of the tokenizer's entries."""
        return Path(self.data.folder) / "word2vec"

    @property
    def rows_folder(self) -> Path:
        """Return the folder of the rows of tokens."""
        return Path(self.data.folder) / f"rows-{self.data.seq_len}"

    def to_plain(self) -> dict[str, Any]:
        """Return the whole recipe, defaults filled in, as lists and mappings."""
        return typing.cast(dict[str, Any], typed.plain(dataclasses.asdict(self)))

    def to_yaml(self) -> str:
        """Return the whole recipe as YAML that `load` reads back equal."""
        return yaml.safe_dump(self.to_plain(), sort_keys=False, allow_unicode=True)


def compared(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return a plain recipe without `unusable_percent` and `text_unit`: recipes of before lack one, or have a default.

    What they change is the text, and so the checksums of the rows, which are compared, too.
    """
    corpus = {key: value for key, value in content.get("corpus", {}).items() if key != "unusable_percent"}
    sources = [
        {key: value for key, value in source.items() if key != "text_unit"} for source in corpus.get("sources", [])
    ]
    return {**content, "corpus": {**corpus, "sources": sources}}


def find(name_or_path: str) -> Path:
    """Find the file of a recipe: a shipped one by name, or any by path. Raises ScalerError if there is none."""
    shipped = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if name_or_path in shipped:
        return shipped[name_or_path]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise ScalerError(f"no recipe and no file {name_or_path!r}; {nearest(name_or_path, shipped)}")


def load(name_or_path: str = DEFAULT_RECIPE, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides; values are YAML.

    Raises: ScalerError with all problems: each names the key, the value, and the rule or the nearest known key.
    """
    path = find(name_or_path)
    content = _content(path, ())
    content["name"] = content.get("name", path.stem)
    shipped = path.parent == RECIPES
    remedy = "give a value as section.key=value" if shipped else f"add {{it}} to {path}, or give section.key=value"
    return typed.build(Recipe, typed.apply(content, overrides), remedy=remedy)


def _content(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """Read a file on top of the recipe that it extends, if any; `readers` are the files that extend it."""
    content = typed.read_yaml(path)
    if not isinstance(content, dict):
        raise ScalerError(f"{path}: a recipe is a mapping of sections; see {RECIPES / 'quickstart.yaml'}")
    if EXTENDS not in content:
        return content
    named = str(content.pop(EXTENDS))
    beside = path.parent / named
    base = beside if beside.is_file() else find(named)
    if base in (*readers, path):
        raise ScalerError(f"{path}: extends {base}, which extends it; take one of the two out")
    below = _content(base, (*readers, path))
    if isinstance(content.get("model"), dict) and "model_type" in content["model"]:
        below.pop("model", None)  # whose keys another type may not have
    whole = typed.merged(below, content)
    whole["name"] = content.get("name", path.stem)  # and not that of the other
    return whole


def section(kind: type[Section], name: str, overrides: Sequence[str]) -> Section:
    """Make one section of a recipe of `key=value` settings alone. Raises ScalerError as `load` does."""
    return typed.build(kind, typed.apply({}, overrides), name)


def masked_per_row(seq_len: int, mask_probability: float, key: str = "mask_probability") -> int:
    """Return the number of masked positions in a row. Raises ScalerError, with the recipe's key, if none or all are."""
    count = round(seq_len * mask_probability)
    if not 1 <= count < seq_len:
        raise ScalerError(
            f"recipe: objective.{key}={mask_probability} masks {count} of {seq_len} tokens of a row, but 1 to "
            f"{seq_len - 1} can be"
        )
    return count

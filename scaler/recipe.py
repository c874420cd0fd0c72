"""Recipes: the experiment's own room. Typed, frozen, and strict about every key and value."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scaler.errors import ScalerError, nearest
from scaler.schedule import SHAPES

RECIPES = Path(__file__).parent / "recipes"
DEFAULT_RECIPE = "quickstart"


def _require(holds: bool, where: str, value: object, rule: str) -> None:
    if not holds:
        raise ScalerError(f"recipe: {where}={value!r}, but {rule}")


@dataclass(frozen=True)
class Corpus:
    """Where text comes from: "aws-docs", a file or folder, or a Hugging Face dataset id."""

    source: str
    text_field: str = "text"  # of JSON lines, Parquet and hub datasets
    text_unit: str = "paragraph"  # what a document is in .txt files: "paragraph" (blank lines between), "line", "file"
    hub_config: str | None = None
    hub_split: str = "train"
    min_characters: int = 1  # shorter documents are left out
    heldout_percent: float = 1.0  # share of documents kept apart, by hash
    part_mib: int = 256  # text in one corpus file, and so in one shard

    def __post_init__(self) -> None:
        units = ("paragraph", "line", "file")
        _require(self.text_unit in units, "corpus.text_unit", self.text_unit, f"it is one of {', '.join(units)}")
        _require(0 < self.heldout_percent < 50, "corpus.heldout_percent", self.heldout_percent, "0 < share < 50")
        _require(self.part_mib >= 1, "corpus.part_mib", self.part_mib, "it is at least 1")
        _require(self.min_characters >= 0, "corpus.min_characters", self.min_characters, "it is at least 0")


@dataclass(frozen=True)
class Tokenizer:
    """A byte-level BPE of this many entries, special tokens included."""

    vocab_size: int

    def __post_init__(self) -> None:
        # 256 bytes and five special tokens are always there
        _require(self.vocab_size >= 300, "tokenizer.vocab_size", self.vocab_size, "a byte-level BPE needs at least 300")


@dataclass(frozen=True)
class Data:
    """Prepared data: `folder` holds corpus/, tokenizer/ and shards/; rows are `seq_len` tokens long."""

    folder: str
    seq_len: int

    def __post_init__(self) -> None:
        _require(self.seq_len >= 8, "data.seq_len", self.seq_len, "a row has at least 8 tokens")


@dataclass(frozen=True)
class Objective:
    """Masked-LM: share of a row's positions that are masked in training and in (comparable) evaluation."""

    mask_probability: float = 0.15
    heldout_mask_probability: float = 0.15

    def __post_init__(self) -> None:
        for name in ("mask_probability", "heldout_mask_probability"):
            _require(0 < getattr(self, name) < 1, f"objective.{name}", getattr(self, name), "it is between 0 and 1")


@dataclass(frozen=True)
class Initialisation:
    """Where training starts, beyond Transformers' own random weights (see scaler/initialisation.py)."""

    unigram_bias: bool = False  # the decoder's bias at the log-frequency of each token
    neighbour_heads: tuple[int, ...] = ()  # offsets that the first layer's heads look at


@dataclass(frozen=True)
class Optimizer:
    """AdamW (Loshchilov and Hutter 2019) or SGD; no weight decay on biases and norms."""

    learning_rate: float
    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.98)  # Liu et al. 2019 (RoBERTa)
    eps: float = 1e-6  # Liu et al. 2019 (RoBERTa)
    weight_decay: float = 0.01
    momentum: float = 0.9  # of SGD
    embedding_rate: float = 1.0  # learning rate of the embeddings, as a multiple

    def __post_init__(self) -> None:
        _require(self.name in ("adamw", "sgd"), "optimizer.name", self.name, "it is adamw or sgd")
        for name in ("learning_rate", "eps"):
            value = getattr(self, name)
            _require(0 < value < math.inf, f"optimizer.{name}", value, "it is above 0, and finite")
        _require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "it is at least 0")
        _require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "it is in [0, 1)")
        _require(self.embedding_rate >= 0, "optimizer.embedding_rate", self.embedding_rate, "it is at least 0")
        _require(all(0 <= beta < 1 for beta in self.betas), "optimizer.betas", self.betas, "each is in [0, 1)")


@dataclass(frozen=True)
class Schedule:
    """Shape of the learning rate: linear warm-up, then decay to `floor` times the peak."""

    warmup_share: float  # of all steps
    shape: str = "linear"
    floor: float = 0.0

    def __post_init__(self) -> None:
        _require(self.shape in SHAPES, "schedule.shape", self.shape, f"it is one of {', '.join(SHAPES)}")
        _require(0 <= self.warmup_share <= 1, "schedule.warmup_share", self.warmup_share, "it is between 0 and 1")
        _require(0 <= self.floor <= 1, "schedule.floor", self.floor, "it is a share between 0 and 1")


@dataclass(frozen=True)
class Training:
    """Length and batch. `rows` is the global batch; micro-batch and accumulation are solved from it."""

    steps: int
    rows: int
    max_micro_rows: int = 64  # rows that one rank's memory takes at once
    log_every: int = 50  # optimizer steps
    evaluate_every: int = 500  # optimizer steps

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require(value >= 1, f"training.{name}", value, "it is at least 1")


@dataclass(frozen=True)
class Recipe:
    """One experiment. `model` is handed to Transformers' configuration class of its `model_type`."""

    name: str
    corpus: Corpus
    tokenizer: Tokenizer
    data: Data
    model: Mapping[str, Any]
    optimizer: Optimizer
    schedule: Schedule
    training: Training
    objective: Objective = field(default_factory=Objective)
    initialisation: Initialisation = field(default_factory=Initialisation)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "it is at least 0 and below 2**63")

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies."""
        return Path(self.data.folder) / "tokenizer"

    @property
    def shards_folder(self) -> Path:
        """Where the token shards lie."""
        return Path(self.data.folder) / "shards"

    def to_yaml(self) -> str:
        """The whole recipe, defaults filled in, as YAML that `load` reads back equal."""
        return yaml.safe_dump(_plain(dataclasses.asdict(self)), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, list | tuple) else value


def _convert(value: Any, kind: Any, where: str) -> Any:
    """Check `value` against a type hint and build it; `where` names it in errors."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        return _build(typing.cast(type, kind), value, where)
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _convert(value, next(a for a in arguments if a is not type(None)), where)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ScalerError(f"recipe: {where}={value!r}, but a list is needed")
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(value) == len(arguments):
            return tuple(_convert(item, argument, where) for item, argument in zip(value, arguments, strict=True))
        raise ScalerError(f"recipe: {where}={value!r}, but {len(arguments)} values belong there")
    expected = dict if origin is not None else kind
    if kind is float and isinstance(value, str):  # YAML 1.1 reads 5e-5 as a string
        try:
            value = float(value)
        except ValueError:
            pass
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ScalerError(f"recipe: {where}={value!r}, but {expected.__name__} is needed")
    return value


def _build(kind: type, content: Any, where: str) -> Any:
    prefix = f"{where}." if where else ""
    if not isinstance(content, Mapping):
        raise ScalerError(f"recipe: {where or 'the file'} is {content!r}, but a mapping of keys is needed")
    hints = typing.get_type_hints(kind)
    for name in content:
        if name not in hints:
            raise ScalerError(f"recipe: unknown key {prefix}{name}; {nearest(str(name), hints)}")
    for member in dataclasses.fields(kind):
        no_default = member.default is dataclasses.MISSING and member.default_factory is dataclasses.MISSING
        if no_default and member.name not in content:
            raise ScalerError(f"recipe: {prefix}{member.name} is missing")
    return kind(**{name: _convert(value, hints[name], prefix + name) for name, value in content.items()})


def find(name_or_path: str) -> Path:
    """The file of a recipe: a shipped one by name, or any by path."""
    shipped = {path.stem: path for path in RECIPES.glob("*.yaml")}
    if name_or_path in shipped:
        return shipped[name_or_path]
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    raise ScalerError(f"no recipe and no file {name_or_path!r}; {nearest(name_or_path, shipped)}")


def load(name_or_path: str = DEFAULT_RECIPE, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe and apply `section.key=value` overrides; values are YAML.

    Raises: ScalerError that names the key, the rule and the nearest known key.
    """
    path = find(name_or_path)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScalerError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if not isinstance(content, dict):
        raise ScalerError(f"{path}: a recipe is a mapping of sections; see {RECIPES / 'quickstart.yaml'}")
    content.setdefault("name", path.stem)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise ScalerError(f"{override!r} is no option: overrides look like training.steps=100")
        *sections, last = key.split(".")
        inner = content
        for section in sections:
            inner = inner.setdefault(section, {})
            if not isinstance(inner, dict):
                raise ScalerError(f"recipe: {override!r}: {section} is a value, not a section")
        try:
            inner[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise ScalerError(f"recipe: {override!r}: the value is not YAML") from error
    return typing.cast(Recipe, _build(Recipe, content, ""))

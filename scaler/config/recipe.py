"""Recipes: the experiment's own room. Typed, frozen, and strict about every key and value."""

from __future__ import annotations

import dataclasses
import math
import re
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from scaler.config import typed
from scaler.config.schedule import SHAPES
from scaler.core.errors import ScalerError, nearest

RECIPES = Path(__file__).parent.parent / "recipes"
DEFAULT_RECIPE = "quickstart"
EXTENDS = "extends"  # names the recipe that a file changes
Section = typing.TypeVar("Section")


def _require(holds: bool, where: str, value: object, rule: str) -> None:
    if not holds:
        raise ScalerError(f"recipe: {where}={value!r}, but {rule}")


@dataclass(frozen=True)
class Source:
    """Where text comes from: "aws-docs", a file or folder, or a Hugging Face dataset id; and its part of the mix.

    `weight` is the source's share of all training tokens, relative to the other weights; `epochs` says instead how
    often each of its tokens is used in one pass. Neither: once.
    """

    source: str = field(metadata={typed.ALONE: True})
    name: str = ""  # in reports and file names; by default the last part of `source`
    text_field: str = "text"  # of JSON lines, Parquet and hub datasets; "a.b" is the field b of a
    id_field: str | None = None  # whose values name the documents, each at most once
    text_unit: str = "paragraph"  # what a document is in .txt files: "paragraph" (blank lines between), "line", "file"
    hub_config: str | None = None
    hub_split: str = "train"
    hub_revision: str | None = None  # a commit, so that the source never changes
    max_mib: float | None = None  # of text, after which no more is read
    weight: float | None = None
    epochs: float | None = None

    def __post_init__(self) -> None:
        units = ("paragraph", "line", "file")
        _require(self.text_unit in units, "text_unit", self.text_unit, f"it is one of {', '.join(units)}")
        if not self.name:
            stem = Path(self.source).name.partition(".")[0]
            object.__setattr__(self, "name", re.sub(r"[^A-Za-z0-9_]+", "_", stem) or "source")
        _require(re.fullmatch(r"\w+", self.name) is not None, "name", self.name, "it is made of letters, digits and _")
        for key in ("max_mib", "weight", "epochs"):
            value = getattr(self, key)
            _require(value is None or 0 < value < math.inf, key, value, "it is above 0, and finite")
        _require(self.weight is None or self.epochs is None, "epochs", self.epochs, "a source has a weight or epochs")


@dataclass(frozen=True)
class Corpus:
    """The sources of text, how much of them is used, and how documents are kept."""

    sources: tuple[Source, ...]
    tokens: int | None = None  # of one pass over weighted sources; by default, until one source is used up
    heldout_percent: float = 1.0  # share of documents kept apart, by hash: for evaluation while training
    test_percent: float = 1.0  # as much again, which nothing but `scaler.evaluate` reads; 0: none
    part_mib: int = 256  # text in one corpus file, and so in one shard
    max_document_mib: int = 64  # a longer one is taken for a damaged file

    def __post_init__(self) -> None:
        _require(0 < self.heldout_percent < 50, "corpus.heldout_percent", self.heldout_percent, "0 < share < 50")
        _require(0 <= self.test_percent < 50, "corpus.test_percent", self.test_percent, "0 <= share < 50")
        for name in ("part_mib", "max_document_mib"):
            _require(getattr(self, name) >= 1, f"corpus.{name}", getattr(self, name), "it is at least 1")
        _require(len(self.sources) > 0, "corpus.sources", self.sources, "there is at least one")
        names = [source.name for source in self.sources]
        for name in names:
            _require(names.count(name) == 1, "corpus.sources", name, "each has a name of its own; set `name`")
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted:
            without = [source.name for source in self.sources if source.weight is None]
            _require(not without, "corpus.sources", ", ".join(without), "all have a weight where one has")
        _require(self.tokens is None or self.tokens >= 1, "corpus.tokens", self.tokens, "it is at least 1")
        _require(self.tokens is None or bool(weighted), "corpus.tokens", self.tokens, "it goes with sources of weights")


@dataclass(frozen=True)
class Cleaning:
    """What is done to each document, in this order. All is off by default."""

    unicode_repair: bool = False  # mojibake, control characters: ftfy
    markup: bool = False  # HTML becomes plain text
    normalise: str | None = None  # Unicode form: NFC, NFKC, NFD or NFKD
    languages: tuple[str, ...] = ()  # to keep, ISO 639-1 codes; none given: all
    language_confidence: float = 0.65  # Penedo et al. 2024 (FineWeb)
    gopher_repetition: bool = False  # Rae et al. 2021
    gopher_quality: bool = False  # likewise
    c4: bool = False  # Raffel et al. 2020; drops lines, too
    fineweb: bool = False  # Penedo et al. 2024
    min_characters: int = 1  # shorter documents are left out
    max_characters: int | None = None  # longer ones, too
    mask_personal_data: bool = False  # e-mail addresses and public IP addresses

    def __post_init__(self) -> None:
        forms = (None, "NFC", "NFKC", "NFD", "NFKD")
        _require(self.normalise in forms, "cleaning.normalise", self.normalise, f"it is one of {forms[1:]}")
        for code in self.languages:
            _require(re.fullmatch("[a-z]{2,3}", code) is not None, "cleaning.languages", code, "codes look like en, de")
        share = self.language_confidence
        _require(0 <= share <= 1, "cleaning.language_confidence", share, "it is between 0 and 1")
        _require(self.min_characters >= 1, "cleaning.min_characters", self.min_characters, "it is at least 1")
        most = self.max_characters
        rule = "it is at least cleaning.min_characters"
        _require(most is None or most >= self.min_characters, "cleaning.max_characters", most, rule)


@dataclass(frozen=True)
class Dedup:
    """Which documents count as repeats of an earlier one; held-out ones are the earliest, then those of the test."""

    exact: bool = True
    near: bool = True  # by MinHash
    ngram: int = 5  # words that a shingle has
    bands: int = 14  # with band_rows of 8, Penedo et al. 2024 (FineWeb): half of the pairs of similarity 0.69 are found
    band_rows: int = 8

    def __post_init__(self) -> None:
        for name in ("ngram", "bands", "band_rows"):
            _require(getattr(self, name) >= 1, f"dedup.{name}", getattr(self, name), "it is at least 1")
        _require(self.bands <= 256, "dedup.bands", self.bands, "it is at most 256")


@dataclass(frozen=True)
class Tokenizer:
    """How text becomes tokens, in this many entries, special tokens included.

    `kind` is "byte_bpe", with RoBERTa's special tokens, or one of two with BERT's: "wordpiece", and "words", which has
    the most frequent words whole, and the pieces of a small WordPiece for all others.
    """

    vocab_size: int
    sample_mib: int = 1024  # of text that it is trained on, chosen by hash: its memory grows with it
    kind: str = "byte_bpe"
    lowercase: bool = False  # and without accents, as uncased BERT; not for byte_bpe
    pieces: int = 16384  # of the vocabulary of kind "words", special tokens included

    def __post_init__(self) -> None:
        kinds = ("byte_bpe", "wordpiece", "words")
        _require(self.kind in kinds, "tokenizer.kind", self.kind, f"it is one of {', '.join(kinds)}")
        # the 256 bytes and the special tokens are always there
        _require(self.vocab_size >= 300, "tokenizer.vocab_size", self.vocab_size, "it is at least 300")
        _require(self.sample_mib >= 1, "tokenizer.sample_mib", self.sample_mib, "it is at least 1")
        cased = not self.lowercase or self.kind != "byte_bpe"
        _require(cased, "tokenizer.lowercase", self.lowercase, "a byte-level BPE keeps every byte")
        if self.kind == "words":
            between = 300 <= self.pieces < self.vocab_size
            _require(between, "tokenizer.pieces", self.pieces, f"it is at least 300, and below {self.vocab_size}")


@dataclass(frozen=True)
class Word2Vec:
    """A vector for each entry of the tokenizer (Mikolov et al. 2013), trained on the shards, or ready made."""

    vector_size: int  # that of the model's embeddings
    architecture: str = "cbow"  # or "skip-gram", which takes three times as long (docs/log.md)
    window: int = 5  # tokens on either side
    negative: int = 5  # samples drawn against each token that is there
    epochs: int = 3  # as vocab-transformers (2022)
    shrink_windows: bool = True  # each window is of 1 to `window` tokens, at random, so that near ones count for more
    sample: float = 1e-3  # tokens of a larger share of all are left out at random; 0: none
    learning_rate: float = 0.025  # falls linearly over all epochs
    min_learning_rate: float = 1e-4  # to this
    min_count: int = 5  # entries that occur less often get a drawn vector instead
    ready_made: str | None = None  # file of vectors to take instead of training: .vec, .txt, .bin or .kv

    def __post_init__(self) -> None:
        kinds = ("cbow", "skip-gram")
        rule = f"it is one of {', '.join(kinds)}"
        _require(self.architecture in kinds, "word2vec.architecture", self.architecture, rule)
        for name in ("vector_size", "window", "negative", "epochs", "min_count"):
            _require(getattr(self, name) >= 1, f"word2vec.{name}", getattr(self, name), "it is at least 1")
        _require(0 <= self.sample < 1, "word2vec.sample", self.sample, "it is a share: at least 0 and below 1")
        rate, least = self.learning_rate, self.min_learning_rate
        _require(0 < rate < math.inf, "word2vec.learning_rate", rate, "it is above 0, and finite")
        rule = "it is above 0 and at most word2vec.learning_rate"
        _require(0 < least <= rate, "word2vec.min_learning_rate", least, rule)
        endings = (".vec", ".txt", ".bin", ".kv")
        known = self.ready_made is None or self.ready_made.endswith(endings)
        _require(known, "word2vec.ready_made", self.ready_made, f"it ends in one of {', '.join(endings)}")


@dataclass(frozen=True)
class Data:
    """Prepared data: `folder` holds corpus/ to rows-N/; rows are `seq_len` tokens long."""

    folder: str
    seq_len: int
    text_folder: str | None = None  # holds corpus/, clean/ and dedup/ instead, which several tokenizers may share

    def __post_init__(self) -> None:
        _require(self.seq_len >= 8, "data.seq_len", self.seq_len, "a row has at least 8 tokens")


@dataclass(frozen=True)
class Objective:
    """Masked-LM: share of a row's positions that are masked in training and in (comparable) evaluation."""

    mask_probability: float = 0.15
    final_mask_probability: float | None = None  # to which training's share goes with the steps, in a line
    heldout_mask_probability: float = 0.15

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            rule = "it is between 0 and 1"
            _require(value is None or 0 < value < 1, f"objective.{name}", value, rule)

    def at(self, done: float) -> float:
        """Training's share of masks once this share of the steps is done, 0 to 1 (linear: Ankner et al. 2024)."""
        first, last = self.mask_probability, self.final_mask_probability
        return first if last is None else first + (last - first) * done


@dataclass(frozen=True)
class Initialisation:
    """Where training starts, beyond Transformers' own random weights (see scaler/initialisation.py)."""

    unigram_bias: bool = False  # the decoder's bias at the log-frequency of each token
    neighbour_heads: tuple[int, ...] = ()  # offsets that the first layer's heads look at
    word2vec: bool = False  # token embeddings from the vectors that the section `word2vec` makes


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
    frozen_embeddings: bool = False  # the token embeddings stay as they are: no gradient, no optimizer state, no decay

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
    patience: int | None = None  # evaluations without a lower held-out loss, after which the run stops early

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _require(value is None or value >= 1, f"training.{name}", value, "it is at least 1")


@dataclass(frozen=True)
class Checkpoint:
    """How often the whole state of a run is saved, and which of these checkpoints stay beside the best one."""

    every: int = 500  # optimizer steps; so many at most are lost with the run's machines
    keep_last: int = 2
    keep_every: int | None = None  # optimizer steps, whose multiples stay for ever
    asynchronous: bool = True  # training goes on while they are written, for a copy of the state in the host's memory

    def __post_init__(self) -> None:
        for name in ("every", "keep_last", "keep_every"):
            value = getattr(self, name)
            _require(value is None or value >= 1, f"checkpoint.{name}", value, "it is at least 1")


@dataclass(frozen=True)
class Faults:
    """What a run bears before it goes back to a checkpoint, and before it stops."""

    skips: int = 3  # batches in a row of non-finite loss or gradient that are left out; one more, and the run goes back
    rollbacks: int = 2  # without a new checkpoint in between; each goes one checkpoint further back; then the run stops
    spike_deviations: float | None = 10.0  # robust standard deviations above the last losses' median; null: no look-out
    spike_rollback: bool = False  # go back from a spike, too
    failed_saves: int = 3  # in a row; then the run stops
    hang_seconds: int = 600  # without progress, after which a rank ends the job

    def __post_init__(self) -> None:
        for name in ("skips", "rollbacks"):
            _require(getattr(self, name) >= 0, f"faults.{name}", getattr(self, name), "it is at least 0")
        for name in ("failed_saves", "hang_seconds"):
            _require(getattr(self, name) >= 1, f"faults.{name}", getattr(self, name), "it is at least 1")
        spike = self.spike_deviations
        _require(spike is None or 0 < spike < math.inf, "faults.spike_deviations", spike, "it is above 0, and finite")


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
    cleaning: Cleaning = field(default_factory=Cleaning)
    dedup: Dedup = field(default_factory=Dedup)
    word2vec: Word2Vec | None = None
    objective: Objective = field(default_factory=Objective)
    initialisation: Initialisation = field(default_factory=Initialisation)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    faults: Faults = field(default_factory=Faults)
    seed: int = 0

    def __post_init__(self) -> None:
        _require(0 <= self.seed < 1 << 63, "seed", self.seed, "it is at least 0 and below 2**63")
        wanted = self.initialisation.word2vec
        rule = "a section word2vec has to say where the vectors come from"
        _require(not wanted or self.word2vec is not None, "initialisation.word2vec", wanted, rule)
        for key, probability in vars(self.objective).items():
            if probability is not None:
                masked_per_row(self.data.seq_len, probability, key)

    def masked_per_row(self, done: float) -> int:
        """Masked positions of a training row once this share of the steps is done, 0 to 1."""
        return masked_per_row(self.data.seq_len, self.objective.at(done))

    @property
    def most_masked_per_row(self) -> int:
        """The most of them over the whole training."""
        return max(self.masked_per_row(0.0), self.masked_per_row(1.0))

    @property
    def text_folder(self) -> Path:
        """Where corpus, clean and dedup lie."""
        return Path(self.data.text_folder or self.data.folder)

    @property
    def tokenizer_folder(self) -> Path:
        """Where the tokenizer lies."""
        return Path(self.data.folder) / "tokenizer"

    @property
    def word2vec_folder(self) -> Path:
        """Where the vectors of the tokenizer's entries lie."""
        return Path(self.data.folder) / "word2vec"

    @property
    def rows_folder(self) -> Path:
        """Where the rows of tokens lie."""
        return Path(self.data.folder) / f"rows-{self.data.seq_len}"

    def to_plain(self) -> dict[str, Any]:
        """The whole recipe, defaults filled in, as lists and mappings."""
        return typing.cast(dict[str, Any], typed.plain(dataclasses.asdict(self)))

    def to_yaml(self) -> str:
        """The same as YAML that `load` reads back equal."""
        return yaml.safe_dump(self.to_plain(), sort_keys=False, allow_unicode=True)


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
    content = _content(path, ())
    content["name"] = content.get("name", path.stem)
    return typing.cast(Recipe, typed.build(Recipe, typed.apply(content, overrides), ""))


def _content(path: Path, readers: tuple[Path, ...]) -> dict[str, Any]:
    """What a file says, on top of the recipe that it extends, if any; `readers` came here by extending."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ScalerError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
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
    """One section of a recipe, out of `key=value` settings alone. Raises ScalerError as `load` does."""
    return typing.cast(Section, typed.build(kind, typed.apply({}, overrides), name))


def masked_per_row(seq_len: int, mask_probability: float, key: str = "mask_probability") -> int:
    """The number of masked positions in a row. Raises ScalerError, with the recipe's key, for none and for all."""
    count = round(seq_len * mask_probability)
    if not 1 <= count < seq_len:
        raise ScalerError(
            f"recipe: objective.{key}={mask_probability} masks {count} of {seq_len} tokens of a row, but 1 to "
            f"{seq_len - 1} can be"
        )
    return count

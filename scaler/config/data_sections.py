"""Sections of a recipe that describe the data: from sources of text to rows of tokens."""

from __future__ import annotations

import glob
import re
from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, GetJsonSchemaHandler, model_validator
from pydantic_core import CoreSchema

from scaler.config.typed import READ_FLOAT, BelowOne, Count, Fraction, Positive, require, settings


def _pattern(pattern: str, rule: str) -> Any:
    return Field(pattern=pattern, json_schema_extra={"patternErrorMessage": rule})


Name = Annotated[str, _pattern(r"^\w*$", "it is made of letters, digits and _")]
LanguageCode = Annotated[str, _pattern("^[a-z]{2,3}$", "codes look like en, de")]
# above these a value is a slip of the pen, or makes a library overflow; published ones are a tenth or less
Width = Annotated[int, Field(ge=1, le=65_536)]
Window = Annotated[int, Field(ge=1, le=10_000)]  # gensim trains on pieces of so many tokens
Few = Annotated[int, Field(ge=1, le=1_000)]
Occurrences = Annotated[int, Field(ge=1, le=1_000_000_000)]
Rate = Annotated[float, Field(gt=0, le=1), READ_FLOAT]
Entries = Annotated[int, Field(ge=300, le=10_000_000)]  # the 256 bytes and the special tokens are always there
VectorFile = Annotated[str, _pattern(r"\.(vec|txt|bin|kv)$", "it ends in one of .vec, .txt, .bin, .kv")]


@settings("corpus.sources")
class Source:
    """A source of text, and its part of the mix. A string in place of the mapping is its `source`."""

    source: str
    """"aws-docs", a file, a folder, a pattern such as my/*.jsonl, or a Hugging Face dataset, OWNER/NAME."""
    name: Name = ""
    """Name in reports and file names; by default the last part of `source`."""
    text_field: str = "text"
    """Field that holds the text of JSON, tables and hub datasets; where no field has the name "a.b", it is the field b
    of a."""
    id_field: str | None = None
    """Field whose values name the documents, each at most once; null: documents are numbered."""
    text_unit: Literal["paragraph", "line", "file"] | None = None
    """Unit of .txt, .md and .rst files that is a document: a paragraph (blank lines between), a line, or the file;
    null: the file where a folder has many small ones (300, with splits of 1 %), else a paragraph."""
    hub_config: str | None = None
    """Configuration of a hub dataset."""
    hub_split: str = "train"
    """Split of a hub dataset."""
    hub_revision: str | None = None
    """Commit of a hub dataset, so that the source never changes; null: the newest."""
    max_mib: Positive | None = None
    """Text in MiB after which no more is read; null: all."""
    weight: Positive | None = None
    """Fraction of all training tokens that the source gives, relative to the other weights."""
    epochs: Positive | None = None
    """Number of times that each token of the source is used in one pass, instead of a weight; neither: once."""

    @model_validator(mode="before")
    @classmethod
    def _from_string(cls, value: Any) -> Any:
        return {"source": value} if isinstance(value, str) else value

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "string"}, handler(core)]}

    def __post_init__(self) -> None:
        if not self.name:
            parts = [part for part in Path(self.source).parts if not glob.has_magic(part)]  # of my/*.txt: my
            stem = Path(*parts).name.partition(".")[0]
            object.__setattr__(self, "name", re.sub(r"[^A-Za-z0-9_]+", "_", stem) or "source")
        require(self.weight is None or self.epochs is None, "epochs", self.epochs, "a source has a weight or epochs")


@settings("corpus")
class Corpus:
    """The sources of text, how much of them is used, and how documents are kept."""

    sources: Annotated[tuple[Source, ...], Field(min_length=1)]
    """Sources of the text, at least one; each a string or a mapping (below)."""
    tokens: Count | None = None
    """Tokens of one pass over weighted sources; null: until one source is used up."""
    heldout_percent: Annotated[float, Field(gt=0, lt=50), READ_FLOAT] = 1.0
    """Documents in % that are held out, chosen by hash, for evaluation while training."""
    test_percent: Annotated[float, Field(ge=0, lt=50), READ_FLOAT] = 1.0
    """Documents in % that are kept for the test, which only `scaler.evaluate` reads; 0: none."""
    part_mib: Count = 256
    """Text in MiB in one file of the corpus, and so in one shard."""
    max_document_mib: Count = 64
    """Length in MiB above which a document counts as a damaged file."""
    unusable_percent: Annotated[float, Field(ge=0, le=100), READ_FLOAT] = 1.0
    """Records in % of a source that may lack the field, hold another type than text, or bytes that are not UTF-8. They
    are left out and counted; more of them are refused."""

    def __post_init__(self) -> None:
        for name, count in Counter(source.name for source in self.sources).items():
            require(count == 1, "sources", name, "each has a name of its own; set `name`")
        weighted = [source.name for source in self.sources if source.weight is not None]
        if weighted:
            without = [source.name for source in self.sources if source.weight is None]
            require(not without, "sources", ", ".join(without), "all have a weight where one has")
        require(self.tokens is None or bool(weighted), "tokens", self.tokens, "it goes with sources of weights")


@settings("cleaning")
class Cleaning:
    """Steps that each document goes through, in this order. By default only empty documents are left out."""

    unicode_repair: bool = False
    """Repair mojibake and control characters with ftfy."""
    markup: bool = False
    """Turn HTML into plain text."""
    normalise: Literal["NFC", "NFKC", "NFD", "NFKD"] | None = None
    """Unicode normal form of the text; null: as it is."""
    languages: tuple[LanguageCode, ...] = ()
    """Languages to keep, ISO 639-1 codes; none given: all."""
    language_confidence: Fraction = 0.65
    """Probability that the language detector must give (Penedo et al. 2024, FineWeb)."""
    gopher_repetition: bool = False
    """Leave out repetitive documents (Rae et al. 2021)."""
    gopher_quality: bool = False
    """Leave out documents that do not look like English prose, by stop words, too (Rae et al. 2021)."""
    c4: bool = False
    """Apply C4's rules for English, which also drop lines that end without its punctuation (Raffel et al. 2020)."""
    fineweb: bool = False
    """Apply FineWeb's rules (Penedo et al. 2024)."""
    min_characters: Count = 1
    """Length in characters below which a document is left out."""
    max_characters: int | None = None
    """Length in characters above which a document is left out; null: no limit."""
    mask_personal_data: bool = False
    """Replace e-mail addresses and public IP addresses."""

    def __post_init__(self) -> None:
        most = self.max_characters
        rule = "it is at least cleaning.min_characters"
        require(most is None or most >= self.min_characters, "max_characters", most, rule)


@settings("dedup")
class Dedup:
    """Removal of documents that repeat an earlier one. Held-out documents come first, then those of the test."""

    exact: bool = True
    """Leave out documents whose text is equal to an earlier one's."""
    near: bool = True
    """Leave out documents that resemble an earlier one, by MinHash."""
    ngram: Few = 5
    """Words in a shingle. Texts of fewer different words are compared whole; punctuation counts in code and short
    texts."""
    bands: Annotated[int, Field(ge=1, le=256)] = 14
    """MinHash bands; 14 of 8 find half of the pairs of similarity 0.69 (Penedo et al. 2024, FineWeb)."""
    band_rows: Annotated[int, Field(ge=1, le=256)] = 8
    """Hashes in a band: more of them find fewer pairs."""


@settings("tokenizer")
class Tokenizer:
    """The vocabulary, and how text is split into its tokens."""

    vocab_size: Entries
    """Entries of the vocabulary, special tokens included."""
    sample_mib: Annotated[int, Field(ge=1, le=1 << 20)] = 1024
    """Text in MiB that the tokenizer is trained on, chosen by hash; memory grows with it."""
    kind: Literal["byte_bpe", "wordpiece", "words"] = "byte_bpe"
    """byte_bpe has RoBERTa's special tokens, the others BERT's; words keeps the most frequent words whole, and splits
    all others into the pieces of a small WordPiece."""
    lowercase: bool = False
    """Lower-case the text and strip accents, as uncased BERT does; not with byte_bpe."""
    pieces: int = 16384
    """Entries of the WordPiece inside kind words, special tokens included: at least 300, and below vocab_size."""

    def __post_init__(self) -> None:
        cased = not self.lowercase or self.kind != "byte_bpe"
        require(cased, "lowercase", self.lowercase, "a byte-level BPE keeps every byte")
        if self.kind == "words":
            fits = 300 <= self.pieces < self.vocab_size
            require(fits, "pieces", self.pieces, f"it is at least 300, and below {self.vocab_size}")


@settings("word2vec")
class Word2Vec:
    """A vector for each entry of the tokenizer (Mikolov et al. 2013), trained on the shards, or ready made."""

    vector_size: Width
    """Numbers in a vector: the model's embedding size."""
    architecture: Literal["cbow", "skip-gram"] = "cbow"
    """Training objective; skip-gram takes three times as long."""
    window: Window = 5
    """Context in tokens on either side."""
    negative: Few = 5
    """Negative samples drawn for each token."""
    epochs: Annotated[int, Field(ge=1, le=1_000_000)] = 3
    """Passes over the shards (as vocab-transformers, 2022)."""
    shrink_windows: bool = True
    """Draw each window from 1 to `window` tokens, so that near tokens weigh more."""
    sample: BelowOne = 1e-3
    """Frequency above which tokens are left out at random, as a fraction of all tokens; 0: none are."""
    learning_rate: Rate = 0.025
    """Learning rate at the start; it falls linearly over all epochs."""
    min_learning_rate: Rate = 1e-4
    """Learning rate at the end, at most learning_rate."""
    min_count: Occurrences = 5
    """Occurrences below which an entry gets a random vector."""
    ready_made: VectorFile | None = None
    """File of vectors to take instead of training: .vec, .txt, .bin or .kv; null: train."""

    def __post_init__(self) -> None:
        rule = "it is above 0 and at most word2vec.learning_rate"
        require(self.min_learning_rate <= self.learning_rate, "min_learning_rate", self.min_learning_rate, rule)


@settings("data")
class Data:
    """Folders of the prepared data, and the length of its rows."""

    folder: str
    """Folder of the prepared data, with a subfolder for each stage: corpus, clean, dedup, tokenizer, shards, rows."""
    seq_len: Annotated[int, Field(ge=8)]
    """Length of a row in tokens."""
    text_folder: str | None = None
    """Folder of corpus, clean and dedup, which several tokenizers can share; null: `folder`."""

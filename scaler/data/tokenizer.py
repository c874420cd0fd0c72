"""Load a tokenizer, and read the special ids that rows and masks need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from scaler.core.errors import ScalerError, one_line
from scaler.core.files import PREPARE_AGAIN, read_json, write_json

SHOWN = 300  # characters of another library's error
CONFIG = "tokenizer_config.json"
# Transformers 5 writes its own name of the class, which 4 does not know; both know this one
CLASSES = {"TokenizersBackend": "PreTrainedTokenizerFast"}
OF_THE_MAKER = ("is_local", "local_files_only")  # how a tokenizer was loaded before it was saved
ROLES = {"begin_id": "cls", "end_id": "sep", "pad_id": "pad", "mask_id": "mask"}  # Transformers' names of our ids


@dataclass(frozen=True)
class Vocabulary:
    """The size of a tokenizer and its special ids.

    Attributes:
        size: entries, special tokens included.
        begin_id, end_id, pad_id, mask_id: the special tokens that rows and masks are made with.
        special_ids: of all special tokens, ascending; they are never masked.
    """

    size: int
    begin_id: int
    end_id: int
    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    def ordinary_ids(self) -> np.ndarray:
        """Return the ids that are no special token, int64 (n,)."""
        return np.setdiff1d(np.arange(self.size, dtype=np.int64), np.asarray(self.special_ids, dtype=np.int64))


def load_tokenizer(folder: Path, remedy: str = "") -> Any:
    """Load a Transformers tokenizer from a folder.

    Raises: ScalerError, with the remedy (default: prepare the data), when there is none or it cannot be read.
    """
    if not (folder / "tokenizer.json").is_file():
        raise ScalerError(f"{folder}: no tokenizer here; {remedy or 'run `make data` or `scaler prepare`'}")
    return from_pretrained(str(folder), remedy or PREPARE_AGAIN, local_files_only=True)


def from_pretrained(source: str, remedy: str, **options: Any) -> Any:
    """Load a tokenizer from a folder or a hub id. Raises ScalerError, with the remedy, when it cannot be read."""
    from transformers import AutoTokenizer  # takes seconds, and workers that read ids alone do without

    try:
        return AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
    except Exception as error:  # the tokenizers library raises nothing more narrow
        raise ScalerError(f"{source}: the tokenizer cannot be read ({one_line(error)[:SHOWN]}); {remedy}") from error


def save_tokenizer(tokenizer: Any, folder: Path, longest: int | None = None) -> None:
    """Write a Transformers tokenizer so that versions 4 and 5 read it, with nothing of how it was loaded here.

    Args:
        longest: tokens of a text at which pipelines cut: those that the model takes.
    """
    from transformers.tokenization_utils_base import VERY_LARGE_INTEGER

    if longest is not None:
        tokenizer.model_max_length = longest
    tokenizer.save_pretrained(folder)
    content = read_json(folder / CONFIG)
    content["tokenizer_class"] = CLASSES.get(content["tokenizer_class"], content["tokenizer_class"])
    if isinstance(content.get("extra_special_tokens"), list):  # 4 expects a mapping of that name
        content["additional_special_tokens"] = content.pop("extra_special_tokens")
    if content["model_max_length"] == VERY_LARGE_INTEGER:
        del content["model_max_length"]
    write_json(folder / CONFIG, {key: value for key, value in content.items() if key not in OF_THE_MAKER})


def vocabulary_of(tokenizer: Any, folder: Path) -> Vocabulary:
    """Return the size and special ids of a loaded tokenizer.

    Raises: ScalerError when one that rows need is missing, or begin, end and pad are not three different ones.
    """
    ids = {name: getattr(tokenizer, f"{role}_token_id") for name, role in ROLES.items()}
    for name, value in ids.items():
        if value is None:
            raise ScalerError(f"{folder}: the tokenizer has no {ROLES[name]} token, which masked-LM rows need")
    if len({ids["begin_id"], ids["end_id"], ids["pad_id"]}) < 3:
        raise ScalerError(f"{folder}: the tokenizer's cls, sep and pad tokens are not three, and rows need all three")
    return Vocabulary(size=len(tokenizer), special_ids=tuple(sorted(tokenizer.all_special_ids)), **ids)


def read_vocabulary(folder: Path) -> Vocabulary:
    """Return the size and special ids of the tokenizer in a folder. Raises ScalerError as its two parts do."""
    return vocabulary_of(load_tokenizer(folder), folder)

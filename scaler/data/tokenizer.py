"""Load a tokenizer, and name the special ids that rows and masks need."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from scaler.core.errors import ScalerError


@dataclass(frozen=True)
class Vocabulary:
    """What the rows need to know of the tokenizer: its special ids and its size."""

    size: int
    begin_id: int
    end_id: int
    pad_id: int
    mask_id: int
    special_ids: tuple[int, ...]

    def ordinary_ids(self) -> np.ndarray:
        """Ids that are no special token, int64 (n,)."""
        return np.setdiff1d(np.arange(self.size, dtype=np.int64), np.asarray(self.special_ids, dtype=np.int64))


def load_tokenizer(folder: Path) -> Any:
    """Load a Transformers tokenizer folder. Raises ScalerError when there is none."""
    if not (folder / "tokenizer.json").is_file():
        raise ScalerError(f"{folder}: no tokenizer here; run `make data` or `python -m data_prep`")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # whatever a damaged file makes the tokenizers library raise
        reason = " ".join(str(error).split())
        raise ScalerError(f"{folder}: the tokenizer cannot be read ({reason}); prepare the data again") from error


def vocabulary_of(tokenizer: Any, folder: Path) -> Vocabulary:
    """The special ids that rows need. Raises ScalerError when the tokenizer lacks one."""
    ids = {
        "begin_id": tokenizer.cls_token_id,
        "end_id": tokenizer.sep_token_id,
        "pad_id": tokenizer.pad_token_id,
        "mask_id": tokenizer.mask_token_id,
    }
    for name, value in ids.items():
        if value is None:
            raise ScalerError(f"{folder}: the tokenizer has no {name[:-3]} token, which masked-LM rows need")
    if len({ids["begin_id"], ids["end_id"], ids["pad_id"]}) < 3:
        raise ScalerError(f"{folder}: the tokenizer's cls, sep and pad tokens are not three, and rows need all three")
    return Vocabulary(size=len(tokenizer), special_ids=tuple(sorted(tokenizer.all_special_ids)), **ids)

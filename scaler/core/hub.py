"""Check the name of a Hugging Face data set, before the library `datasets` takes it for something else.

To `datasets` names such as "text" and "csv" are readers of local files: they would read the whole working directory.
"""

from __future__ import annotations

import glob
import re
from pathlib import Path

from scaler.core.errors import ScalerError, one_line

NAME = re.compile(r"[\w.-]+/[\w.-]+")
FILE = re.compile(r"\.(txt|md|rst|jsonl?|ndjson|csv|tsv|parquet|html?|conll|gz|zst)$", re.IGNORECASE)
MAX_ERROR_CHARACTERS = 200
ANSWER_SECONDS = 10  # that the hub may take for its answer, which is asked for once


def commit_of(name: str, revision: str | None) -> str:
    """Return the commit of a data set that is to be read.

    Raises: ScalerError for what is no data set's name, such as a path that is not there, without asking the hub; and
    when the hub cannot be reached, or has no such data set.
    """
    owner = name.partition("/")[0]
    is_path = owner in (".", "..", "~") or Path(owner).is_dir() or FILE.search(name) or glob.has_magic(name)
    if is_path or not NAME.fullmatch(name):
        raise ScalerError(
            f"{name!r}: no such file or folder, and no Hugging Face data set, whose names are OWNER/NAME; "
            "correct the path"
        )
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=ANSWER_SECONDS).sha)
    except Exception as error:  # the hub client's errors have no common base
        raise unloadable(name, error) from error


def unloadable(name: str, error: Exception) -> ScalerError:
    """Return the error for a data set that cannot be loaded, in one line."""
    reason = one_line(error)[:MAX_ERROR_CHARACTERS]
    return ScalerError(f"{name!r}: no such file or folder, and no Hugging Face data set that can be loaded ({reason})")

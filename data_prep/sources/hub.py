"""Stream data sets of the Hugging Face hub, all of one commit."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.formats.texts import Document
from data_prep.sources import listing
from data_prep.sources.records import LeftOut, documents
from scaler.config.data_sections import Source
from scaler.core.errors import ScalerError

NAME = re.compile(r"[\w.-]+/[\w.-]+")  # every data set has an owner; "text", "csv" ... are readers of local files
MAX_ERROR_CHARACTERS = 200
ANSWER_SECONDS = 10  # that the hub may take for its first answer, which is asked for once


def refuse_path(source: Source) -> None:
    """Raise ScalerError for what cannot be the name of a data set, such as a path that is not there."""
    name = source.source
    owner = name.partition("/")[0]
    if not NAME.fullmatch(name) or owner in (".", "..") or listing.kind_of(name) or Path(owner).is_dir():
        raise ScalerError(
            f"{name!r}: no such file or folder, and no Hugging Face data set, whose names are OWNER/NAME; "
            "correct the path"
        )


def commit_of(source: Source) -> str:
    """Return the commit that is read. Raises ScalerError when the hub cannot be reached, or has no such data set."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().dataset_info(source.source, revision=source.hub_revision, timeout=ANSWER_SECONDS)
    except Exception as error:  # the hub client's errors have no common base
        raise _unloadable(source, error) from error
    return str(found.sha)


def _unloadable(source: Source, error: Exception) -> ScalerError:
    reason = " ".join(str(error).split())[:MAX_ERROR_CHARACTERS]
    return ScalerError(
        f"{source.source!r}: no such file or folder, and no Hugging Face data set that can be loaded ({reason})"
    )


def rows(source: Source, commit: str) -> Any:
    """Return the data set as a stream of records. Raises ScalerError when it cannot be loaded."""
    import datasets

    try:
        return datasets.load_dataset(
            source.source, source.hub_config, split=source.hub_split, revision=commit, streaming=True
        )
    except Exception as error:  # likewise
        raise _unloadable(source, error) from error


def read(source: Source, commit: str, share: int, of: int, max_bytes: int) -> Iterator[Document | LeftOut]:
    """Yield the documents of one of `of` shares. Raises ScalerError when it cannot be loaded."""
    stream = iter(rows(source, commit).shard(num_shards=of, index=share))
    for number in itertools.count():
        try:
            record = next(stream)
        except StopIteration:
            return
        except Exception as error:  # likewise
            raise _unloadable(source, error) from error
        yield from documents(record, source, f"{source.source}, share {share}, row {number}", max_bytes)

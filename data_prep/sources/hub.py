"""Stream data sets of the Hugging Face hub, all of one commit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from data_prep.formats.texts import Document
from data_prep.sources.records import LeftOut, documents
from scaler.config.data_sections import Source
from scaler.core.hub import unloadable


def rows(source: Source, commit: str) -> Any:
    """Return the data set as a stream of records. Raises ScalerError when it cannot be loaded."""
    import datasets

    try:
        return datasets.load_dataset(
            source.source, source.hub_config, split=source.hub_split, revision=commit, streaming=True
        )
    except Exception as error:  # of the hub client, whose errors have no common base
        raise unloadable(source.source, error) from error


def read(source: Source, commit: str, share: int, of: int, max_bytes: int) -> Iterator[Document | LeftOut]:
    """Yield the documents of one of `of` shares. Raises ScalerError when it cannot be loaded."""
    stream = iter(rows(source, commit).shard(num_shards=of, index=share))
    for number in itertools.count():
        try:
            record = next(stream)
        except StopIteration:
            return
        except Exception as error:  # likewise
            raise unloadable(source.source, error) from error
        yield from documents(record, source, f"{source.source}, share {share}, row {number}", max_bytes)

"""Write a corpus folder from the recipe's sources, split by the hash of each text."""

from __future__ import annotations

import dataclasses
from collections import Counter
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.pipeline.workers import Task, WorkerPool
from data_prep.sources import readers
from scaler.config.data_sections import Corpus, Source
from scaler.core.errors import ScalerError

MIB = 1 << 20
BUCKETS = 1 << 32


def split_of(text: str, heldout_percent: float, test_percent: float) -> str:
    """Return the split of a document by its own hash, so that it never moves as others come and go.

    The first buckets are "heldout", the next ones "test", all others "train".
    """
    bucket = xxhash.xxh3_64_intdigest(text.encode()) % BUCKETS
    if bucket < heldout_percent / 100 * BUCKETS:
        return "heldout"
    return "test" if bucket < (heldout_percent + test_percent) / 100 * BUCKETS else "train"


def read_piece(piece: readers.Piece, name: str, settings: Corpus, cap: float, folder: Path) -> dict[str, Any]:
    """Write the documents of one piece of a source; return the entries of the files and the count of blank documents.

    Args:
        cap: bytes of text after which no more is read.
    """
    writers = {
        split: texts.Writer(folder, f"{split}-{name}", piece.source.name, settings.part_mib * MIB)
        for split in texts.SPLITS
    }
    blank, taken = 0, 0
    ids: list[int] = []
    for document in readers.read(piece, settings.max_document_mib * MIB):
        if not document.text.strip():
            blank += 1
            continue
        writers[split_of(document.text, settings.heldout_percent, settings.test_percent)].write(document)
        if document.id is not None:
            ids.append(xxhash.xxh3_64_intdigest(document.id.encode()))
        taken += len(document.text.encode())
        if taken >= cap:
            break
    for writer in writers.values():
        writer.close()
    np.save(folder / folders.TASKS / f"{name}.npy", np.asarray(ids, dtype=np.uint64))
    return {"files": [(split, entry) for split in writers for entry in writers[split].entries], "blank": blank}


def make(settings: Corpus, folder: Path, pool: WorkerPool) -> bool:
    """Write the corpus unless the folder already is the result of these settings; return True when it was written.

    Raises: ScalerError when a source cannot be read, is empty, names two documents alike or holds the folder, or a
    split is empty.
    """
    for source in settings.sources:
        if Path(source.source).is_dir() and folder.resolve().is_relative_to(Path(source.source).resolve()):
            raise ScalerError(f"{folder}: lies in the source {source.source}, which would hold it; name another folder")
    cut = {source: readers.pieces(source, settings.part_mib * MIB) for source in settings.sources}
    made_from = {
        "settings": {
            **dataclasses.asdict(settings),
            "sources": [_what_is_read(source) for source in cut],
            "tokens": None,
        },
        "sources": {source.name: readers.identity(source, pieces) for source, pieces in cut.items()},
    }
    if folders.is_current(folder, "corpus", made_from):
        return False
    with folders.staged(folder, "corpus", made_from) as partial:
        tasks = {
            source.name: [
                Task(name, piece.size, read_piece, (piece, name, settings, _cap(source, len(pieces)), partial))
                for number, piece in enumerate(pieces)
                for name in [f"{source.name}-{number:05d}"]
            ]
            for source, pieces in cut.items()
        }
        done = iter(pool.run(list(chain.from_iterable(tasks.values())), partial, "reading"))
        records = {name: list(islice(done, len(of_source))) for name, of_source in tasks.items()}
        files = [(split, entry) for done in records.values() for r in done for split, entry in r["files"]]
        counts = [_count(source, records[source.name], files) for source in settings.sources]
        for source in settings.sources:
            if source.id_field:
                _refuse_equal_ids(source, [partial / folders.TASKS / f"{task.name}.npy" for task in tasks[source.name]])
        wanted = [split for split in texts.SPLITS if split != "test" or settings.test_percent > 0]
        shares = f"corpus.heldout_percent={settings.heldout_percent}, corpus.test_percent={settings.test_percent}"
        remedy = f"bring more documents, or change the shares ({shares})"
        folders.write_manifest(
            partial,
            "corpus",
            made_from,
            sources=counts,
            history=[{"stage": "corpus", "settings": made_from["settings"]}],
            splits=texts.split_manifest(files, wanted, remedy),
        )
    return True


def _what_is_read(source: Source) -> dict[str, Any]:
    """Return the settings of a source without its part of the mix, which is applied later."""
    return {**dataclasses.asdict(source), "weight": None, "epochs": None}


def _cap(source: Source, pieces: int) -> float:
    return float("inf") if source.max_mib is None else source.max_mib * MIB / pieces


def _count(source: Source, records: list[dict[str, Any]], files: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    total: Counter[str] = Counter()
    for _, entry in files:
        if entry["source"] == source.name:
            total.update({what: entry[what] for what in ("documents", "characters", "bytes")})
    if not total:
        raise ScalerError(f"{source.source}: holds no text; take it out of corpus.sources, or bring its documents")
    return {"name": source.name, "source": source.source, **total, "blank": sum(record["blank"] for record in records)}


def _refuse_equal_ids(source: Source, paths: list[Path]) -> None:
    """Raise ScalerError where two documents have the same id. Takes 8 bytes of memory a document."""
    ids = np.sort(np.concatenate([np.load(path) for path in paths]))
    if len(ids) > 1 and (again := int((ids[1:] == ids[:-1]).sum())):
        raise ScalerError(
            f"{source.source}: {again:,} documents bear an id in {source.id_field!r} that another one bears; "
            "make the ids unique, or leave id_field out"
        )

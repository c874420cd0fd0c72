"""Write a corpus folder from the recipe's sources, split by the hash of each text."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.pipeline.workers import Task, WorkerPool
from data_prep.sources import cap, readers
from data_prep.sources.records import Account, LeftOut
from scaler.config.data_sections import Corpus, Source
from scaler.core.errors import ScalerError
from scaler.data.arrays import write_array

MIB = 1 << 20
BUCKETS = 1 << 32
EXPECTED = 3  # documents of the smallest split, with which it is empty once in 20 times (Poisson: exp(-3))


def split_of(text: str, heldout_percent: float, test_percent: float) -> str:
    """Return the split of a document by its own hash, so that it never moves as others come and go.

    The first buckets are "heldout", the next ones "test", all others "train".
    """
    bucket = xxhash.xxh3_64_intdigest(text.encode()) % BUCKETS
    if bucket < heldout_percent / 100 * BUCKETS:
        return "heldout"
    return "test" if bucket < (heldout_percent + test_percent) / 100 * BUCKETS else "train"


def read_piece(piece: readers.Piece, name: str, settings: Corpus, most_bytes: float, folder: Path) -> dict[str, Any]:
    """Write the documents of one piece of a source.

    Args:
        most_bytes: of text after which no more is read.

    Returns: the entries of the files with their splits, the bytes of text, whether the piece was read to its end, and
        the counts of an Account.
    """
    writers = {
        split: texts.Writer(folder, f"{split}-{name}", piece.source.name, settings.part_mib * MIB)
        for split in texts.SPLITS
    }
    account = Account()
    size, to_its_end = 0, True
    ids: list[int] = []
    for found in readers.read(piece, settings.max_document_mib * MIB):
        account.add(found)
        if isinstance(found, LeftOut):
            account.refuse_many(piece.source.source, settings.unusable_percent)
            continue
        writers[split_of(found.text, settings.heldout_percent, settings.test_percent)].write(found)
        if found.id is not None:
            ids.append(xxhash.xxh3_64_intdigest(found.id.encode()))
        size += len(found.text.encode())
        if size >= most_bytes:
            to_its_end = False
            break
    for writer in writers.values():
        writer.close()
    write_array(folder / folders.TASKS / f"{name}.npy", np.asarray(ids, dtype=np.uint64))
    files = [(split, entry) for split in writers for entry in writers[split].entries]
    return {"files": files, "bytes": size, "to_its_end": to_its_end, **account.as_json()}


def make(settings: Corpus, folder: Path, pool: WorkerPool) -> bool:
    """Write the corpus unless the folder already is the result of these settings; return True when it was written.

    Raises: ScalerError when a source cannot be read, changes while it is read, is empty, names two documents alike or
    holds the folder, or a split is empty.
    """
    least = min(filter(None, (settings.heldout_percent, settings.test_percent)))
    many = math.ceil(EXPECTED / (least / 100))

    def planned(source: Source) -> readers.Plan:
        return readers.plan(source, settings.part_mib * MIB, many)

    plans = {source.name: planned(source) for source in settings.sources}
    _refuse_within(folder, settings, plans)
    made_from = {
        "settings": _what_is_read(settings, plans),
        "sources": {name: plan.identity for name, plan in plans.items()},
    }
    if folders.is_current(folder, "corpus", made_from):
        return False
    commits = {name: plan.facts["commit"] for name, plan in plans.items() if "commit" in plan.facts}
    with folders.staged(folder, "corpus", {**made_from, "commits": commits}) as partial:
        records = _read_all(settings, plans, pool, partial)
        for source in settings.sources:
            if plans[source.name].folders or "files" in plans[source.name].facts:
                _refuse_change(source, plans[source.name].identity, planned(source).identity)
        counts = [_count(source, settings, plans[source.name], records[source.name]) for source in settings.sources]
        for source in settings.sources:
            if source.id_field:
                pieces = range(len(plans[source.name].pieces))
                _refuse_equal_ids(source, [partial / folders.TASKS / f"{_name(source.name, n)}.npy" for n in pieces])
        files = [(split, entry) for done in records.values() for r in done for split, entry in r["files"]]
        wanted = [split for split in texts.SPLITS if split != "test" or settings.test_percent > 0]
        folders.write_manifest(
            partial,
            "corpus",
            made_from,
            sources=counts,
            history=[{"stage": "corpus", "settings": made_from["settings"]}],
            splits=texts.split_manifest(files, wanted, _remedy(settings, counts)),
        )
    return True


def _name(source: str, number: int) -> str:
    return f"{source}-{number:05d}"


def _read_all(
    settings: Corpus, plans: dict[str, readers.Plan], pool: WorkerPool, partial: Path
) -> dict[str, list[dict[str, Any]]]:
    """Read all pieces; return their records by source.

    Where a source has a cap, its pieces have equal shares of it. When some end before their share, the others are read
    again with larger ones, until the cap is reached or all is read.
    """
    caps = {source.name: math.inf if source.max_mib is None else source.max_mib * MIB for source in settings.sources}
    records: dict[str, list[dict[str, Any]]] = {name: [{}] * len(plan.pieces) for name, plan in plans.items()}
    shares = {name: caps[name] / len(plan.pieces) for name, plan in plans.items()}
    again = 0
    while shares:
        tasks: dict[tuple[str, int], Task] = {}
        for name, share in shares.items():
            for number, piece in enumerate(plans[name].pieces):
                if not records[name][number].get("to_its_end"):
                    arguments = (piece, _name(name, number), settings, share, partial)
                    task = _name(name, number) + (f"-again-{again}" if again else "")
                    tasks[name, number] = Task(task, piece.size, read_piece, arguments)
        for (name, number), record in zip(tasks, pool.run(list(tasks.values()), partial, "reading"), strict=True):
            records[name][number] = record
        again += 1
        larger = {name: cap.next_share(caps[name], records[name]) for name in shares}
        shares = {name: share for name, share in larger.items() if share is not None}
    return records


def _refuse_within(folder: Path, settings: Corpus, plans: dict[str, readers.Plan]) -> None:
    resolved = folder.resolve()
    above = [path.stat() for path in (resolved, *resolved.parents) if path.exists()]
    keys = {(status.st_dev, status.st_ino) for status in above}
    for source in settings.sources:
        if keys & plans[source.name].folders:
            raise ScalerError(f"{folder}: lies in the source {source.source}, which would hold it; name another folder")


def _refuse_change(source: Source, before: dict[str, Any], after: dict[str, Any]) -> None:
    changed = sorted(name for name in {**before, **after} if before.get(name) != after.get(name))
    if changed:
        raise ScalerError(
            f"{source.source}: has changed while it was read ({len(changed):,} files are new, gone or other, such as "
            f"{changed[0]}); let it be written to the end, and run again"
        )


def _what_is_read(settings: Corpus, plans: dict[str, readers.Plan]) -> dict[str, Any]:
    """Return the settings that decide what is in the folder: not the mix, which is applied later, nor a limit."""
    content = dataclasses.asdict(settings)
    for source in content["sources"]:
        unit = plans[source["name"]].facts.get("text_unit", "paragraph")
        source.update(weight=None, epochs=None, text_unit=unit)
    del content["unusable_percent"]
    return {**content, "tokens": None}


def _remedy(settings: Corpus, counts: list[dict[str, Any]]) -> str:
    shares = f"corpus.heldout_percent={settings.heldout_percent}, corpus.test_percent={settings.test_percent}"
    remedy = f"bring more documents, or change the shares ({shares})"
    if any(count.get("text_unit") == "file" for count in counts):
        remedy += ", or take the paragraphs of the files as documents (text_unit: paragraph)"
    return remedy


def _count(source: Source, settings: Corpus, plan: readers.Plan, records: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest's entry of a source. Raises ScalerError where it holds no text, or too much that is none."""
    total = Counter(dict.fromkeys(("documents", "characters", "bytes"), 0))
    for record in records:
        for _, entry in record["files"]:
            total.update({what: entry[what] for what in total})
    account = Account.of(records)
    account.refuse_many(source.source, settings.unusable_percent, at_the_end=True)
    if not total["documents"]:
        reasons = f" ({account.reasons()})" if account.left_out else ""
        raise ScalerError(
            f"{source.source}: holds no text{reasons}; take it out of corpus.sources, or bring its documents"
        )
    capped = {"capped": True} if any(not record["to_its_end"] for record in records) else {}
    return {"name": source.name, "source": source.source, **total, **account.as_json(), **plan.facts, **capped}


def _refuse_equal_ids(source: Source, paths: list[Path]) -> None:
    """Raise ScalerError where two documents have the same id. Takes 8 bytes of memory a document."""
    ids = np.sort(np.concatenate([np.load(path) for path in paths]))
    if len(ids) > 1 and (again := int((ids[1:] == ids[:-1]).sum())):
        raise ScalerError(
            f"{source.source}: {again:,} documents bear an id in {source.id_field!r} that another one bears; "
            "make the ids unique, or leave id_field out"
        )

"""Drop documents that repeat an earlier one, exactly or nearly."""

from __future__ import annotations

import dataclasses
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from importlib import metadata
from itertools import accumulate, islice
from pathlib import Path
from typing import Any

import numpy as np
import rensa
import xxhash

from data_prep.cleaning import found_words, repeats, tally
from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.pipeline.workers import Task, WorkerPool
from scaler.config.data_sections import Dedup
from scaler.core import words
from scaler.core.files import write_json
from scaler.data.arrays import write_array

UNITS_AT_ONCE = 100_000
SEED = 0
PRECEDENCE = ("heldout", "test", "train")
EXACT = 0  # row of the keys that holds the hash of the whole text; the bands follow


def shingles(text: str, ngram: int) -> Iterator[list[str]]:
    """Yield all runs of `ngram` units of a text (see `words.units`), in lists.

    A text with fewer different words is compared whole, but for its spaces: it has too little else to tell it by.
    """
    units = words.units(text)
    if len(list(islice(filter(words.is_word, set(units)), ngram))) < ngram:
        yield [" ".join(text.split())]
        return
    for start in range(0, len(units) - ngram + 1, UNITS_AT_ONCE):
        stop = min(start + UNITS_AT_ONCE, len(units) - ngram + 1)
        yield [" ".join(units[place : place + ngram]) for place in range(start, stop)]


def signature(text: str, settings: Dedup) -> np.ndarray:
    """Return the MinHash signature of a text: uint32 (bands * band_rows,)."""
    hashed = rensa.RMinHash(num_perm=settings.bands * settings.band_rows, seed=SEED)
    for some in shingles(text, settings.ngram):
        hashed.update(some)
    return np.asarray(hashed.digest(), dtype=np.uint32)


def keys_of(text: str, settings: Dedup) -> list[int]:
    """Return the keys that repeats of a text share: its hash, and the hashes of the bands of its signature."""
    found = [xxhash.xxh3_64_intdigest(text.encode())]
    if settings.near:
        bands = signature(text, settings).reshape(settings.bands, settings.band_rows)
        found += [xxhash.xxh3_64_intdigest(band.tobytes(), seed=1) for band in bands]
    return found


def sign_file(folder: Path, entry: dict[str, Any], settings: Dedup, out: Path) -> dict[str, Any]:
    """Write the keys of one file's documents to `out`: .npy, uint64 (1 + bands, documents)."""
    width = 1 + settings.bands * settings.near
    keys = np.empty((width, entry["documents"]), dtype=np.uint64)
    for number, document in enumerate(texts.read(folder, entry)):
        keys[:, number] = keys_of(document.text, settings)
    write_array(out, keys)
    return {"documents": keys.shape[1]}


def drop_from_file(
    folder: Path, entry: dict[str, Any], first_number: int, split_ends: Sequence[int], found: Sequence[Path], out: Path
) -> dict[str, Any]:
    """Write the documents of one file that repeat no earlier one.

    Args:
        first_number: of the file's documents, which are numbered through all files.
        split_ends: the number after the last document of each split, in order of precedence.
        found: files that `repeats.find` wrote, those of whole texts first.

    Returns: the entries of the files written (none or one), counts, and examples.
    """
    reasons: dict[int, tuple[str, int]] = {}
    for path in found:
        pairs = np.load(path, mmap_mode="r")
        begin, end = np.searchsorted(pairs[0], (first_number, first_number + entry["documents"]))
        kind = "exact" if path.name.startswith(f"{EXACT:03d}-") else "near"
        for number, earlier in zip(*pairs[:, begin:end].tolist(), strict=True):
            mine, other = (bisect_right(split_ends, place) for place in (number, earlier))
            of = "within_split" if mine == other else f"of_{PRECEDENCE[other]}"
            known = reasons.setdefault(number, (f"dropped.{kind}.{of}", earlier))
            # a repeat of documents of several splits counts as one of the first split
            if known[0].startswith(f"dropped.{kind}.") and other < bisect_right(split_ends, known[1]):
                reasons[number] = (f"dropped.{kind}.{of}", earlier)
    writer = texts.Writer(out, entry["name"], entry["source"])
    tallied = tally.Tally(entry["name"])
    for number, document in enumerate(texts.read(folder, entry), start=first_number):
        if number not in reasons:
            writer.write(document)
            continue
        reason, earlier = reasons[number]
        tallied.add(reason, document, repeats=earlier)
    writer.close()
    return {"files": writer.entries, "counts": tallied.counts, "examples": tallied.examples}


def make(text: Path, folder: Path, settings: Dedup, pool: WorkerPool) -> bool:
    """Drop repeats unless the folder already is the result; return True when it was written.

    Raises: ScalerError when the text is absent or damaged.
    """
    content = texts.manifest(text)
    made_from = {
        "text": folders.checksum_of_manifest(text, content["kind"]),
        "settings": dataclasses.asdict(settings),
        "rensa": metadata.version("rensa"),  # its hashes differ between versions
        **(found_words.recorded() if settings.near else {}),
    }
    if found_words.is_current(folder, "dedup", made_from):
        return False
    files = [(split, entry) for split in PRECEDENCE for entry in texts.entries(content, split)]
    documents = [entry["documents"] for _, entry in files]
    of_splits = [sum(entry["documents"] for entry in texts.entries(content, split)) for split in PRECEDENCE]
    split_ends = list(accumulate(of_splits))
    parts = repeats.parts_for(sum(documents))
    with folders.staged(folder, "dedup", made_from) as partial:
        work = partial / folders.TASKS
        key_files = [work / f"keys-{entry['name']}.npy" for _, entry in files]
        pool.run(
            [
                Task(f"keys-{entry['name']}", entry["bytes"], sign_file, (text, entry, settings, keys))
                for (_, entry), keys in zip(files, key_files, strict=True)
            ],
            partial,
            "hashing",
        )
        searches = [
            (row, part, work / f"{row:03d}-{part:05d}.npy")
            for row in range(1 + settings.bands * settings.near)
            if row > EXACT or settings.exact
            for part in range(parts)
        ]
        pool.run(
            [
                Task(f"repeats-{out.stem}", 1, repeats.find, (key_files, row, part, parts, out))
                for row, part, out in searches
            ],
            partial,
            "finding repeats",
            "part",
        )
        found = [out for _, _, out in searches]
        first_numbers = np.cumsum([0, *documents]).tolist()
        records = pool.run(
            [
                Task(
                    f"drop-{entry['name']}",
                    entry["bytes"],
                    drop_from_file,
                    (text, entry, first_number, split_ends, found, partial),
                )
                for (_, entry), first_number in zip(files, first_numbers, strict=False)
            ],
            partial,
            "dropping repeats",
        )
        counts, examples = tally.merge(records)
        for example in examples:
            earlier = _document(text, files, first_numbers, example.pop("repeats"))
            example["earlier"] = earlier[: tally.EXAMPLE_CHARACTERS]
        write_json(partial / tally.EXAMPLES, examples)
        left = [(split, e) for (split, _), record in zip(files, records, strict=True) for e in record["files"]]
        folders.write_manifest(
            partial,
            "dedup",
            made_from,
            sources=content["sources"],
            documents_in=sum(documents),
            counts=counts,
            history=[*content["history"], {"stage": "dedup", "settings": made_from["settings"], "counts": counts}],
            splits=texts.split_manifest(
                left, content["splits"], "all of it repeats held-out or test documents; bring other text"
            ),
        )
    return True


def _document(text: Path, files: list[tuple[str, dict[str, Any]]], first_numbers: list[int], number: int) -> str:
    """Return the text of the document that has a number."""
    place = int(np.searchsorted(first_numbers, number, side="right")) - 1
    for at, document in enumerate(texts.read(text, files[place][1]), start=first_numbers[place]):
        if at == number:
            return document.text
    raise IndexError(number)

"""Check prepared data to the last bit."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.formats import manifests, texts
from data_prep.formats.token_shards import Shard, count_tokens
from data_prep.pipeline import accounts
from data_prep.pipeline.folders import TASKS
from data_prep.pipeline.workers import Task, WorkerPool
from scaler.core.errors import ScalerError
from scaler.core.files import MANIFEST, PREPARE_AGAIN, check_file, checksum
from scaler.data import token_rows, word_vectors
from scaler.data.arrays import write_array
from scaler.data.tokenizer import Vocabulary, read_vocabulary

KINDS = (*texts.KINDS, "tokenizer", "shards", word_vectors.KIND, "rows")
TOKENS_AT_ONCE = 1 << 21


def check_text(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """Compare one file of text with its entry."""
    documents = characters = size = 0
    for document in texts.read(folder, entry):
        documents += 1
        characters += len(document.text)
        size += len(document.text.encode())
    return _compared(entry, {"documents": documents, "characters": characters, "bytes": size})


def check_shard(folder: Path, entry: dict[str, Any], vocab_size: int) -> dict[str, Any]:
    """Compare one shard with its entry, and its ids with the vocabulary."""
    for extension in (".bin", ".idx"):
        check_file(folder / (entry["name"] + extension), entry[f"{extension[1:]}_xxh3"])
    shard = Shard(folder / entry["name"])  # which refuses sequences that do not lie end to end
    count_tokens(shard.ids, vocab_size, shard.prefix)
    return _compared(entry, {"documents": len(shard.document_ends), "tokens": len(shard.ids)})


def check_rows(
    folder: Path,
    entry: dict[str, Any],
    content: dict[str, Any],
    vocabulary: Vocabulary,
    counts_file: Path,
) -> dict[str, Any]:
    """Compare one file of rows with its entry, its ids with the vocabulary, and check its documents' ends.

    Writes to `counts_file` how often each ordinary token occurs, .npy, int64 (vocab_size,).
    """
    path = folder / (entry["name"] + token_rows.EXTENSION)
    check_file(path, entry["xxh3"])
    file = token_rows.open_file(path, entry["rows"], content["seq_len"], content["vocab_size"])
    tokens = 0
    counts = np.zeros(content["vocab_size"], dtype=np.int64)
    step = max(1, TOKENS_AT_ONCE // content["seq_len"])
    for start in range(0, len(file), step):
        some = file[start : start + step]
        counts += count_tokens(some.ravel(), content["vocab_size"], path)
        begins, ends, pads = (some == i for i in (vocabulary.begin_id, vocabulary.end_id, vocabulary.pad_id))
        last = (~pads).sum(axis=1) - 1  # the last token before the padding
        whole = begins[:, 0] & (np.diff(pads.astype(np.int8), axis=1) >= 0).all(axis=1)
        whole &= np.take_along_axis(ends, last[:, None], axis=1)[:, 0]
        if not whole.all():
            row = start + int(np.argmin(whole))
            raise ScalerError(f"{path}: row {row} does not begin and end with a document; {token_rows.PREPARE}")
        tokens += int((~pads).sum())
        ordinary = int((~np.isin(some, vocabulary.special_ids)).sum(axis=1).min())
        if ordinary < entry["least_maskable"]:
            raise ScalerError(f"{path}: a row has {ordinary} ordinary tokens, {entry['least_maskable']} is the least")
    counts[list(vocabulary.special_ids)] = 0
    write_array(counts_file, counts)
    return _compared(entry, {"rows": len(file), "tokens": tokens})


def check_vectors(folder: Path, content: dict[str, Any]) -> None:
    """Compare word vectors with their manifest. Raises ScalerError, too, when one is not finite."""
    found = word_vectors.read(folder, content["tokenizer_xxh3"], content["vector_size"])
    step = max(1, TOKENS_AT_ONCE // content["vector_size"])
    for start in range(0, len(found.vectors), step):
        finite = np.isfinite(found.vectors[start : start + step]).all(axis=1)
        if not finite.all():
            raise ScalerError(
                f"{folder}: the vector of entry {start + int(np.argmin(finite))} is not finite; {PREPARE_AGAIN}"
            )
    _compared({"name": folder / word_vectors.COUNTS, **content}, {"tokens": int(found.counts.sum())})


def _compared(entry: dict[str, Any], found: dict[str, int]) -> dict[str, Any]:
    for what, count in found.items():
        if entry[what] != count:
            raise ScalerError(f"{entry['name']}: {count:,} {what}, but the manifest says {entry[what]:,}")
    return {}


def problems(folder: Path, pool: WorkerPool) -> Iterator[str]:
    """Yield every problem in the folder of one stage."""
    kind = manifests.kind_of(folder)
    try:
        content = manifests.read(folder, kind)
    except ScalerError as error:
        yield str(error)
        return
    yield from (f"{folder}: {problem}" for problem in (*accounts.problems(kind, content), *_lost(folder, content)))
    tokenizer = folder.parent / "tokenizer"
    entries = [(split, entry) for split, found in content.get("splits", {}).items() for entry in found]
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        (work / TASKS).mkdir()
        checks: list[tuple[Callable[..., dict[str, Any]], tuple[Any, ...]]] = []
        try:
            if kind == "tokenizer":
                check_file(folder / "tokenizer.json", content["tokenizer_xxh3"])
                read_vocabulary(folder)
            elif kind == "shards":
                _belongs(folder, content, tokenizer)
                checks = [(check_shard, (folder, entry, content["vocab_size"])) for _, entry in entries]
            elif kind == word_vectors.KIND:
                _belongs(folder, content, tokenizer)
                check_vectors(folder, content)
            elif kind == "rows":
                _belongs(folder, content, tokenizer)
                vocabulary = read_vocabulary(tokenizer)
                checks = [
                    (check_rows, (folder, entry, content, vocabulary, work / f"{number}.npy"))
                    for number, (_, entry) in enumerate(entries)
                ]
            else:
                checks = [(check_text, (folder, entry)) for _, entry in entries]
        except ScalerError as error:
            yield str(error)
            return
        tasks = (
            [
                Task(entry["name"], int(entry.get("bytes") or entry["tokens"]), _problem_of, (check, arguments))
                for (_, entry), (check, arguments) in zip(entries, checks, strict=True)
            ]
            if checks
            else []
        )
        wrong = [found["problem"] for found in pool.run(tasks, work, f"checking {folder.name}", "") if found]
        yield from wrong
        if kind == "rows" and not wrong:
            try:
                said = token_rows.read(folder).unigram_counts()
            except ScalerError as error:
                yield str(error)
                return
            train = [number for number, (split, _) in enumerate(entries) if split == "train"]
            if not np.array_equal(said, sum(np.load(work / f"{number}.npy") for number in train)):
                yield f"{folder / token_rows.UNIGRAM}: not the counts of the training rows; {token_rows.PREPARE}"


def _lost(folder: Path, content: dict[str, Any]) -> Iterator[str]:
    """Yield a problem where the stage before has other documents than came in here, if it is beside this one."""
    made_from = content.get("made_from") or {}
    before = {made_from.get("text"), made_from.get("shards")} - {None}
    for path in folder.parent.glob(f"*/{MANIFEST}") if "documents_in" in content and before else ():
        if checksum(path) in before:
            found = accounts.documents_out(json.loads(path.read_text(encoding="utf-8")))
            if found != content["documents_in"]:
                yield f"{path.parent} has {found:,} documents, but {content['documents_in']:,} came in"


def _problem_of(check: Any, arguments: tuple[Any, ...]) -> dict[str, Any]:
    try:
        return dict(check(*arguments))
    except ScalerError as error:
        return {"problem": str(error)}


def _belongs(folder: Path, content: dict[str, Any], tokenizer: Path) -> None:
    """Raise ScalerError when the tokenizer is not the one that the ids were made with."""
    if not (tokenizer / "tokenizer.json").is_file():
        raise ScalerError(f"{tokenizer}: no tokenizer here, so the ids in {folder} cannot be checked")
    if checksum(tokenizer / "tokenizer.json") != content["tokenizer_xxh3"]:
        raise ScalerError(f"{folder}: made with another tokenizer than {tokenizer}")


def stages(folder: Path) -> list[Path]:
    """Return the prepared folders that `folder` is or holds, in the order in which they are made.

    Raises: ScalerError when there is none, or one whose manifest cannot be read.
    """
    candidates = [folder] if (folder / MANIFEST).exists() else sorted(p.parent for p in folder.glob(f"*/{MANIFEST}"))
    found = [(manifests.kind_of(path), path) for path in candidates]
    for kind, path in found:
        if kind not in KINDS:
            raise ScalerError(f"{path}: its {MANIFEST} is damaged or of another format; prepare the data again")
    if not found:
        raise ScalerError(f"{folder}: no prepared data here; `scaler prepare` makes some")
    return [path for _, path in sorted(found, key=lambda item: (KINDS.index(item[0]), item[1]))]

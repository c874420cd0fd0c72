"""Pack token shards into the rows that training reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.formats import manifests, texts
from data_prep.formats.token_shards import NO_TOKENS, Shard
from data_prep.pipeline import accounts, folders
from data_prep.pipeline.workers import Task, WorkerPool
from data_prep.tokens import mix, packing
from scaler.config.data_sections import Corpus
from scaler.core.errors import ScalerError
from scaler.core.files import checksum
from scaler.core.limits import allow_open_files
from scaler.data.arrays import write_array
from scaler.data.token_rows import EXTENSION, UNIGRAM, dtype_for, write_rows
from scaler.data.tokenizer import Vocabulary, read_vocabulary

BLOCK_TOKENS = 1 << 26  # packed at once: about 2 GB of memory with documents of ten tokens, less with longer ones
FILE_TOKENS = 1 << 22  # small shards share a file of rows until it has so many: each file may end in a row half empty
TOKENS_AT_ONCE = 1 << 21  # laid out at once: about 100 MB
LONGEST_ROW = 1 << 15
# why a document is in no row: NO_TOKENS, or
NOT_IN_THE_MIX, TOO_FEW_TOKENS = "not_in_the_mix", "row_with_too_few_tokens"


def lay_out(ids: np.ndarray, table: packing.RowTable, rows: range, vocabulary: Vocabulary) -> np.ndarray:
    """Lay the chunks of some rows end to end, each between its special tokens: int64 (rows, seq_len)."""
    counts = np.diff(table.row_starts[rows.start : rows.stop + 1])  # (rows,), chunks in each
    chunks = slice(int(table.row_starts[rows.start]), int(table.row_starts[rows.stop]))
    offsets, lengths = table.chunk_offsets[chunks], table.chunk_lengths[chunks]
    ends = np.cumsum(lengths + packing.SPECIAL_TOKENS)  # (chunks,), as if there were no padding
    first = np.cumsum(counts) - counts  # (rows,), each row's first chunk
    begun = np.concatenate([[0], ends])[first]  # (rows,), where each row would begin
    padding = np.repeat(np.arange(len(rows)) * table.seq_len - begun, counts)
    places = ends - lengths - packing.SPECIAL_TOKENS + padding  # (chunks,)
    flat = np.full(len(rows) * table.seq_len, vocabulary.pad_id, dtype=np.int64)
    flat[places] = vocabulary.begin_id
    flat[places + lengths + 1] = vocabulary.end_id
    within = np.arange(int(lengths.sum())) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    flat[np.repeat(places + 1, lengths) + within] = ids[np.repeat(offsets, lengths) + within]
    return flat.reshape(len(rows), table.seq_len)


def pack_shards(
    prefixes: Sequence[Path],
    tokens: Sequence[int | None],
    path: Path,
    seq_len: int,
    min_tokens: int,
    vocab_size: int,
    vocabulary: Vocabulary,
    strip_ids: list[int],
    counts_file: Path,
) -> dict[str, Any]:
    """Pack some shards into one file of rows.

    Args:
        prefixes: of the shards.
        tokens: to take of each shard's documents (see `mix.choose`); all of them once if None.
        path: of the rows.
        min_tokens: rows with fewer ordinary tokens are left out.
        counts_file: .npy to write: int64 (vocab_size,), how often each ordinary token occurs in the rows.

    Returns: the file's manifest entry.
    """
    allow_open_files(len(prefixes), str(path.parent))
    shards = [Shard(prefix) for prefix in prefixes]
    ids = shards[0].ids if len(shards) == 1 else np.concatenate([shard.ids for shard in shards])
    spans, starts, base, text_tokens = [], [], 0, 0
    for shard, wanted in zip(shards, tokens, strict=True):
        offsets, lengths = shard.documents(strip_ids)
        text_tokens += int(lengths.sum())
        starts.append(offsets[lengths > 0] + base)
        spans.append(_taken(offsets + base, lengths, wanted))
        base += len(shard.ids)
    offsets, lengths = (np.concatenate(parts) for parts in zip(*spans, strict=True))
    account = _Account(sum(len(shard.document_ends) for shard in shards), np.concatenate(starts), offsets)
    counts = np.zeros(vocab_size, dtype=np.int64)
    total = {
        **{"rows": 0, "tokens": 0, "text_tokens": text_tokens},
        **{"dropped_rows": 0, "least_maskable": seq_len},
    }

    def blocks() -> Iterator[np.ndarray]:
        for some in _blocks_of(lengths):
            table = packing.pack(offsets[some], lengths[some], seq_len, min_tokens)
            total["dropped_rows"] += table.dropped_rows
            step = max(1, TOKENS_AT_ONCE // seq_len)
            for start in range(0, table.n_rows, step):
                rows = lay_out(ids, table, range(start, min(start + step, table.n_rows)), vocabulary)
                ordinary = ~np.isin(rows, vocabulary.special_ids)
                maskable = ordinary.sum(axis=1)
                enough = maskable >= min_tokens  # documents of others may hold special tokens
                rows, ordinary = rows[enough], ordinary[enough]
                account.add_rows(table, start, enough)
                total["rows"] += len(rows)
                total["dropped_rows"] += int((~enough).sum())
                total["tokens"] += int((rows != vocabulary.pad_id).sum())
                total["least_maskable"] = min(total["least_maskable"], int(maskable[enough].min(initial=seq_len)))
                counts[:] += np.bincount(rows[ordinary], minlength=vocab_size)
                yield rows

    xxh3 = write_rows(path, blocks(), dtype_for(vocab_size))
    write_array(counts_file, counts)
    return {**total, **account.entry(), "xxh3": xxh3}


class _Account:
    """Where the documents of some shards are: in rows, or left out.

    Args:
        documents: in the shards, with those that have no tokens.
        starts: int64, of those that have tokens, ascending.
        taken: int64, starts of those that are in the mix, each as often as it is used.
    """

    def __init__(self, documents: int, starts: np.ndarray, taken: np.ndarray) -> None:
        self.documents, self.starts, self.taken = documents, starts, len(taken)
        self.in_mix, self.in_rows = (np.zeros(len(starts), dtype=bool) for _ in range(2))
        self.in_mix[np.searchsorted(starts, taken)] = True

    def add_rows(self, table: packing.RowTable, first: int, kept: np.ndarray) -> None:
        """Note the documents of the rows from `first` on that are kept: bool (rows,)."""
        edges = table.row_starts[first : first + len(kept) + 1]
        chunks = table.chunk_offsets[int(edges[0]) : int(edges[-1])][np.repeat(kept, np.diff(edges))]
        self.in_rows[np.searchsorted(self.starts, chunks, side="right") - 1] = True

    def entry(self) -> dict[str, Any]:
        """Return the counts for the file's manifest entry; a document that is used again counts once."""
        left_out = {
            NO_TOKENS: self.documents - len(self.starts),
            NOT_IN_THE_MIX: int((~self.in_mix).sum()),
            TOO_FEW_TOKENS: int((self.in_mix & ~self.in_rows).sum()),
        }
        return {
            "documents_in": self.documents,
            "documents": int(self.in_rows.sum()),
            "repeats": self.taken - int(self.in_mix.sum()),
            "left_out": {reason: count for reason, count in left_out.items() if count},
        }


def _taken(offsets: np.ndarray, lengths: np.ndarray, tokens: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Return offsets and lengths of the documents to take: int64 (documents,)."""
    offsets, lengths = offsets[lengths > 0], lengths[lengths > 0]
    if tokens is not None:
        chosen, lengths = mix.choose(lengths, tokens, seed=0)
        offsets = offsets[chosen]
    return offsets, lengths


def _blocks_of(lengths: np.ndarray) -> Iterator[slice]:
    """Cut documents into runs of about BLOCK_TOKENS tokens."""
    block = np.cumsum(lengths) // BLOCK_TOKENS
    edges = [0, *(np.flatnonzero(np.diff(block)) + 1).tolist(), len(lengths)]
    yield from (slice(begin, end) for begin, end in pairwise(edges) if end > begin)


def make(
    shards: Path,
    tokenizer: Path,
    folder: Path,
    seq_len: int,
    min_tokens: Mapping[str, int],
    corpus: Corpus,
    pool: WorkerPool,
) -> bool:
    """Pack the shards unless the folder already is the result; return True when it was written.

    Args:
        min_tokens: ordinary tokens that each row of a split has at least, so that as many can be masked.
        corpus: whose sources say what the mix is; a shard of a source that it does not name is used once.

    Raises: ScalerError when shards or tokenizer are absent or do not belong together, or no row comes out.
    """
    manifest = manifests.read(shards, "shards")
    vocab_size = int(manifest["vocab_size"])
    if not (tokenizer / "tokenizer.json").is_file():
        raise ScalerError(f"{tokenizer}: no tokenizer here; name the one that the shards were made with")
    if checksum(tokenizer / "tokenizer.json") != manifest["tokenizer_xxh3"]:
        raise ScalerError(f"{shards}: written with another tokenizer than {tokenizer}; make the shards again")
    if seq_len > LONGEST_ROW:
        raise ScalerError(f"data.seq_len={seq_len}, but a row has at most {LONGEST_ROW:,} tokens")
    tokens, mixed = _mix(corpus, manifest["splits"]["train"])
    made_from = {
        "shards": folders.checksum_of_manifest(shards, "shards"),
        "seq_len": seq_len,
        "mix": mixed,
        "min_tokens": dict(min_tokens),
    }
    if folders.is_current(folder, "rows", made_from):
        return False
    vocabulary = read_vocabulary(tokenizer)
    with folders.staged(folder, "rows", made_from) as partial:
        groups = [(split, group) for split, entries in manifest["splits"].items() for group in _groups(entries)]
        counts = [partial / folders.TASKS / f"{group[0]['name']}.npy" for _, group in groups]
        tasks = [
            Task(
                group[0]["name"],
                sum(entry["tokens"] for entry in group),
                pack_shards,
                (
                    [shards / entry["name"] for entry in group],
                    [tokens.get(entry["name"]) if split == "train" else None for entry in group],
                    partial / (group[0]["name"] + EXTENSION),
                    seq_len,
                    min_tokens[split],
                    vocab_size,
                    vocabulary,
                    manifest["strip_ids"],
                    counts_file,
                ),
            )
            for (split, group), counts_file in zip(groups, counts, strict=True)
        ]
        records = pool.run(tasks, partial, "packing", "token")
        splits: dict[str, list[dict[str, Any]]] = {split: [] for split in manifest["splits"]}
        for (split, group), record in zip(groups, records, strict=True):
            known = all("characters" in entry for entry in group)  # not in adopted shards
            of_text = {"characters": sum(entry["characters"] for entry in group) if known else None}
            splits[split].append({"name": group[0]["name"], "source": group[0].get("source"), **of_text, **record})
        of_train = [file for (split, _), file in zip(groups, counts, strict=True) if split == "train"]
        unigram = np.sum([np.load(file) for file in of_train], axis=0)
        for split, entries in splits.items():
            if not any(entry["rows"] for entry in entries):
                taken = tokens if split == "train" else {}
                held = sum(taken.get(entry["name"], entry["tokens"]) for entry in manifest["splits"][split])
                raise ScalerError(
                    f"{shards}: the {split} split gives {held:,} tokens, not enough for one row of "
                    f"data.seq_len={seq_len}; bring more text or shorter rows{texts.or_without(split)}"
                )
        left_out: Counter[str] = Counter()
        for record in records:
            left_out.update({accounts.DROPPED + reason: count for reason, count in record["left_out"].items()})
        dropped = dict(sorted(left_out.items()))
        folders.write_manifest(
            partial,
            "rows",
            made_from,
            seq_len=seq_len,
            vocab_size=vocab_size,
            tokenizer_xxh3=manifest["tokenizer_xxh3"],
            unigram_xxh3=write_array(partial / UNIGRAM, unigram),
            mix=mixed,
            history=[*manifest["history"], {"stage": "rows", "settings": {"seq_len": seq_len}, "counts": dropped}],
            sources=manifest["sources"],
            documents_in=sum(record["documents_in"] for record in records),
            counts=dropped,
            splits=splits,
        )
    return True


def _groups(entries: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield groups of neighbouring shards, of one source each, that share a file of rows."""
    group: list[dict[str, Any]] = []
    tokens = 0
    for entry in entries:
        if group and (entry.get("source") != group[0].get("source") or tokens >= FILE_TOKENS):
            yield group
            group, tokens = [], 0
        group.append(entry)
        tokens += entry["tokens"]
    if group:
        yield group


def _mix(corpus: Corpus, train: list[dict[str, Any]]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Return the training tokens to take of each shard, by its name, and the manifest's entry of the mix by source."""
    of_source: dict[str, list[dict[str, Any]]] = {source.name: [] for source in corpus.sources}
    for entry in train:
        of_source.setdefault(entry.get("source") or "", []).append(entry)
    of_source = {source.name: of_source[source.name] for source in corpus.sources}
    if not any(of_source.values()):  # adopted shards
        return {}, []
    available = {name: sum(entry["tokens"] for entry in entries) for name, entries in of_source.items()}
    wanted = mix.tokens_of_each(corpus, available)
    tokens: dict[str, int] = {}
    for name, entries in of_source.items():
        shares = [Fraction(entry["tokens"], available[name]) for entry in entries]
        tokens.update(zip([e["name"] for e in entries], mix.apportion(wanted[name], shares), strict=True))
    total = sum(wanted.values())
    mixed = [
        {
            "source": name,
            "available_tokens": available[name],
            "tokens": wanted[name],
            "share": wanted[name] / max(1, total),
            "epochs": wanted[name] / max(1, available[name]),
        }
        for name in wanted
    ]
    return tokens, mixed

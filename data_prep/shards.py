"""Tokenise a corpus into shards: `python -m data_prep.shards CORPUS TOKENIZER --out DIR --processes 8`.

Every corpus file becomes one shard of Megatron-LM's .bin/.idx format, so the shards hang on the corpus alone and not
on the number of processes.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer
from tqdm import tqdm

from data_prep import folders, sources
from scaler.errors import ScalerError, command
from scaler.recipe import Corpus
from scaler.token_shards import MANIFEST, MANIFEST_FORMAT, Shard, checksum, dtype_for, write_json, write_shard

DOCUMENTS_AT_ONCE = 1000
UNIGRAM = "unigram.npy"


def tokenize_part(part: Path, tokenizer_file: Path, prefix: Path, dtype: np.dtype[Any]) -> tuple[dict[str, Any], Any]:
    """Tokenise one corpus file into one shard, without special tokens.

    Returns: the shard's manifest entry, and how often each token occurs: int64 (vocabulary,).
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    tokenizer = Tokenizer.from_file(str(tokenizer_file))
    tokenizer.encode_special_tokens = True  # a document that spells "<mask>" holds these six characters
    vocab_size = tokenizer.get_vocab_size()

    def documents() -> Iterator[np.ndarray]:
        texts = sources.read_file(part, Corpus(source=""))
        while group := list(islice(texts, DOCUMENTS_AT_ONCE)):
            for encoding in tokenizer.encode_batch_fast(group, add_special_tokens=False):
                yield np.asarray(encoding.ids, dtype=np.int64)

    entry = write_shard(prefix, documents(), dtype, vocab_size)
    return entry, np.bincount(Shard(prefix).ids, minlength=vocab_size)


def make(corpus: Path, tokenizer: Path, folder: Path, processes: int) -> bool:
    """Tokenise the corpus unless the folder already is what it makes; say whether it was written.

    Raises: ScalerError when corpus or tokenizer are damaged or absent, or a process dies.
    """
    if processes < 1:
        raise ScalerError(f"processes={processes}, but at least 1 has to tokenise")
    manifest = folders.read_manifest(corpus, "corpus")
    tokenizer_manifest = folders.read_manifest(tokenizer, "tokenizer")
    tokenizer_file = tokenizer / "tokenizer.json"
    tokenizer_xxh3 = _whole(tokenizer_file, tokenizer_manifest["tokenizer_xxh3"])
    made_from = {"corpus": folders.checksum_of_manifest(corpus, "corpus"), "tokenizer": tokenizer_xxh3}
    if folders.is_current(folder, "shards", made_from) and _can_be_opened(folder):
        return False
    vocab_size = int(tokenizer_manifest["vocab_size"])
    dtype = dtype_for(vocab_size)
    parts = [(split, entry) for split, entries in manifest["splits"].items() for entry in entries]
    for _, entry in parts:
        _whole(corpus / entry["name"], entry["xxh3"])
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in manifest["splits"]}
    unigram = np.zeros(vocab_size, dtype=np.int64)
    with folders.staged(folder, "shards") as partial:
        size = sum(entry["bytes"] for _, entry in parts)
        # disable=None: no bar without a terminal
        bar = tqdm(total=size, unit="B", unit_scale=True, desc="tokenising", disable=None)
        workers = ProcessPoolExecutor(
            min(processes, len(parts)), mp_context=multiprocessing.get_context("spawn"), initializer=_begin_worker
        )
        try:
            jobs = {}
            # Workers are started here and inherit it: Ctrl-C reaches the parent alone, which ends them
            heard = signal.signal(signal.SIGINT, signal.SIG_IGN)
            for split, entry in parts:
                prefix = partial / entry["name"].removesuffix(".jsonl.zst")
                job = workers.submit(tokenize_part, corpus / entry["name"], tokenizer_file, prefix, dtype)
                jobs[job] = (split, entry)
            signal.signal(signal.SIGINT, heard)
            for job in as_completed(jobs):
                split, part = jobs[job]
                entry, counts = job.result()
                splits[split].append(entry)
                if split == "train":
                    unigram += counts
                bar.update(part["bytes"])
        except BrokenProcessPool as error:
            raise ScalerError(
                f"{folder}: a tokenising process died (out of memory?); run again with fewer --processes"
            ) from error
        finally:
            workers.shutdown(wait=False, cancel_futures=True)
            for process in multiprocessing.active_children():
                process.terminate()
                process.join()  # or it might write on while the unfinished folder is removed
            bar.close()
        write_manifest(partial, splits, unigram, vocab_size, tokenizer_xxh3, manifest["sources"], made_from)
    return True


def _whole(path: Path, xxh3: str) -> str:
    """The checksum of a file, which is to be `xxh3`. Raises ScalerError when the file is missing or damaged."""
    if not path.is_file() or checksum(path) != xxh3:
        raise ScalerError(f"{path}: missing or damaged (its checksum differs); delete {path.parent} and make it again")
    return xxh3


def _can_be_opened(folder: Path) -> bool:
    """Whether every shard is there and of full length."""
    try:
        for entries in folders.read_manifest(folder, "shards")["splits"].values():
            for entry in entries:
                Shard(folder / entry["name"])
    except ScalerError:
        return False
    return True


def write_manifest(
    folder: Path,
    splits: dict[str, list[dict[str, Any]]],
    unigram: np.ndarray,
    vocab_size: int,
    tokenizer_xxh3: str,
    sources_entry: list[dict[str, Any]],
    made_from: dict[str, Any],
    strip_ids: Sequence[int] = (),
) -> None:
    """Write the token counts and the manifest, which make a folder of shards a dataset."""
    np.save(folder / UNIGRAM, unigram)
    write_json(
        folder / MANIFEST,
        {
            "format": MANIFEST_FORMAT,
            "kind": "shards",
            "made_from": made_from,
            "vocab_size": vocab_size,
            "tokenizer_xxh3": tokenizer_xxh3,
            "strip_ids": list(strip_ids),
            "unigram_xxh3": checksum(folder / UNIGRAM),
            "sources": sources_entry,
            "splits": {
                split: sorted(entries, key=lambda entry: str(entry["name"])) for split, entries in splits.items()
            },
        },
    )


def _begin_worker() -> None:
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """End this worker once the parent is gone, killed perhaps; it would wait for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m data_prep.shards", description=__doc__)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="(one a core)")
    arguments = parser.parse_args()
    written = make(arguments.corpus, arguments.tokenizer, arguments.out, arguments.processes)
    print(f"{arguments.out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

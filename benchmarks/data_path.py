"""Tokens a second from the memory map to masked tensors, beside Transformers' own collator on the same rows.

All are measured in turn, several times, on one core: `make bench`, or `python benchmarks/data_path.py`. The collator
gets its rows ready made, as lists; ours reads, orders and masks them. MosaicML streaming and LitData, where they are
installed (pip install mosaicml-streaming litdata), read the same rows from their own formats, shuffled, through their
loaders without workers, and that collator masks them.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import measurements
import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from scaler.config.recipe import load
from scaler.data import prepared
from scaler.engine.patches import allocator
from scaler.model import build

TOKENS_A_BATCH = 64 * 512
SHARD_BYTES = 64 << 20  # streaming's default
OURS = "map to masked tensors"


def mosaicml(rows: np.ndarray, folder: Path, count: int, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """Batches of rows (rows, seq_len) through MosaicML streaming, without end."""
    from streaming import MDSWriter, StreamingDataset

    with MDSWriter(
        out=str(folder), columns={"ids": f"ndarray:{rows.dtype.name}:{rows.shape[1]}"}, size_limit=SHARD_BYTES
    ) as out:
        for row in rows:
            out.write({"ids": row})
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=count)
    return endless(
        torch.utils.data.DataLoader(data, count, collate_fn=lambda some: collate(widened(row["ids"] for row in some)))
    )


def litdata(rows: np.ndarray, folder: Path, count: int, collate: Callable[[Any], Any]) -> Iterator[Any]:
    """The same through LitData, whose loader for tokens cuts a stream of them into rows."""
    from litdata import StreamingDataLoader, StreamingDataset
    from litdata.streaming.cache import Cache
    from litdata.streaming.item_loader import TokensLoader

    loader = TokensLoader(block_size=rows.shape[1])
    cache = Cache(str(folder), chunk_bytes=SHARD_BYTES, item_loader=loader)
    for number, row in enumerate(rows):
        cache[number] = torch.from_numpy(row.astype(np.int32))
    cache.done()
    cache.merge()
    data = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=rows.shape[1]), shuffle=True)
    return endless(StreamingDataLoader(data, batch_size=count, collate_fn=lambda some: collate(widened(some))))


def widened(rows: Iterable[Any]) -> list[torch.Tensor]:
    """Rows of a batch as the collator takes them."""
    return [torch.as_tensor(row, dtype=torch.int64) for row in rows]


def endless(loader: Any) -> Iterator[Any]:
    """One epoch after another."""
    return itertools.chain.from_iterable(loader for _ in itertools.count())


PEERS = {"streaming": ("MosaicML streaming", mosaicml), "litdata": ("LitData", litdata)}


def rate(work, tokens: int, seconds: float = 0.5) -> float:
    """Tokens a second of `work(turn)`, repeated for about `seconds`."""
    turns, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        work(turns)
        turns += 1
    return turns * tokens / (time.perf_counter() - start)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart")
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("overrides", nargs="*", default=[])
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    allocator.install()  # as training does
    positions = arguments.seq_len + 2
    recipe = load(
        arguments.recipe,
        [
            f"data.seq_len={arguments.seq_len}",
            f"model.max_position_embeddings={positions}",
            "objective.mask_probability=0.15",
            "objective.final_mask_probability=null",
            *arguments.overrides,
        ],
    )
    data = prepared.open_prepared(recipe)
    config = build.configuration_of(recipe, data.vocabulary)
    reader = data.rows("train", recipe, build.first_position(config))
    count = TOKENS_A_BATCH // arguments.seq_len
    rows = [row.tolist() for row in reader.assemble(np.arange(count))[0]]
    collator = DataCollatorForLanguageModeling(data.tokenizer, mlm_probability=0.15)

    works = {
        "Transformers' collator": lambda turn: collator(rows),
        "assemble alone": lambda turn: reader.assemble(np.arange(turn * count, (turn + 1) * count) % len(reader.rows)),
        OURS: lambda turn: reader.at(turn * count, count),
    }
    beside = tempfile.TemporaryDirectory()
    for package, (name, read) in PEERS.items():
        if importlib.util.find_spec(package) is not None:
            everything = reader.rows.take(np.arange(len(reader.rows)))
            batches = read(everything, Path(beside.name) / package, count, collator)
            works[name] = lambda turn, batches=batches: next(batches)
    rates: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(0)
    for _ in range(arguments.repeats):
        for name, work in works.items():
            rates[name].append(rate(work, TOKENS_A_BATCH))
    print(
        f"{count} rows of {arguments.seq_len}, {len(reader.rows.files)} files, "
        f"{reader.rows.real_fraction:.2%} real tokens, one core"
    )
    medians = {name: statistics.median(measured) for name, measured in rates.items()}
    for name, measured in rates.items():
        spread = f"{min(measured) / 1e6:.1f}-{max(measured) / 1e6:.1f}"
        print(f"{name:<24} {medians[name] / 1e6:8.1f} M tokens/s  ({spread})  {medians[OURS] / medians[name]:6.1f} x")
    lines = [
        measurements.Measurement(
            f"data, {count} rows of {arguments.seq_len} masked, {OURS} / {name}",
            medians[OURS],
            median,
            "tokens/s a core",
            arguments.repeats,
        )
        for name, median in medians.items()
        if name not in (OURS, "assemble alone")
    ]
    print(measurements.write("data_path", lines))


if __name__ == "__main__":
    main()

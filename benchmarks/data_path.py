"""Tokens a second from the memory map to masked tensors, beside Transformers' own collator on the same rows.

Both are measured in turn, several times, on one core: `make bench`, or
`python benchmarks/data_path.py --recipe quickstart`. The collator gets its rows ready made, as lists; ours reads,
orders and masks them.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from transformers import DataCollatorForLanguageModeling

from scaler import model, prepared
from scaler.recipe import load

TOKENS_A_BATCH = 64 * 512


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
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    positions = arguments.seq_len + 2
    recipe = load(
        arguments.recipe,
        [
            f"data.seq_len={arguments.seq_len}",
            f"model.max_position_embeddings={positions}",
            "objective.mask_probability=0.15",
        ],
    )
    data = prepared.open_prepared(recipe)
    config = model.configuration(recipe.model, data.vocabulary, recipe.tokenizer.vocab_size, recipe.data.seq_len)
    reader = data.rows("train", recipe, model.first_position(config))
    count = TOKENS_A_BATCH // arguments.seq_len
    rows = [row.tolist() for row in reader.assemble(np.arange(count))[0]]
    collator = DataCollatorForLanguageModeling(data.tokenizer, mlm_probability=0.15)

    works = {
        "Transformers' collator": lambda turn: collator(rows),
        "assemble alone": lambda turn: reader.assemble(np.arange(turn * count, (turn + 1) * count) % len(reader.rows)),
        "map to masked tensors": lambda turn: reader.at(turn * count, count),
    }
    rates: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work(0)
    for _ in range(arguments.repeats):
        for name, work in works.items():
            rates[name].append(rate(work, TOKENS_A_BATCH))
    print(
        f"{count} rows of {arguments.seq_len}, {len(reader.rows.files)} files, "
        f"{reader.rows.real_share:.2%} real tokens, one core"
    )
    base = statistics.median(rates["Transformers' collator"])
    for name, measured in rates.items():
        median = statistics.median(measured)
        spread = f"{min(measured) / 1e6:.1f}-{max(measured) / 1e6:.1f}"
        print(f"{name:<24} {median / 1e6:8.1f} M tokens/s  ({spread})  {median / base:6.1f} x")


if __name__ == "__main__":
    main()

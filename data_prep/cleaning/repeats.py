"""Find the documents that have a key of an earlier document: part by part, in bounded memory.

Keys are 64-bit hashes. With a thousand million distinct ones, the chance that any two are equal by accident is 3 %
(the birthday bound, n**2 / 2**65).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from scaler.data.arrays import write_array

KEYS_AT_ONCE = 1 << 22  # of one part: about 200 MB


def parts_for(documents: int) -> int:
    """Return the number of parts in which repeats among so many documents are searched."""
    return max(1, -(-documents // KEYS_AT_ONCE))


def find(key_files: Sequence[Path], row: int, part: int, parts: int, out: Path) -> dict[str, Any]:
    """Write which documents repeat a key of an earlier one, among the keys of one part.

    Args:
        key_files: .npy files of uint64 (rows, documents); the documents of all files, in this order, are numbered.
        row: which of the rows holds the keys.
        part, parts: keys are dealt to the parts by their highest bits.
        out: .npy file to write: int64 (2, repeats), the number of each document that repeats a key, ascending, and
            the number of the first document with that key.
    """
    keys, numbers = [], []
    base = 0
    for path in key_files:
        column = np.load(path, mmap_mode="r")[row]
        mine = np.flatnonzero((column >> np.uint64(32)) * np.uint64(parts) >> np.uint64(32) == np.uint64(part))
        keys.append(column[mine])
        numbers.append(mine + base)
        base += len(column)
    key, number = np.concatenate(keys), np.concatenate(numbers)
    order = np.argsort(key, kind="stable")  # stable: documents of one key stay in order
    key, number = key[order], number[order]
    begins = np.ones(len(key), dtype=bool)
    begins[1:] = key[1:] != key[:-1]
    first = number[np.maximum.accumulate(np.where(begins, np.arange(len(key)), 0))] if len(key) else number
    found = np.stack([number[~begins], first[~begins]])
    write_array(out, found[:, np.argsort(found[0], kind="stable")])
    return {"repeats": found.shape[1]}

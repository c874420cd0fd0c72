"""Rows of random documents on disk, and a reader of them."""

from itertools import pairwise
from pathlib import Path

import numpy as np

from data_prep.tokens.packing import RowTable, pack
from data_prep.tokens.rows import lay_out
from scaler.data.batches import RowReader
from scaler.data.token_rows import Manifest, TokenRows, dtype_for, write_rows
from scaler.data.tokenizer import Vocabulary

BEGIN, PAD, END, UNKNOWN, MASK = SPECIAL = (0, 1, 2, 3, 4)
VOCABULARY = Vocabulary(400, BEGIN, END, PAD, MASK, SPECIAL)


def make_documents(lengths: list[int], seed: int = 0) -> list[np.ndarray]:
    """Documents of random ids; the unknown token is among them now and then, as in text."""
    chance = np.random.default_rng(seed)
    return [np.where(chance.random(n) < 0.05, UNKNOWN, chance.integers(5, 400, n)) for n in lengths]


def pack_documents(documents: list[np.ndarray], seq_len: int, masked: int) -> RowTable:
    lengths = np.array([len(document) for document in documents])
    return pack(np.cumsum(lengths) - lengths, lengths, seq_len, masked)


def open_rows(
    folder: Path, files: list[np.ndarray], masked: int, first: int = 0, seed: int = 0, vocab_size: int = 400
) -> RowReader:
    """A reader of rows of ids, (rows, seq_len), of which each file holds some."""
    entries = []
    for number, rows in enumerate(files):
        write_rows(folder / f"train-{number}.rows", [rows], dtype_for(vocab_size))
        counts = dict.fromkeys(("tokens", "documents", "dropped_rows"), 0)
        entries.append({"name": f"train-{number}", "rows": len(rows), **counts})
    manifest = Manifest(folder, len(files[0][0]), vocab_size, "", "", [], {"train": entries})
    return RowReader(TokenRows(manifest, "train"), VOCABULARY, masked, first, seed)


def make_reader(
    folder: Path, documents: list[np.ndarray], seq_len: int, masked: int, files: int = 1, first: int = 0, seed: int = 0
) -> RowReader:
    """A reader of documents that were packed and written to so many files."""
    table = pack_documents(documents, seq_len, masked)
    edges = np.linspace(0, table.n_rows, files + 1, dtype=int).tolist()
    parts = [lay_out(np.concatenate(documents), table, range(*edge), VOCABULARY) for edge in pairwise(edges)]
    return open_rows(folder, parts, masked, first, seed)

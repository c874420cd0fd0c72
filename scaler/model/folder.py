"""Check that the folder of an exported model is whole. Needs no torch."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open

from scaler.core.files import checksum

EXPORT = "export"  # in the folder of a run
CONFIG, TOKENIZER = "config.json", "tokenizer.json"
WEIGHTS, PARTS = "model.safetensors", "model.safetensors.index.json"


def problem(folder: Path, checksums: Mapping[str, str]) -> str | None:
    """Return which file of an exported model is missing, cut or damaged; None where all open.

    Args:
        checksums: of its files by name, as it was written; empty where they are unknown.

    Raises: OSError for a file that is there and cannot be read.
    """
    path = folder
    try:
        for path in (folder / CONFIG, folder / TOKENIZER):
            json.loads(path.read_text(encoding="utf-8"))
        path = folder / PARTS
        weights = json.loads(path.read_text(encoding="utf-8"))["weight_map"].values() if path.is_file() else [WEIGHTS]
        for path in {folder / name for name in weights}:
            with safe_open(path, framework="numpy"):  # which compares the length with the header
                pass
        for path, xxh3 in ((folder / name, xxh3) for name, xxh3 in checksums.items()):
            if checksum(path) != xxh3:
                return f"{path}: is not what was written"
    except (FileNotFoundError, NotADirectoryError):
        return f"{path}: missing"
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        return f"{path}: damaged ({' '.join(str(error).split())[:100]})"
    return None

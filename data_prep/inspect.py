"""Look into prepared data: `python -m data_prep.inspect data/quickstart`.

DIR is a recipe's data folder. Shown are the sources and their mix, what cleaning and deduplication dropped, with
examples, the lengths of documents (as text, and as a picture, DIR/lengths.png), the most and the least frequent tokens,
the share of unknown tokens, bytes a token, the neighbours of some word vectors, how full the rows are, and some rows,
decoded.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tokenizers import Tokenizer

from data_prep.formats import texts
from data_prep.prepared.inspect import show_rows, show_shards, show_text, show_vectors
from data_prep.prepared.verify import stages
from scaler.core.cli import command
from scaler.core.errors import ScalerError
from scaler.core.files import MANIFEST
from scaler.data import word_vectors


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.inspect", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--samples", type=int, default=3, help="rows to show (3)")
    arguments = parser.parse_args()
    if (arguments.folder / MANIFEST).exists():
        raise ScalerError(f"{arguments.folder}: is one stage's folder; name the data folder above it")
    found: dict[str, list[Path]] = {}
    for path in stages(arguments.folder):
        found.setdefault(json.loads((path / MANIFEST).read_text(encoding="utf-8"))["kind"], []).append(path)
    text = [path for kind in texts.KINDS for path in found.get(kind, [])]
    for path in text:
        show_text(path)
    for path in found.get("shards", []):
        show_shards(path, text[-1] if text else None)
    if "tokenizer" in found and "rows" in found:
        tokenizer = Tokenizer.from_file(str(found["tokenizer"][0] / "tokenizer.json"))
        for path in found.get(word_vectors.KIND, []):
            show_vectors(path, tokenizer)
        names = json.loads((found["tokenizer"][0] / "tokenizer_config.json").read_text(encoding="utf-8"))
        unknown = tokenizer.token_to_id(names["unk_token"]) if names.get("unk_token") else None
        for path in found["rows"]:
            show_rows(path, tokenizer, unknown, arguments.samples)


if __name__ == "__main__":
    main()

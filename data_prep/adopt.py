"""Take shards that Megatron-LM's preprocess_data.py (or GPT-NeoX, datatrove) wrote, as they are.

`python -m data_prep.adopt --tokenizer DIR --train PREFIX ... --heldout PREFIX ... --out data/mine` links or copies the
.bin/.idx files to data/mine/shards, the tokenizer to data/mine/tokenizer, and writes the manifest that training needs.
With `--test PREFIX ...` there is a test split, too.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from data_prep.prepared.adopt import adopt
from scaler.core.cli import command


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.adopt", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True, help="Transformers tokenizer folder")
    parser.add_argument("--train", type=Path, nargs="+", required=True, help="shards without their extension")
    parser.add_argument("--heldout", type=Path, nargs="+", required=True, help="shards without their extension")
    parser.add_argument("--test", type=Path, nargs="+", default=[], help="likewise (no test split)")
    parser.add_argument("--out", type=Path, required=True, help="the recipe's data.folder")
    arguments = parser.parse_args()
    adopt(arguments.tokenizer, arguments.train, arguments.heldout, arguments.out, arguments.test)
    print(f"{arguments.out} written; train with data.folder={arguments.out}")


if __name__ == "__main__":
    main()

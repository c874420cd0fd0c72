"""Take shards that Megatron-LM's preprocess_data.py (or GPT-NeoX, datatrove) wrote, as they are.

`scaler adopt --tokenizer DIR --train PREFIX ... --heldout PREFIX ... --out data/mine` links or copies the .bin/.idx
files to data/mine/shards and the tokenizer to data/mine/tokenizer, and writes the manifest that training needs. With
`--test PREFIX ...` there is a test split, too.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("adopt", __doc__)
    made.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="folder of a Transformers tokenizer")
    for split, otherwise in (("train", None), ("heldout", None), ("test", "no test split")):
        meaning = f"{split} shards, without their extension" + (f" (default: {otherwise})" if otherwise else "")
        made.add_argument(
            f"--{split}", type=Path, nargs="+", required=not otherwise, default=[], metavar="PREFIX", help=meaning
        )
    made.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="folder to write, the recipe's data.folder"
    )
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.prepared.adopt import adopt

    adopt(arguments.tokenizer, arguments.train, arguments.heldout, arguments.out, arguments.test)
    print(f"{arguments.out} written; train with data.folder={arguments.out}")


if __name__ == "__main__":
    main()

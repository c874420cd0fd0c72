"""Fill the mask in a sentence with an exported model: `python -m scaler.fill_mask runs/quickstart "... <mask> ..."`."""

from __future__ import annotations

import argparse
from pathlib import Path

from transformers import AutoModelForMaskedLM

from scaler.core.cli import command
from scaler.data.tokenizer import load_tokenizer
from scaler.evaluation.fill_mask import EXAMPLES, guesses
from scaler.model.exported import find_newest


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scaler.fill_mask", description=__doc__)
    parser.add_argument(
        "model", nargs="?", type=Path, default=Path("runs"), help="a run, an export, or a folder of runs"
    )
    parser.add_argument("sentence", nargs="*", help="sentences with <mask>; without one, some examples")
    parser.add_argument("--top", type=int, default=5, help="guesses for each mask (5)")
    arguments = parser.parse_args()
    folder = find_newest(arguments.model)
    tokenizer = load_tokenizer(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, local_files_only=True).eval()
    print(folder)
    for sentence in arguments.sentence or EXAMPLES:
        print(f"\n  {sentence}")
        for mask in guesses(model, tokenizer, sentence, arguments.top):
            print("    " + "   ".join(f"{word!r} {share:.0%}" for word, share in mask))


if __name__ == "__main__":
    main()

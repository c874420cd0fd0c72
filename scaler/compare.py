"""Models of any vocabulary side by side: `python -m scaler.compare runs/A runs/B --texts data/R/dedup/test-*`.

Each guesses the same hidden words of the same texts; of fine-tunings named by --finetuned the score on their test
examples is added. An uncased model has the easier words: it need not guess capitals and accents.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from scaler.core.cli import command
from scaler.core.errors import ScalerError
from scaler.core.files import write_json
from scaler.distributed import devices
from scaler.distributed.world import World
from scaler.evaluation import masked_words
from scaler.evaluation.compare import load_masked_lm, read_texts, render
from scaler.finetuning.folder import of_finetunings
from scaler.model import exported, parameters


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m scaler.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path, help="runs, their exports, or Transformers folders")
    parser.add_argument(
        "--texts", nargs="+", type=Path, required=True, help="that none was trained on: .jsonl, .jsonl.zst"
    )
    parser.add_argument("--most", type=int, default=2000, help="documents that are read (2,000)")
    parser.add_argument("--finetuned", nargs="+", type=Path, default=[], help="folders of scaler.finetune")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    arguments = parser.parse_args()
    folders = [exported.find(path).resolve() for path in arguments.models]
    scores = of_finetunings(arguments.finetuned, folders)
    stretches = list(masked_words.stretches(read_texts(arguments.texts, arguments.most)))
    models = [load_masked_lm(folder) for folder in folders]
    short = [some for some in stretches if all(masked_words.fits(some, *loaded) for loaded in models)]
    if not short:
        raise ScalerError(
            f"--texts: no stretch of {masked_words.WORDS} words in them that all models can take; name longer ones, or "
            "leave a model of few positions out"
        )
    world, content = World(), []
    for asked, folder, (network, tokenizer) in zip(arguments.models, folders, models, strict=True):
        found = masked_words.measure(network.to(devices.device(world)), tokenizer, short)
        row = {"model": str(asked), "parameters": parameters.count_parameters(network)[0], "entries": len(tokenizer)}
        content.append({**row, **asdict(found), "finetuned": scores[folder], "left_out": len(stretches) - len(short)})
    if arguments.out:
        write_json(arguments.out, content)
    print(render(content))


if __name__ == "__main__":
    main()

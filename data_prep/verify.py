"""Check prepared data to the last bit: `python -m data_prep.verify data/quickstart`.

DIR is a recipe's data folder, or one stage's folder in it. Checked are all checksums, the counts that the manifests
state, every id against the vocabulary, every document boundary, and that text, tokenizer, shards and rows belong
together. All problems are named, and the exit status is 2 if there is one.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data_prep.pipeline.workers import worker_pool
from data_prep.prepared.verify import problems, stages
from scaler.core.cli import command
from scaler.core.errors import EXIT_BAD_INPUT


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.verify", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("--processes", type=int, help="(one a core)")
    arguments = parser.parse_args()
    wrong = 0
    with worker_pool(arguments.processes) as pool:
        for folder in stages(arguments.folder):
            found = list(problems(folder, pool))
            for problem in found:
                print("error:", problem, file=sys.stderr, flush=True)
            wrong += len(found)
            count = f"{len(found)} problem{'s' * (len(found) > 1)}"
            print(f"{folder}: {count if found else 'whole'}", flush=True)
    if wrong:
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()

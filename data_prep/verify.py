"""Check prepared data to the last bit.

`scaler verify data/quickstart` takes a recipe's data folder, or one stage's folder in it. It checks all checksums, the
counts that the manifests state, every id against the vocabulary, every document boundary, and that text, tokenizer,
shards and rows belong together. All problems are named, and the exit status is 2 if there is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from data_prep.pipeline.options import add_processes
from scaler.core.cli import Parser, command
from scaler.core.errors import EXIT_BAD_INPUT


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("verify", __doc__)
    made.add_argument("folder", type=Path, metavar="DIR", help="a recipe's data folder, or one stage's folder in it")
    add_processes(made)
    made.add_json("the problems of each folder")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from data_prep.pipeline.workers import worker_pool
    from data_prep.prepared.verify import problems, stages

    found: dict[str, list[str]] = {}
    with worker_pool(arguments.processes) as pool:
        for folder in stages(arguments.folder):
            found[str(folder)] = wrong = list(problems(folder, pool))
            for problem in wrong:
                print("error:", problem, file=sys.stderr, flush=True)
            if not arguments.json:
                count = f"{len(wrong)} problem{'s' * (len(wrong) > 1)}"
                print(f"{folder}: {count if wrong else 'whole'}", flush=True)
    if arguments.json:
        print(json.dumps(found, indent=2))
    if any(found.values()):
        sys.exit(EXIT_BAD_INPUT)


if __name__ == "__main__":
    main()

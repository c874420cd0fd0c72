"""Show how runs stand, from their folders alone.

`scaler status` lists all runs in runs/, a line each; `scaler status runs/NAME` tells more of one.
"""

from __future__ import annotations

import json
from pathlib import Path

from scaler.core.cli import Parser, command
from scaler.finetuning import folder as finetune_folder
from scaler.training import status

RUNS = Path("runs")


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("status", __doc__)
    made.add_argument("runs", nargs="*", default=[], type=Path, metavar="runs/NAME", help="run folders (default: all)")
    made.add_json("a list with an object for each run")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    if arguments.runs:
        # of runs/*, fine-tunings and sweeps are none of these
        runs = [folder for folder in arguments.runs if not (folder / finetune_folder.SETTINGS).is_file()]
        found = [status.status(folder) for folder in runs or arguments.runs]
        text = "\n".join(map(status.render, found))
    else:
        found = [status.status_or_problem(folder) for folder in status.runs_in(RUNS)]
        text = status.listing(found) if found else f"no runs in {RUNS}/; `scaler train` starts one"
    print(json.dumps(found, indent=2) if arguments.json else text)


if __name__ == "__main__":
    main()

"""How a run stands, from its folder alone: `python -m scaler.status runs/NAME` (of several: `runs/*`)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from scaler.core.cli import command
from scaler.finetuning import folder as finetune_folder
from scaler.training.status import render, status


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m scaler.status", description=__doc__)
    parser.add_argument("runs", nargs="+", type=Path, metavar="runs/NAME")
    parser.add_argument("--json", action="store_true", help="for programs: a list, one object a run")
    arguments = parser.parse_args()
    # of runs/*, fine-tunings and sweeps are none of these
    runs = [folder for folder in arguments.runs if not (folder / finetune_folder.SETTINGS).is_file()] or arguments.runs
    found = [status(folder) for folder in runs]
    print(json.dumps(found, indent=2) if arguments.json else "\n".join(map(render, found)))


if __name__ == "__main__":
    main()

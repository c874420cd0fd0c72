"""What a scaling study shows: `python -m scaler.report STUDY`, for those who book nodes and those who pay for them.

Writes into STUDY/report: index.html (one file, to open or to send), its pictures, report.json, report.md and
TensorBoard's scalars, a curve a run, over ranks. Where hardware is given, or STUDY/hardware.yaml is there, every point
is predicted as well, and the errors are told.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from scaler.core.cli import command
from scaler.planning import hardware
from scaler.studies import analysis, table
from scaler.studies.report import BOARD, PAGE, write


@command
def main() -> None:
    """Run the command line."""
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m scaler.report", description=__doc__, formatter_class=style)
    parser.add_argument("study", type=Path, metavar="STUDY", help="folder of a study")
    parser.add_argument("--hardware", help="name of a known kind of node, or a YAML file (STUDY/hardware.yaml)")
    parser.add_argument("--out", type=Path, help="folder of the report (STUDY/report)")
    arguments = parser.parse_args()
    given = None if arguments.hardware is None else hardware.load(arguments.hardware)
    study = analysis.analyse(arguments.study, given)
    out = arguments.out or arguments.study / "report"
    write(study, out)
    print(table.markdown(study))
    print(f"\n{out / PAGE}\ntensorboard --logdir {out / BOARD}")


if __name__ == "__main__":
    main()

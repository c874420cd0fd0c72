"""Write the report of a scaling study, for those who book nodes and those who pay for them.

STUDY/report gets index.html (one file, to open or to send), its pictures, report.json, report.md and TensorBoard's
scalars, a curve per run, over ranks. With --hardware, or a file STUDY/hardware.yaml, every point is predicted as well,
and the report states the errors.
"""

from __future__ import annotations

from pathlib import Path

from scaler.core.cli import Parser, command


def parser() -> Parser:
    """Return the command's parser."""
    made = Parser("report", __doc__)
    made.add_argument("study", type=Path, metavar="STUDY", help="folder of a study")
    made.add_argument(
        "--hardware", metavar="NAME", help="name of a known kind of node, or a YAML file (default: STUDY/hardware.yaml)"
    )
    made.add_argument("--out", type=Path, metavar="DIR", help="folder of the report (default: STUDY/report)")
    made.add_json("the report")
    return made


@command
def main() -> None:
    """Run the command line."""
    arguments = parser().parse()
    from scaler.studies.report import run

    run(arguments)


if __name__ == "__main__":
    main()

"""CPU seconds and loaded modules of starts: help, a typing error, status, plan, report and dry run.

`python benchmarks/starts.py [--root OTHER_CHECKOUT] [--run runs/NAME] [--study STUDY] [--recipe NAME]` starts each
command by its module, so that checkouts without the command `scaler` can be measured, too. With --root the checkouts
take turns. Each start is made once before and not measured, because that one writes the bytecode.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent.parent
PROGRAM = """
import atexit, os, runpy, sys
atexit.register(lambda: open(os.environ["STARTS_OUT"], "w").write(str(len(sys.modules))))
sys.argv = sys.argv[1:]
sys.path.insert(0, os.environ["STARTS_ROOT"])
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""
NODES = ("--hardware", "p5.48xlarge", "--nodes", "1,2,4,8,16")


def measure(root: Path, words: list[str], out: Path) -> tuple[float, int]:
    """Return CPU seconds of a start and its children, and the modules that its process had loaded at its end."""
    environment = {**os.environ, "STARTS_OUT": str(out), "STARTS_ROOT": str(root), "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(root)
    command = [sys.executable, "-c", PROGRAM, *words]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    error = process.stderr.read()
    _, ended, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(ended)
    if process.returncode not in (0, 2):
        raise SystemExit(f"{root}: {' '.join(words)}: status {process.returncode}\n{error[-2000:]}")
    return usage.ru_utime + usage.ru_stime, int(out.read_text(encoding="utf-8"))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, help="another checkout to compare with")
    parser.add_argument("--run", type=Path, help="folder of a run, for status")
    parser.add_argument("--study", type=Path, help="folder of a study, for report")
    parser.add_argument("--recipe", default="aws_roberta", help="name or file, for plan and dry run (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=5)
    arguments = parser.parse_args()
    commands = ("train", "status", "plan", "calibrate", "study", "report", "sweep", "finetune", "evaluate", "fill_mask")
    starts = {f"{name} --help": [f"scaler.{name}", "--help"] for name in commands}
    starts["corpus --help"] = ["data_prep.corpus", "--help"]
    starts["plan --nodez"] = ["scaler.plan", "--nodez", "1"]
    starts["plan, five sizes"] = ["scaler.plan", "--recipe", arguments.recipe, *NODES]
    starts["train --dry_run"] = ["scaler.train", "--dry_run", "--recipe", arguments.recipe]
    if arguments.run:
        starts["status RUN"] = ["scaler.status", str(arguments.run)]
    roots = [HERE, *([arguments.root.resolve()] if arguments.root else [])]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.study:
            starts["report STUDY"] = ["scaler.report", str(arguments.study), "--out", str(Path(folder) / "report")]
        print(f"{'start':20}" + "".join(f"{root.name + ': CPU s, modules':>36}" for root in roots))
        for name, words in starts.items():
            found: dict[Path, list[tuple[float, int]]] = {root: [] for root in roots}
            for repetition in range(-1, arguments.repetitions):
                for root in roots if repetition % 2 else roots[::-1]:
                    seconds = measure(root, words, Path(folder) / "modules")
                    found[root] += [seconds] * (repetition >= 0)
            cells = (f"{statistics.median(cpu for cpu, _ in some):>28.2f}{some[-1][1]:>8,}" for some in found.values())
            print(f"{name:20}" + "".join(cells), flush=True)


if __name__ == "__main__":
    main()

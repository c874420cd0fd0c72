"""Peak memory of data preparation against the size of the corpus: `python benchmarks/memory.py`.

Documents are generated (1 kB of words of Zipf's frequencies, a tenth of them repeats of others), prepared by all stages
in one process, and the largest resident memory of each stage is read back from the operating system.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from scaler.config.recipe import RECIPES

STAGES = {
    "corpus": "text.jsonl --out corpus --part_mib 16",
    "clean": "corpus --out clean unicode_repair=true normalise=NFC min_characters=100",
    "dedup": "clean --out dedup",
    "tokenizer": "dedup --out tokenizer vocab_size=8192 sample_mib=16",
    "shards": "dedup tokenizer --out shards",
    "rows": "shards tokenizer --out rows-512 --seq_len 512",
    "verify": ".",
}
WORDS_A_DOCUMENT = 170


def generate(path: Path, megabytes: float) -> None:
    """Write documents until the file is so large."""
    chance = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
    words = np.array(["".join(chance.choice(letters[:12], chance.integers(2, 10))) for _ in range(50_000)])
    likely = 1 / np.arange(1, len(words) + 1)
    likely /= likely.sum()
    kept: list[str] = []
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1e6:
            for picked in chance.choice(len(words), (1000, WORDS_A_DOCUMENT), p=likely):
                text = " ".join(words[picked]) + "."
                if kept and chance.random() < 0.1:
                    text = kept[chance.integers(len(kept))] + " again"
                elif len(kept) < 1000:
                    kept.append(text)
                file.write(json.dumps({"text": text}) + "\n")


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, nargs="+", default=[64, 256, 1024])
    arguments = parser.parse_args()
    environ = {**os.environ, "PYTHONPATH": str(RECIPES.parent.parent), "HF_HUB_OFFLINE": "1"}
    print(f"{'corpus':>10}  " + "".join(f"{stage:>12}" for stage in STAGES))
    for megabytes in arguments.megabytes:
        with tempfile.TemporaryDirectory() as temporary:
            generate(Path(temporary) / "text.jsonl", megabytes)
            peaks = []
            for stage, options in STAGES.items():
                command = [sys.executable, "-m", f"data_prep.{stage}", *options.split()]
                command += [] if stage == "tokenizer" else ["--processes", "1"]
                timed = ["/usr/bin/time", "-f", "peak %M"]
                done = subprocess.run(
                    [*timed, *command], cwd=temporary, env=environ, capture_output=True, text=True, check=False
                )
                if done.returncode:
                    sys.exit(f"{stage}: {done.stderr}")
                peaks.append(int(re.findall(r"peak (\d+)", done.stderr)[-1]) / 1e3)
        print(f"{megabytes:>7,.0f} MB  " + "".join(f"{peak:>9,.0f} MB" for peak in peaks), flush=True)


if __name__ == "__main__":
    main()

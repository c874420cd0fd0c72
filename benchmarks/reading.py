"""Random rows a second and start-up, beside Megatron-LM's IndexedDataset, MosaicML streaming and Hugging Face Arrow.

All hold the same tokens in rows of `--seq_len`: `--gigabytes` of them for the rates, and a hundred times that as sparse
files for the start-up (formats whose index hangs on the number of rows get one of as many rows). Each start-up is a
process of its own that has imported its library: open the data, read one row. Rates alternate, batches of 64 rows at
random places, page-cached. `python benchmarks/reading.py --megatron path/to/Megatron-LM` (streaming: pip install
mosaicml-streaming).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from scaler.core.files import FORMAT, write_json

ROWS_A_BATCH = 64
SECONDS = 2.0
COUNTS = {"documents": 0, "dropped_rows": 0, "least_maskable": 1, "xxh3": ""}
FILES = 4  # of ours, and of streaming's shards a gigabyte, as many as its size limit makes

# Each program prints one line of JSON: the start-up seconds, and, where asked, rows a second of several turns.
PRELUDE = """
import json, sys, time
import numpy as np
folder, rows, seq_len, turns = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
"""
MEASURE = """
picks = np.random.default_rng(0)
def rate():
    count, begin = 0, time.perf_counter()
    while time.perf_counter() - begin < SECONDS:
        read(picks.integers(0, rows, BATCH)); count += BATCH
    return count / (time.perf_counter() - begin)
""".replace("SECONDS", str(SECONDS)).replace("BATCH", str(ROWS_A_BATCH))
SERVE = """
print(json.dumps(startup), flush=True)
for line in sys.stdin:
    print(rate(), flush=True)
"""
READERS = {
    "ours": """
from pathlib import Path
from scaler.data import token_rows
begin = time.perf_counter()
data = token_rows.TokenRows(token_rows.read(Path(folder)), "train")
read = lambda picked: data.take(picked)
read(np.asarray([rows // 2]))
startup = time.perf_counter() - begin
""",
    "Megatron IndexedDataset": """
from megatron.core.datasets.indexed_dataset import IndexedDataset
begin = time.perf_counter()
data = IndexedDataset(folder + "/megatron")
read = lambda picked: [data.get(int(i)) for i in picked]
read([rows // 2])
startup = time.perf_counter() - begin
""",
    "MosaicML streaming": """
from streaming import LocalDataset
begin = time.perf_counter()
data = LocalDataset(folder + "/mds")
read = lambda picked: [data[int(i)]["ids"] for i in picked]
read([rows // 2])
startup = time.perf_counter() - begin
""",
    "Hugging Face Arrow": """
import datasets
begin = time.perf_counter()
data = datasets.load_from_disk(folder + "/arrow").with_format("numpy")
read = lambda picked: data[picked]["ids"]
read(np.asarray([rows // 2]))
startup = time.perf_counter() - begin
""",
}


def write_ours(folder: Path, ids: np.ndarray | None, rows: int, seq_len: int) -> None:
    """A folder of rows; sparse without ids."""
    entries = []
    for number, some in enumerate(np.array_split(np.arange(rows), FILES)):
        path = folder / f"train-{number}.rows"
        with path.open("wb") as file:
            if ids is None:
                file.truncate(len(some) * seq_len * 2)
            else:
                file.write(np.ascontiguousarray(ids[some[0] : some[-1] + 1]).data)
        entries.append({"name": path.stem, "rows": len(some), "tokens": len(some) * seq_len, **COUNTS})
    content = {"format": FORMAT, "kind": "rows", "seq_len": seq_len, "vocab_size": 50_000, "tokenizer_xxh3": ""}
    rest = {"unigram_xxh3": "", "sources": [], "splits": {"train": entries, "heldout": []}}
    write_json(folder / "manifest.json", {**content, **rest})


def write_megatron(folder: Path, ids: np.ndarray | None, rows: int, seq_len: int) -> None:
    """Megatron's .bin/.idx, a row a sequence; the .bin sparse without ids."""
    with (folder / "megatron.bin").open("wb") as file:
        if ids is None:
            file.truncate(rows * seq_len * 2)
        else:
            file.write(np.ascontiguousarray(ids).data)
    with (folder / "megatron.idx").open("wb") as file:
        header = b"MMIDIDX\x00\x00" + np.uint64(1).tobytes() + np.uint8(8).tobytes()
        file.write(header + np.uint64(rows).tobytes() + np.uint64(rows + 1).tobytes())
        np.full(rows, seq_len, np.int32).tofile(file)
        (np.arange(rows, dtype=np.int64) * seq_len * 2).tofile(file)
        np.arange(rows + 1, dtype=np.int64).tofile(file)


def write_streaming(folder: Path, ids: np.ndarray, seq_len: int) -> None:
    """MosaicML's MDS shards, 64 MiB each, its default."""
    from streaming import MDSWriter

    with MDSWriter(out=str(folder / "mds"), columns={"ids": f"ndarray:uint16:{seq_len}"}) as out:
        for row in ids:
            out.write({"ids": row})


def write_arrow(folder: Path, ids: np.ndarray, seq_len: int) -> None:
    """An Arrow data set as save_to_disk leaves it."""
    import datasets
    import pyarrow

    datasets.disable_progress_bars()
    flat = pyarrow.array(np.ascontiguousarray(ids).ravel())
    table = pyarrow.table({"ids": pyarrow.FixedSizeListArray.from_arrays(flat, seq_len)})
    datasets.Dataset(table).save_to_disk(folder / "arrow")


def start(name: str, folder: Path, rows: int, seq_len: int, environ: dict[str, str]) -> subprocess.Popen[str]:
    """A reader in a process of its own, which answers each line of input with a rate."""
    program = PRELUDE + READERS[name] + MEASURE + SERVE
    arguments = [str(folder), str(rows), str(seq_len), "0"]
    return subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environ,
    )


def ask(process: subprocess.Popen[str], question: str | None = None) -> float:
    """The next number that a reader says."""
    if question is not None:
        process.stdin.write(question)
        process.stdin.flush()
    line = process.stdout.readline()
    while line and not line.lstrip().startswith(tuple("0123456789")):
        line = process.stdout.readline()
    if not line:
        sys.exit(f"{process.args[2][-300:]}: ended")
    return json.loads(line)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM; without it that side is left out")
    parser.add_argument("--gigabytes", type=float, default=1.0)
    parser.add_argument("--seq_len", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    seq_len = arguments.seq_len
    rows = int(arguments.gigabytes * 1e9 / 2 / seq_len)
    root = Path(__file__).resolve().parent.parent
    paths = [str(root), str(arguments.megatron or ""), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "HF_HUB_OFFLINE": "1"}
    sides = [name for name in READERS if arguments.megatron or not name.startswith("Megatron")]
    with tempfile.TemporaryDirectory() as temporary:
        small, large = Path(temporary) / "small", Path(temporary) / "large"
        for folder in (small, large):
            folder.mkdir()
        ids = np.random.default_rng(0).integers(5, 50_000, (rows, seq_len), dtype=np.uint16)
        write_ours(small, ids, rows, seq_len)
        write_megatron(small, ids, rows, seq_len)
        write_streaming(small, ids, seq_len)
        write_arrow(small, ids, seq_len)
        write_ours(large, None, 100 * rows, seq_len)
        write_megatron(large, None, 100 * rows, seq_len)

        startup: dict[str, list[float]] = {name: [] for name in sides}
        startup_large: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name in sides:
                for folder, count, found in ((small, rows, startup), (large, 100 * rows, startup_large)):
                    if folder is small or name in ("ours", "Megatron IndexedDataset"):
                        process = start(name, folder, count, seq_len, environ)
                        found[name].append(ask(process))
                        process.stdin.close()
                        process.wait()
        readers = {name: start(name, small, rows, seq_len, environ) for name in sides}
        for process in readers.values():
            ask(process)
        rates: dict[str, list[float]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, process in readers.items():
                rates[name].append(ask(process, "again\n"))
        for process in readers.values():
            process.stdin.close()
            process.wait()
    print(f"{rows:,} rows of {seq_len} tokens, {arguments.gigabytes:g} GB, and {arguments.gigabytes * 100:g} GB sparse")
    base = statistics.median(rates["ours"])
    for name in sides:
        rate = statistics.median(rates[name])
        spread = f"{min(rates[name]) / 1e3:.0f}-{max(rates[name]) / 1e3:.0f} k"
        starts = f"start-up {statistics.median(startup[name]) * 1e3:8.1f} ms"
        if startup_large[name]:
            starts += f", a hundred times as much {statistics.median(startup_large[name]) * 1e3:8.1f} ms"
        print(f"{name:<24} {rate / 1e3:9.1f} k rows/s ({spread}), ours is {base / rate:7.1f} x; {starts}")


if __name__ == "__main__":
    main()

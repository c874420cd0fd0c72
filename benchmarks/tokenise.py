"""Tokens a second from text to shards, beside Megatron-LM's preprocess_data.py and Hugging Face's datasets.map.

The same text, tokenizer and number of processes; the sides run in turn, several times, each as a command of its own
that starts from nothing. Beside them stands the ceiling: the tokenizer's own encode_batch_fast over the same text in
memory, in as many processes, nothing read or written. `python benchmarks/tokenise.py --megatron path/to/Megatron-LM`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing import Pool
from pathlib import Path

import psutil
from tokenizers import Tokenizer

from data_prep.formats import texts
from data_prep.formats.token_shards import Shard
from data_prep.pipeline.workers import WorkerPool
from data_prep.sources import corpus
from data_prep.tokens.shards import DOCUMENTS_AT_ONCE
from scaler.config.data_sections import Corpus, Source
from scaler.config.recipe import load
from scaler.core.files import read_manifest

DATASETS = """
import sys, datasets, transformers
text, tokenizer, out, processes = sys.argv[1:]
encode = transformers.AutoTokenizer.from_pretrained(tokenizer)
rows = datasets.load_dataset("json", data_files=text, split="train", cache_dir=out + "/cache")
rows.map(lambda batch: {"input_ids": encode(batch["text"], add_special_tokens=False)["input_ids"]}, batched=True,
         num_proc=int(processes), remove_columns=["text"]).save_to_disk(out + "/arrow")
"""


def run(command: list[str], environ: dict[str, str]) -> tuple[float, float]:
    """Run a command; seconds, and the peak of the memory of all its processes together in bytes (unique set size)."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env=environ)
    peak = 0
    main = psutil.Process(process.pid)
    while process.poll() is None:
        size = 0
        try:
            for one in (main, *main.children(recursive=True)):
                try:
                    size += one.memory_full_info().uss
                except psutil.Error:
                    pass
        except psutil.Error:
            pass
        peak = max(peak, size)
        time.sleep(0.1)
    seconds = time.perf_counter() - start
    if process.returncode:
        sys.exit(f"{command}: {process.stderr.read()[-2000:] if process.stderr else ''}")
    return seconds, peak


def encode(job: tuple[str, list[str]]) -> float:
    """Seconds to tokenise some documents in memory."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    tokenizer = Tokenizer.from_file(job[0])
    start = time.perf_counter()
    for first in range(0, len(job[1]), DOCUMENTS_AT_ONCE):
        tokenizer.encode_batch_fast(job[1][first : first + DOCUMENTS_AT_ONCE], add_special_tokens=False)
    return time.perf_counter() - start


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", default="quickstart", help="whose prepared text and tokenizer serve (quickstart)")
    parser.add_argument("--megatron", type=Path, help="a checkout of Megatron-LM; without it that side is left out")
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--times", type=int, default=4, help="how often the text is taken, to make it longer (4)")
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    recipe, processes = load(arguments.recipe), arguments.processes
    folder = Path(recipe.data.folder)
    tokenizer = recipe.tokenizer_folder
    found = folder / "dedup"
    documents = [d.text for entry in texts.entries(texts.manifest(found), "train") for d in texts.read(found, entry)]
    documents *= arguments.times
    megabytes = sum(len(document.encode()) for document in documents) / 1e6
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        with (work / "text.jsonl").open("w", encoding="utf-8") as file:
            file.writelines(json.dumps({"text": document}) + "\n" for document in documents)
        part = max(1, round(megabytes / 2**20 * 1e6 / processes / 4))
        settings = Corpus((Source(str(work / "text.jsonl")),), part_mib=part, heldout_percent=2.0)
        corpus.make(settings, work / "corpus", WorkerPool())
        environ = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(Path(__file__).resolve().parent.parent)}
        share = [documents[number::processes] for number in range(processes)]

        def ours() -> tuple[float, float]:
            subprocess.run(["rm", "-rf", str(work / "shards")], check=True)
            arguments = [str(work / "corpus"), str(tokenizer), "--out", str(work / "shards")]
            return run([sys.executable, "-m", "data_prep.shards", *arguments, "--processes", str(processes)], environ)

        def megatron() -> tuple[float, float]:
            script = arguments.megatron / "tools" / "preprocess_data.py"
            options = {
                "--input": work / "text.jsonl",
                "--output-prefix": work / "megatron",
                "--tokenizer-type": "HuggingFaceTokenizer",
                "--tokenizer-model": tokenizer,
                "--workers": processes,
                "--log-interval": 1_000_000,
            }
            path = {**environ, "PYTHONPATH": f"{arguments.megatron}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"}
            return run([sys.executable, str(script), *(str(o) for pair in options.items() for o in pair)], path)

        def arrow() -> tuple[float, float]:
            subprocess.run(["rm", "-rf", str(work / "hf")], check=True)
            inputs = [str(work / "text.jsonl"), str(tokenizer), str(work / "hf"), str(processes)]
            return run([sys.executable, "-c", DATASETS, *inputs], environ)

        def ceiling() -> tuple[float, float]:
            with Pool(processes) as pool:
                return max(pool.map(encode, [(str(tokenizer / "tokenizer.json"), some) for some in share])), 0.0

        sides = {"ours": ours, "datasets.map": arrow, "encode_batch_fast alone": ceiling}
        if arguments.megatron:
            sides["Megatron preprocess_data"] = megatron
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, side in sides.items():
                measured[name].append(side())
        content = read_manifest(work / "shards", "shards")
        tokens = sum(
            len(Shard(work / "shards" / entry["name"]).ids) for split in content["splits"].values() for entry in split
        )
    print(f"{len(documents):,} documents, {megabytes:.0f} MB, {tokens:,} tokens, {processes} processes")
    base = statistics.median(seconds for seconds, _ in measured["ours"])
    for name, runs in measured.items():
        seconds, peak = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
        spread = f"{min(run[0] for run in runs):.1f}-{max(run[0] for run in runs):.1f} s"
        memory = f"{peak / 1e6:6,.0f} MB" if peak else ""
        print(
            f"{name:<26} {tokens / seconds / 1e6:6.2f} M tokens/s {megabytes / seconds:6.1f} MB/s ({spread}) "
            f"{memory:>10}  ours is {seconds / base:.2f} x"
        )


if __name__ == "__main__":
    main()

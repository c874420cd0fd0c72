"""Words a second of the word2vec stage, beside gensim on text, fastText, Mikolov's program and pWord2Vec.

All sides train on the same made-up text (Zipf's law over the whole vocabulary, each word at least once), with the same
settings and threads, and run in turn, several times, each as a command of its own. Rates are those of training alone:
reading the vocabulary before it, and saving and writing the vectors, are left out. Beside words a second stand words a
second of processor time, which other work on the machine hardly changes; they are what is compared.
`python benchmarks/word2vec.py --architecture cbow --word2vec PATH --fasttext PATH --pword2vec PATH`; programs that
are not named are left out.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import measurements
import numpy as np
import psutil

from data_prep.formats.token_shards import write_shard

DOCUMENT = 500  # words
OURS = """
import sys
from pathlib import Path
import numpy as np
from data_prep.vocabulary import word2vec_training
from scaler.config.data_sections import Word2Vec
folder, entries, width, architecture, threads = sys.argv[1:]
texts = word2vec_training.Documents(Path(folder), {"splits": {"train": [{"name": "shard"}]}, "strip_ids": []}, 0)
counts = texts.counts(int(entries))
# the model is built, training begins
word2vec_training._resume = lambda *arguments: print("Progress: 0%", flush=True) or 0
word2vec_training._save = lambda *arguments: None
settings = Word2Vec(int(width), architecture, min_count=1, epochs=1)
word2vec_training.train(texts, counts, settings, 1, int(threads), Path("none"))
print("Progress: 100%", flush=True)
"""
GENSIM = """
import sys
from gensim.models import Word2Vec
from gensim.models.word2vec import LineSentence
text, words, width, architecture, threads, how = sys.argv[1:]
model = Word2Vec(vector_size=int(width), sg=architecture == "skip-gram", min_count=1, workers=int(threads))
source = {"corpus_file": text} if how == "file" else {"corpus_iterable": LineSentence(text)}
model.build_vocab(**source)
print("Progress: 0%", flush=True)
model.train(**source, total_words=int(words), epochs=1)
print("Progress: 100%", flush=True)
"""


def write_corpus(folder: Path, entries: int, words: int) -> int:
    """text.txt, and the same as the shard `shard`; give the number of words."""
    chance = np.random.default_rng(0)
    share = 1 / np.arange(1, entries + 1)
    ids = np.concatenate([np.arange(entries), chance.choice(entries, size=words, p=share / share.sum())])
    chance.shuffle(ids)
    ids = ids[: len(ids) // DOCUMENT * DOCUMENT]
    lengths = np.full(len(ids) // DOCUMENT, DOCUMENT)
    write_shard(folder / "shard", [(ids, lengths)], np.int32, entries)
    with (folder / "text.txt").open("w") as file:
        for document in ids.reshape(-1, DOCUMENT).tolist():
            file.write(" ".join(f"w{number}" for number in document) + "\n")
    return len(ids)


def rate(command: list[str], words: int) -> tuple[float, float]:
    """Words a second, and a second of processor time, between the first and the last progress that a command tells.

    It is ended after the last.
    """
    environ = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environ)
    assert process.stdout is not None
    marks: list[tuple[float, float, float]] = []
    told_by = psutil.Process(process.pid)
    rest = b""
    while block := os.read(process.stdout.fileno(), 1 << 16):
        now, used = time.perf_counter(), sum(told_by.cpu_times()[:2])
        rest += block
        for found in re.finditer(rb"Progress:\s*([\d.]+)%", rest):
            marks.append((now, used, float(found[1])))
        rest = rest[-40:] if marks else rest
        if marks and marks[-1][2] >= 99.9:
            break
    process.kill()
    process.wait()
    if len(marks) < 2:
        sys.exit(f"{command}: {rest.decode()[-2000:]}")
    (begin, used, first), (end, used_at_last, last) = marks[0], marks[-1]
    done = (last - first) / 100 * words
    return done / (end - begin), done / (used_at_last - used)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architecture", choices=("cbow", "skip-gram"), default="cbow")
    parser.add_argument("--entries", type=int, default=256_000)
    parser.add_argument("--vector_size", type=int, default=768)
    parser.add_argument("--words", type=int, default=1_000_000, help="besides each entry once (1,000,000)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--word2vec", type=Path, help="Mikolov's program")
    parser.add_argument("--fasttext", type=Path)
    parser.add_argument("--pword2vec", type=Path, nargs="*", default=[], help="Intel's program, skip-gram only")
    arguments = parser.parse_args()
    kind, width, threads = arguments.architecture, str(arguments.vector_size), str(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        words = write_corpus(folder, arguments.entries, arguments.words)
        text, out = str(folder / "text.txt"), str(folder / "out")
        python = [sys.executable, "-c"]
        common = ["-train", text, "-output", out, "-size", width, "-threads", threads, "-iter", "1"]
        common += ["-min-count", "1", "-alpha", "0.025", "-binary", "1", "-negative", "5", "-sample", "1e-3"]
        sides = {
            "ours, token shards": [*python, OURS, str(folder), str(arguments.entries), width, kind, threads],
            "gensim, LineSentence": [*python, GENSIM, text, str(words), width, kind, threads, "sentences"],
            "gensim, corpus_file": [*python, GENSIM, text, str(words), width, kind, threads, "file"],
        }
        if arguments.word2vec:
            cbow = "1" if kind == "cbow" else "0"
            sides["Mikolov's word2vec"] = [str(arguments.word2vec), *common, "-cbow", cbow]
        if arguments.fasttext:
            options = {"-input": text, "-output": out, "-dim": width, "-thread": threads, "-epoch": "1", "-lr": "0.025"}
            options |= {"-minCount": "1", "-minn": "0", "-maxn": "0", "-ws": "5", "-neg": "5", "-t": "1e-3"}
            verb = "cbow" if kind == "cbow" else "skipgram"
            sides["fastText"] = [str(arguments.fasttext), verb, *(part for pair in options.items() for part in pair)]
        if kind == "skip-gram":
            sides |= {path.name: [str(path), *common, "-batch-size", "11"] for path in arguments.pword2vec}
        measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
        for _ in range(arguments.repeats):
            for name, command in sides.items():
                measured[name].append(rate(command, words))
                print(f"{name}: {measured[name][-1][0]:,.0f} words/s", file=sys.stderr, flush=True)
    what = f"{kind}, {arguments.entries:,} x {width}, {words:,} words, {threads} threads"
    print(what)
    base = statistics.median(rates[1] for rates in measured["ours, token shards"])
    for name, rates in measured.items():
        said = []
        for of_one in zip(*rates, strict=True):
            spread = f"{min(of_one) / 1e3:.1f}-{max(of_one) / 1e3:.1f}"
            said.append(f"{statistics.median(of_one) / 1e3:7.1f} k ({spread})")
        times = base / statistics.median(of_one)
        print(f"{name:<22} {said[0]:>26} words/s  {said[1]:>26} a processor second  ours is {times:.2f} x")
    ours, *others = (statistics.median(rates[0] for rates in found) for found in measured.values())
    lines = [
        measurements.Measurement(f"word2vec, {what}, ours / {name}", ours, theirs, "words/s", arguments.repeats)
        for name, theirs in zip([*measured][1:], others, strict=True)
    ]
    print(measurements.write("word2vec", lines))


if __name__ == "__main__":
    main()

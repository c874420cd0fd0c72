"""Precision and recall of near-repeats in many scripts and in code, beside datatrove's and text-dedup's MinHash.

In `--texts FOLDER` SCRIPT.txt has a sentence a line, and a folder LANGUAGE/ source files; LANGUAGES names datatrove's
code for each script. Of each, documents are made, and into them are planted: copies with one to three changed places
and other punctuation, which are to be found; and documents that share half with another, and short texts that differ
from another in one letter or operator, which are not. All programs read the same documents with their own default
settings. The peers run by `--peers PYTHON`, of an environment that has `datatrove`, `text-dedup` and, for scripts
without spaces, what datatrove splits them with.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import subprocess
import sys
import tempfile
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from data_prep.cleaning import dedup
from scaler.config.data_sections import Dedup
from scaler.core import provenance

LANGUAGES = {
    **{"Latin": "eng_Latn", "Cyrillic": "rus_Cyrl", "Greek": "ell_Grek", "Arabic": "arb_Arab", "Hebrew": "heb_Hebr"},
    **{"Devanagari": "hin_Deva", "Bengali": "ben_Beng", "Tamil": "tam_Taml", "Thai": "tha_Thai", "Khmer": "khm_Khmr"},
    **{"Burmese": "mya_Mymr", "Han": "zho_Hani", "Japanese": "jpn_Jpan", "Hangul": "kor_Hang"},
}
LINES = 8  # of a text's lines in a document
DOCUMENTS = 200
SHORT = 60  # short texts of each script, with as many that differ from one of them
OTHER_MARKS = str.maketrans(",;.。\uff0c।။“”", ';,!!、! ""')
OPERATORS = {"+": "-", "-": "+", "<": ">", ">": "<", "*": "/", "&": "|", "|": "&", "==": "!=", "[0]": "[1]"}
BLOCK = range(300, 3000)  # characters of a function or class

DATATROVE = """
import json, sys
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.dedup import MinhashDedupBuckets, MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter
folder, language = sys.argv[1:]
config = MinhashConfig()
def read():
    return JsonlReader(folder, glob_pattern="texts.jsonl", text_key="text", id_key="id")
for steps in (
    [read(), MinhashDedupSignature(f"{folder}/signatures", config=config, language=language)],
    [MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets", config=config)],
    [MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed", config=config)],
    [read(), MinhashDedupFilter(f"{folder}/removed"), JsonlWriter(f"{folder}/left", compression=None)],
):
    tasks = config.num_buckets if isinstance(steps[0], MinhashDedupBuckets) else 1
    LocalPipelineExecutor(steps, tasks=tasks, workers=1, skip_completed=False, logging_dir=f"{folder}/logs").run()
import glob
left = [json.loads(line)["id"] for name in glob.glob(f"{folder}/left/*") for line in open(name)]
json.dump(left, open(f"{folder}/kept.json", "w"))
"""
TEXT_DEDUP = """
import json, sys
from text_dedup.minhash import main
import datasets
folder = sys.argv[1]
given = {"path": "json", "data_files": f"{folder}/texts.jsonl", "split": "train", "cache_dir": f"{folder}/cache",
         "output": f"{folder}/out", "column": "text", "num_proc": 1, "batch_size": 1000}
main([word for name, value in given.items() for word in (f"--{name}", str(value))], standalone_mode=False)
json.dump(list(datasets.load_from_disk(f"{folder}/out")["id"]), open(f"{folder}/kept.json", "w"))
"""


class Text(NamedTuple):
    """A document: what it is (original, copy, half, short), and for original and copy the number of their pair."""

    text: str
    kind: str
    pair: int | None = None


def with_changes(text: str, others: list[str], chance: random.Random) -> str:
    """Return a copy of a text in which one to three places of six characters are taken from other texts."""
    for _ in range(chance.randint(1, 3)):
        place, other = chance.randrange(len(text) - 8), chance.choice(others)
        start = chance.randrange(len(other) - 8)
        text = text[:place] + other[start : start + 6] + text[place + 6 :]
    return text


def planted(documents: list[str], copies: list[str], short: list[str], change: dict[str, str]) -> list[Text]:
    """Return documents and what is planted beside them.

    Args:
        copies: of the first half of the documents, one by one.
        short: texts of some words each, all different.
        change: what may stand for what in a short text that becomes another.
    """
    chance = random.Random(1)
    originals, others = documents[: len(copies)], documents[len(copies) :]
    found = [Text(text, "original", pair) for pair, text in enumerate(originals)]
    found += [Text(text, "copy", pair) for pair, text in enumerate(copies)]
    found += [
        Text(before[: len(before) // 2] + text[len(text) // 2 :], "half")
        for before, text in zip(originals, others, strict=False)
    ]
    mine = dict.fromkeys(short)
    for text in short:
        places = [(text.find(old), old) for old in change if old in text]
        if places:
            place, old = chance.choice(places)
            mine[text[:place] + change[old] + text[place + len(old) :]] = None
    return [*found, *(Text(text, "short") for text in mine)]


def of_script(path: Path, chance: random.Random) -> list[Text]:
    """Return documents of a script: a line is a sentence."""
    lines = list(dict.fromkeys(path.read_text(encoding="utf-8").split("\n")))
    lines = [line.strip() for line in lines if len(line.strip()) > 15]
    documents = [" ".join(chance.sample(lines, LINES)) for _ in range(DOCUMENTS)]
    copies = [with_changes(text.translate(OTHER_MARKS), documents, chance) for text in documents[: DOCUMENTS // 2]]
    letters = Counter(letter for line in lines for letter in line if unicodedata.category(letter)[0] in "LM")
    common = [letter for letter, _ in letters.most_common(40)]
    # a vowel sign becomes another vowel sign, a letter another letter
    change = {}
    for kind in "LM":
        mine = [letter for letter in common if unicodedata.category(letter)[0] == kind]
        change |= dict(zip(mine, mine[1:] + mine[:1], strict=True)) if len(mine) > 1 else {}
    short = [line[: chance.randrange(6, 16)].rpartition(" ")[0] or line[:10] for line in lines]
    return planted(documents, copies, list(dict.fromkeys(short))[:SHORT], change)


def of_language(folder: Path, chance: random.Random) -> list[Text]:
    """Return documents of a programming language: blocks that begin at the left margin."""
    files = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(folder.iterdir())]
    blocks = [block.strip() for text in files for block in re.split(r"\n(?=[A-Za-z@/#])", text)]
    blocks = [block for block in dict.fromkeys(blocks) if len(block) in BLOCK]
    chance.shuffle(blocks)
    lines = [line.strip() for text in files for line in text.split("\n")]
    lines = [line for line in dict.fromkeys(lines) if 5 < len(line) < 50 and any(sign in line for sign in OPERATORS)]
    chance.shuffle(lines)
    documents = blocks[:DOCUMENTS]
    copies = []
    for text in documents[: len(documents) // 2]:
        name = chance.choice(re.findall(r"[A-Za-z_]{4,}", text))
        # another name, indentation and comment
        renamed = re.sub(rf"\b{name}\b", f"{name}_2", text).replace("    ", "  ")
        copies.append(with_changes(f"{renamed}\n# a copy", documents, chance))
    return planted(documents, copies, lines[:SHORT], OPERATORS)


def kept_by_us(texts: list[Text]) -> set[int]:
    """Return the numbers of the texts that are left: those that share no key with an earlier one."""
    seen: set[tuple[int, int]] = set()
    left = set()
    for number, text in enumerate(texts):
        keys = set(enumerate(dedup.keys_of(text.text, Dedup())))
        if seen.isdisjoint(keys):
            left.add(number)
        seen |= keys
    return left


def kept_by(program: str, texts: list[Text], python: str, *arguments: str) -> set[int]:
    """Return the numbers of the texts that a peer leaves."""
    with tempfile.TemporaryDirectory() as folder:
        with open(f"{folder}/texts.jsonl", "w", encoding="utf-8") as file:
            for number, text in enumerate(texts):
                file.write(json.dumps({"id": str(number), "text": text.text}, ensure_ascii=False) + "\n")
        done = subprocess.run([python, "-c", program, folder, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            sys.exit(f"the peer fails: {done.stderr[-2000:]}")
        return set(map(int, json.loads(Path(folder, "kept.json").read_text())))


def scores(texts: list[Text], kept: set[int]) -> dict[str, float]:
    """Return precision and recall, and the fractions of halves and of short texts that are dropped."""
    dropped = [text for number, text in enumerate(texts) if number not in kept]
    pairs = {text.pair for text in texts if text.kind == "copy"}
    found = {text.pair for text in dropped if text.pair is not None}
    of_kind = Counter(text.kind for text in texts)
    wrong = Counter(text.kind for text in dropped)
    return {
        "recall": len(found) / len(pairs),
        "precision": len(found) / max(1, len(dropped)),
        "halves dropped": wrong["half"] / max(1, of_kind["half"]),
        "short dropped": wrong["short"] / max(1, of_kind["short"]),
    }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--peers", help="python of an environment with datatrove and text-dedup")
    arguments = parser.parse_args()
    results = []
    for path in sorted(arguments.texts.iterdir()):
        chance = random.Random(0)
        texts = of_language(path, chance) if path.is_dir() else of_script(path, chance)
        programs = {"ours": kept_by_us(texts)}
        if arguments.peers:
            language = LANGUAGES.get(path.stem, "eng_Latn")
            programs["datatrove"] = kept_by(DATATROVE, texts, arguments.peers, language)
            programs["text-dedup"] = kept_by(TEXT_DEDUP, texts, arguments.peers)
        for program, kept in programs.items():
            result = scores(texts, kept)
            results.append({"texts": path.stem, "documents": len(texts), "program": program, **result})
            figures = ", ".join(f"{name} {value:.3f}" for name, value in result.items())
            print(f"{path.stem:<12} {len(texts):>4} {program:<11} {figures}", flush=True)
    out = Path(__file__).resolve().parent / "results" / "near_repeats.json"
    out.write_text(json.dumps({"commit": provenance.commit(), "results": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()

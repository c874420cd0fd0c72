"""Write a corpus folder: `python -m data_prep.corpus aws-docs --out data/mine/corpus`.

The source is "aws-docs", a file or folder of .txt, .jsonl, .jsonl.gz, .jsonl.zst or .parquet, or a Hugging Face
data set id. The folder holds SPLIT-NNNNN.jsonl.zst files, a document a line, and a manifest.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import xxhash
import zstandard

from data_prep import folders, sources
from scaler.errors import ScalerError, command
from scaler.recipe import Corpus
from scaler.token_shards import MANIFEST, MANIFEST_FORMAT, checksum, write_json

MIB = 1 << 20
BUCKETS = 1 << 32
ZSTD_LEVEL = 3


def split_of(text: str, heldout_percent: float) -> str:
    """The split of a document: "heldout" or "train", by its own hash, so that it never moves as others come and go."""
    bucket = xxhash.xxh3_64_intdigest(text.encode()) % BUCKETS
    return "heldout" if bucket < heldout_percent / 100 * BUCKETS else "train"


class PartWriter:
    """Writes one split as files of about `part_bytes` of text each."""

    def __init__(self, folder: Path, split: str, part_bytes: int) -> None:
        self.folder, self.split, self.part_bytes = folder, split, part_bytes
        self.entries: list[dict[str, Any]] = []
        self._file: io.TextIOWrapper | None = None

    def write(self, text: str) -> None:
        """Add a document."""
        if self._file is None:
            name = f"{self.split}-{len(self.entries):05d}.jsonl.zst"
            self.entries.append({"name": name, "documents": 0, "characters": 0, "bytes": 0})
            raw = (self.folder / name).open("wb")
            compressed = zstandard.ZstdCompressor(ZSTD_LEVEL).stream_writer(raw, closefd=True)
            self._file = io.TextIOWrapper(compressed, encoding="utf-8", write_through=True)
        self._file.write(json.dumps({"text": text}, ensure_ascii=False) + "\n")
        entry = self.entries[-1]
        entry["documents"] += 1
        entry["characters"] += len(text)
        entry["bytes"] += len(text.encode())
        if entry["bytes"] >= self.part_bytes:
            self.close()

    def close(self) -> None:
        """Finish the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self.entries[-1]["xxh3"] = checksum(self.folder / self.entries[-1]["name"])


def make(settings: Corpus, folder: Path) -> bool:
    """Write the corpus unless the folder already is what these settings make; say whether it was written.

    Raises: ScalerError when the source cannot be read or a split would be empty.
    """
    made_from = {"settings": dataclasses.asdict(settings), "source": sources.identity(settings)}
    if folders.is_current(folder, "corpus", made_from):
        return False
    with folders.staged(folder, "corpus") as partial:
        writers = {split: PartWriter(partial, split, settings.part_mib * MIB) for split in ("train", "heldout")}
        short = 0
        for text in sources.documents(settings):
            if len(text) < settings.min_characters or not text.strip():
                short += 1
                continue
            writers[split_of(text, settings.heldout_percent)].write(text)
        for writer in writers.values():
            writer.close()
            if not writer.entries:
                raise ScalerError(
                    f"{settings.source}: the {writer.split} split would be empty ({short:,} documents were shorter "
                    f"than corpus.min_characters={settings.min_characters}); bring more documents, or change "
                    f"corpus.heldout_percent={settings.heldout_percent}"
                )
        splits = {split: writer.entries for split, writer in writers.items()}
        every = [entry for entries in splits.values() for entry in entries]
        write_json(
            partial / MANIFEST,
            {
                "format": MANIFEST_FORMAT,
                "kind": "corpus",
                "made_from": made_from,
                "sources": [
                    {
                        "source": settings.source,
                        "documents": sum(entry["documents"] for entry in every),
                        "characters": sum(entry["characters"] for entry in every),
                        "dropped_short": short,
                    }
                ],
                "splits": splits,
            },
        )
    return True


@command
def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m data_prep.corpus", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source")
    parser.add_argument("--out", type=Path, default=Path("data/corpus"), help="folder to write (data/corpus)")
    for field in dataclasses.fields(Corpus):
        if field.name != "source":
            kind = float if field.name == "heldout_percent" else int if field.type == "int" else str
            parser.add_argument(f"--{field.name}", type=kind, default=field.default, help=f"({field.default})")
    arguments = vars(parser.parse_args())
    out = arguments.pop("out")
    written = make(Corpus(**arguments), out)
    manifest = folders.read_manifest(out, "corpus")
    for split, entries in manifest["splits"].items():
        documents, size = (sum(entry[what] for entry in entries) for what in ("documents", "bytes"))
        print(f"{split:<8} {documents:>12,} documents  {size / 1e6:>10,.1f} MB  {len(entries)} files")
    print(f"{out} {'written' if written else 'is up to date'}")


if __name__ == "__main__":
    main()

"""Describe prepared data: lengths, samples, neighbours."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from data_prep.cleaning.tally import EXAMPLES
from data_prep.formats import manifests, texts
from data_prep.formats.token_shards import Shard, length_counts
from data_prep.prepared.verify import stages
from data_prep.vocabulary import word2vec
from scaler.core.errors import ScalerError, dispensable
from scaler.core.files import MANIFEST
from scaler.data import order, token_rows, word_vectors

BARS = 40  # characters of the longest bar
SAMPLE_CHARACTERS = 300
FREQUENT = 20
WORDS, NEIGHBOURS = 8, 5


def histogram(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Count documents by length in bins that double: int64 (bins,), and the least length of each bin, (bins,)."""
    counts = length_counts(lengths)
    return counts, 1 << np.arange(len(counts))


def bars(counts: np.ndarray, least: np.ndarray) -> str:
    """Return the histogram as text, a line a bin."""
    width = len(f"{least[-1] * 2 - 1:,}")
    longest, block = max(1, int(counts.max())), _block()
    return "\n".join(
        f"  {low:>{width},} - {low * 2 - 1:>{width},} {block * round(BARS * count / longest):<{BARS}} {count:,}"
        for count, low in zip(counts.tolist(), least.tolist(), strict=True)
    )


def _block() -> str:
    """Return what bars are made of, which the console's encoding may lack."""
    try:
        "█".encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        return "#"
    return "█"


def draw(lengths: dict[str, np.ndarray], path: Path) -> None:
    """Draw the documents' lengths, source by source."""
    from scaler.core import charts  # a second for matplotlib

    longest = max(int(found.max()) for found in lengths.values())
    edges = np.logspace(0, np.log10(longest + 1), 60)
    figure, axes = charts.one_panel(dpi=150, layout="constrained")
    for name, found in lengths.items():
        axes.hist(found, bins=edges.tolist(), histtype="step", label=f"{name}: {len(found):,} documents")
    axes.set(xscale="log", xlabel="tokens in a document", ylabel="documents", title="Training documents by length")
    axes.legend()
    charts.save(figure, path)


def lengths_by_source(folder: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the tokens of each training document of the shards, source by source."""
    found: dict[str, list[np.ndarray]] = {}
    for entry in content["splits"]["train"]:
        found.setdefault(entry.get("source") or "adopted", []).append(
            Shard(folder / entry["name"]).documents(content["strip_ids"])[1]
        )
    return {name: np.concatenate(parts) for name, parts in found.items()}


def show_text(folder: Path) -> None:
    """Print the contents of a folder of text, and what the step that made it dropped."""
    content = texts.manifest(folder)
    print(f"\n{folder}")
    print(texts.describe(folder))
    for reason, count in content.get("counts", {}).items():
        print(f"  {reason:<40} {count:>12,} documents")
    if not (folder / EXAMPLES).exists():
        return
    seen = set()
    for example in json.loads((folder / EXAMPLES).read_text(encoding="utf-8")):
        if example["reason"] not in seen:
            seen.add(example["reason"])
            print(f"  such as, {example['reason']}:")
            for key in ("text", "became", "earlier"):
                if key in example:
                    print(f"    {key:<8} {_line(example[key])}")


def show_shards(folder: Path, text: Path | None) -> None:
    """Print documents, tokens, lengths, and bytes a token of each source."""
    content = manifests.read(folder, "shards")
    print(f"\n{folder}")
    sizes: Counter[str] = Counter()
    for entry in texts.entries(texts.manifest(text), "train") if text else []:
        sizes[entry["source"]] += entry["bytes"]
    lengths = lengths_by_source(folder, content)
    for name, found in lengths.items():
        size = sizes[name]
        per_token = f", {size / found.sum():.2f} bytes a token" if size and found.sum() else ""
        print(f"  {name}: {len(found):,} documents, {found.sum():,} tokens{per_token}")
    print("  training documents by tokens:")
    print(bars(*histogram(np.concatenate(list(lengths.values())))))
    picture = folder.parent / "lengths.png"
    with dispensable(f"{picture}: no picture"):
        draw(lengths, picture)
        print(f"  {picture}")


def show_vectors(folder: Path, tokenizer: Tokenizer) -> None:
    """Print how many entries have a trained vector, and the nearest vectors, by cosine, of some frequent ones."""
    content = manifests.read(folder, word_vectors.KIND)
    found = word_vectors.read(folder, content["tokenizer_xxh3"], content["vector_size"])
    print(f"\n{folder}")
    print(f"  {word2vec.describe(folder)}")
    frequent = np.argsort(-found.counts, kind="stable")[: len(found.counts) // 4 + 1]
    chosen = frequent[:: -(-len(frequent) // WORDS)]
    norms = np.sqrt(np.einsum("ij,ij->i", found.vectors, found.vectors))  # (entries,)
    cosines = found.vectors[chosen] @ found.vectors.T / norms / norms[chosen, None]  # (chosen, entries)
    cosines[np.arange(len(chosen)), chosen] = -1
    for entry, row in zip(chosen.tolist(), cosines, strict=True):
        nearest = "  ".join(f"{tokenizer.id_to_token(int(n))} {row[n]:.2f}" for n in np.argsort(-row)[:NEIGHBOURS])
        print(f"  nearest to {tokenizer.id_to_token(entry)}: {nearest}")


def show_rows(folder: Path, tokenizer: Tokenizer, unknown: int | None, samples: int) -> None:
    """Print the mix, how full the rows are, which tokens are frequent, and some rows."""
    content = manifests.read(folder, "rows")
    manifest = token_rows.read(folder)
    print(f"\n{folder}")
    for source in content["mix"]:
        print(
            f"  {source['source']:<20} {source['tokens']:>16,} tokens in one pass, {source['share']:7.2%}, "
            f"each used {source['epochs']:.4g} times"
        )
    for split in manifest.splits:
        print(
            f"  {split:<8} {manifest.count(split, 'rows'):>12,} rows of {manifest.seq_len}, "
            f"{manifest.real_fraction(split):.2%} of them tokens, the rest padding"
        )
    counts = manifest.unigram_counts()
    total = max(1, int(counts.sum()))
    by_count = np.argsort(-counts, kind="stable")
    used = by_count[counts[by_count] > 0]
    share = counts[counts > 0] / total
    print(f"  {len(used):,} of {len(counts):,} entries occur; entropy {-(share * np.log(share)).sum():.3f} nats")
    if unknown is not None:
        print(f"  unknown tokens: {counts[unknown] / total:.4%}")
    for title, ids in (("most frequent", used[:FREQUENT]), ("least frequent", used[-FREQUENT:])):
        print(f"  {title}: " + "  ".join(f"{tokenizer.id_to_token(int(i))} {counts[i]:,}" for i in ids))
    rows = token_rows.TokenRows(manifest, "train")
    chosen = order.permute(np.arange(min(samples, len(rows))), len(rows), order.key(0))
    for number, ids in zip(chosen.tolist(), rows.take(chosen) if len(chosen) else [], strict=True):
        print(f"  row {number:,}: {_line(tokenizer.decode(ids.tolist(), skip_special_tokens=False))}")


def _line(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SAMPLE_CHARACTERS else text[:SAMPLE_CHARACTERS] + " ..."


def show(folder: Path, samples: int) -> None:
    """Print what is in all stages' folders of a data folder, and `samples` rows. Raises ScalerError if it is none."""
    if (folder / MANIFEST).exists():
        raise ScalerError(f"{folder}: is one stage's folder; name the data folder above it")
    found: dict[str, list[Path]] = {}
    for path in stages(folder):
        found.setdefault(manifests.kind_of(path), []).append(path)
    text = [path for kind in texts.KINDS for path in found.get(kind, [])]
    for path in text:
        show_text(path)
    for path in found.get("shards", []):
        show_shards(path, text[-1] if text else None)
    if "tokenizer" in found and "rows" in found:
        tokenizer = Tokenizer.from_file(str(found["tokenizer"][0] / "tokenizer.json"))
        for path in found.get(word_vectors.KIND, []):
            show_vectors(path, tokenizer)
        names = json.loads((found["tokenizer"][0] / "tokenizer_config.json").read_text(encoding="utf-8"))
        unknown = tokenizer.token_to_id(names["unk_token"]) if names.get("unk_token") else None
        for path in found["rows"]:
            show_rows(path, tokenizer, unknown, samples)

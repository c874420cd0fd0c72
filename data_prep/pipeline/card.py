"""Write the README of a prepared folder: its sources, settings, contents, and the documents that were dropped."""

from __future__ import annotations

from typing import Any

import yaml

from data_prep.pipeline import accounts

WHAT = {
    "corpus": "The text of the sources, as it is.",
    "clean": "The text after cleaning.",
    "dedup": "The text without repeats.",
    "tokenizer": "A Transformers tokenizer, trained on the text.",
    "shards": "The text as token ids in Megatron-LM's .bin/.idx format, a sequence a document, no special tokens.",
    "word2vec": "A vector for each entry of the tokenizer, row i of entry i.",
    "rows": "The text as packed rows of token ids with their special tokens, which training reads.",
}


def render(kind: str, content: dict[str, Any]) -> str:
    """Return the README of a folder of one kind, as Markdown, from its manifest."""
    parts = [f"# {kind}", WHAT[kind], *_sources(content), *_splits(content), *_mix(content), *_coverage(content)]
    for step in content.get("history", []):
        parts.append(f"## {step['stage']}")
        parts.append(f"```yaml\n{yaml.safe_dump(step['settings'], sort_keys=False, allow_unicode=True).rstrip()}\n```")
        if step.get("counts"):
            rows = [[f"`{reason}`", f"{count:,}"] for reason, count in step["counts"].items()]
            parts.append(_table(["what happened", "documents"], rows))
    parts.append("Checksums and all figures: `manifest.json`. Check them with `scaler verify .`")
    return "\n\n".join(parts) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _sources(content: dict[str, Any]) -> list[str]:
    if not content.get("sources"):
        return []
    rows = [
        [
            str(source.get("name", "")),
            f"`{source['source']}`",
            *(f"{source[what]:,}" if what in source else "" for what in ("documents", "characters")),
        ]
        for source in content["sources"]
    ]
    table = _table(["name", "source", "documents read", "characters read"], rows)
    read = [f"- {line}" for line in accounts.of_sources(content)]
    return ["## Sources", table, *(["\n".join(read)] if read else [])]


def _splits(content: dict[str, Any]) -> list[str]:
    if "splits" not in content:
        return []
    whats = [
        what
        for what in ("documents", "characters", "tokens", "rows")
        if all(entry.get(what) is not None for entries in content["splits"].values() for entry in entries)
    ]
    rows = [
        [split, *(f"{sum(entry[what] for entry in entries):,}" for what in whats)]
        for split, entries in content["splits"].items()
    ]
    return ["## What is here", _table(["split", *whats], rows)]


def _mix(content: dict[str, Any]) -> list[str]:
    if not content.get("mix"):
        return []
    rows = [
        [
            source["source"],
            f"{source['available_tokens']:,}",
            f"{source['tokens']:,}",
            f"{source['share']:.2%}",
            f"{source['epochs']:.4g}",
        ]
        for source in content["mix"]
    ]
    head = ["source", "tokens there", "tokens in one pass", "share", "times each is used"]
    return [
        "## The mix",
        _table(head, rows),
        "Only training text is mixed: each held-out or test document is there once.",
    ]


def _coverage(content: dict[str, Any]) -> list[str]:
    if "coverage" not in content:
        return []
    share = content["coverage"]
    rows = [["of the entries", f"{share['entries']:.2%}"], ["of the training tokens", f"{share['tokens']:.2%}"]]
    return ["## Trained or taken over, not drawn", _table(["share", ""], rows)]

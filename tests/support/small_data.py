"""Small texts on disk, a corpus of them, and the tests' recipe over them."""

import json
from pathlib import Path

from data_prep.pipeline.workers import WorkerPool
from data_prep.sources import corpus
from scaler.config.data_sections import Corpus, Source

TINY_RECIPE = """
corpus: {sources: [{source: SOURCE}], heldout_percent: 12, test_percent: 5, part_mib: 1}
dedup: {exact: false, near: false}
tokenizer: {vocab_size: 400}
data: {folder: FOLDER, seq_len: 32}
model: {model_type: roberta, num_hidden_layers: 2, hidden_size: 32, num_attention_heads: 4, intermediate_size: 64,
        max_position_embeddings: 40, type_vocab_size: 1, hidden_dropout_prob: 0.0, attention_probs_dropout_prob: 0.0}
objective: {mask_probability: 0.25}
initialisation: {unigram_bias: true, neighbour_heads: [-1, 1]}
optimizer: {learning_rate: 1.0e-2}
schedule: {warmup_share: 0.1}
training: {steps: 12, rows: 12, max_micro_rows: 4, log_every: 4, evaluate_every: 6}
"""


def write_documents(path: Path, documents: list[str]) -> Path:
    """Write documents as paragraphs of text, or to a .jsonl file as JSON with ids."""
    lines = [json.dumps({"id": f"{path.stem}/{n}", "text": text}) for n, text in enumerate(documents)]
    path.write_text("\n".join(lines) if path.suffix == ".jsonl" else "\n\n".join(documents), encoding="utf-8")
    return path


def write_recipe(folder: Path, *sources: object, file: str = "tiny.yaml", **replaced: str) -> Path:
    """Write the tiny recipe over sources, a path or `PATH, KEY: VALUE` each, whose data will be in `folder`/data.

    `replaced`: sections in place of its own, or more of them.
    """
    listed = "}, {source: ".join(map(str, sources))
    text = TINY_RECIPE.replace("SOURCE", listed).replace("FOLDER", str(folder / "data"))
    kept = [line for line in text.splitlines() if line.partition(":")[0] not in replaced]
    lines = [*kept, *(f"{section}: {content}" for section, content in replaced.items())]
    (folder / file).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / file


def make_corpus(folder: Path, *sources: Path | Source, **settings: object) -> Path:
    """Make `folder`/corpus of files."""
    chosen = tuple(some if isinstance(some, Source) else Source(str(some)) for some in sources)
    corpus.make(Corpus(sources=chosen, **settings), folder / "corpus", WorkerPool())
    return folder / "corpus"

"""The recipe that mixes five sources of the hub, from its real loaders to rows, on local stand-ins of these sources."""

import json

import datasets
import pytest

from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.prepare import prepare
from data_prep.sources import aws_docs, readers
from scaler.config.recipe import load
from scaler.core.files import read_manifest

SHARDS = 3


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose data sets are local folders, with the configurations, splits and columns that the recipe names."""
    pages = [page for page in aws_docs.documents(0, 40) if len(page) > 300][:900]
    recipe = load("distilbert_mix")
    for number, source in enumerate(recipe.corpus.sources):
        folder = tmp_path / "hub" / source.source
        folder.mkdir(parents=True)
        name = source.hub_config or "default"
        data_files = {"split": source.hub_split, "path": f"{name}/*.jsonl"}
        card = json.dumps({"configs": [{"config_name": name, "data_files": [data_files]}]})
        (folder / "README.md").write_text(f"---\n{card}\n---\n")
        (folder / name).mkdir()
        for shard in range(SHARDS):
            mine = pages[number * SHARDS + shard :: SHARDS * len(recipe.corpus.sources)]
            lines = [json.dumps({source.text_field: page, "id": place}) for place, page in enumerate(mine)]
            (folder / name / f"{shard}.jsonl").write_text("\n".join(lines))
    real = datasets.load_dataset

    def load_dataset(path, *arguments, **options):
        assert options.pop("revision") == "newest"
        return real(str(tmp_path / "hub" / path), *arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(readers, "commit_of", lambda name, revision: revision or "newest")
    return pages


def test_five_sources_become_rows_in_the_recipes_proportions(hub, tmp_path):
    settings = [f"data.folder={tmp_path}/data", "tokenizer.vocab_size=1000", "data.seq_len=64"]
    recipe = load("distilbert_mix", [*settings, "corpus.heldout_percent=5", "corpus.test_percent=5"])
    prepare(recipe, WorkerPool())
    corpus = read_manifest(tmp_path / "data" / "corpus", "corpus")
    assert sum(source["documents"] for source in corpus["sources"]) == len(hub)
    mix = {source["source"]: source for source in read_manifest(recipe.rows_folder, "rows")["mix"]}
    assert list(mix) == ["c4", "msmarco", "news", "wikipedia", "s2orc"]
    total = sum(source["tokens"] for source in mix.values())
    for source in recipe.corpus.sources:
        assert abs(mix[source.name]["tokens"] - source.weight * total) <= 1
        assert mix[source.name]["tokens"] <= mix[source.name]["available_tokens"]
    assert max(source["epochs"] for source in mix.values()) > 0.999  # the scarcest is used up

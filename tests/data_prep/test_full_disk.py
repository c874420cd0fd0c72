"""A disk that fills in any stage: one line that says so, nothing trusted, and the next run makes the same data."""

import subprocess
import sys

import pytest
from conftest import make_documents
from small_data import write_documents, write_recipe

STAGES = ("corpus", "clean", "dedup", "tokenizer", "shards", "word2vec", "rows-32")
FULL = "the disk is full; nothing half-written counts; free some space and run again"


@pytest.fixture(scope="module")
def tried(worker_figures, tmp_path_factory):
    """What the worker has found, stage by stage and with more and more room."""
    enter = ["unshare", "-rm", "sh", "-c", 'mount -t tmpfs none /mnt && exec "$@"', "sh"]
    try:
        able = subprocess.run([*enter, "true"], capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        able = False
    if not able:
        pytest.skip("needs the right to mount")
    folder = tmp_path_factory.mktemp("full")
    documents = make_documents(600) + make_documents(300, 1) + ["<p>caf\u00e9 &amp; bar</p> and what there is"] * 9
    write_documents(folder / "text.txt", documents)
    more = {"cleaning": "{markup: true, min_characters: 9}", "dedup": "{}"}
    more["word2vec"] = "{vector_size: 16, epochs: 1, min_count: 2}"
    recipe = write_recipe(folder, folder / "text.txt", **more)
    return worker_figures("full_disk_worker", recipe, launcher=(*enter, sys.executable))


@pytest.mark.parametrize("stage", STAGES)
def test_a_disk_that_fills_in_a_stage(tried, stage):
    mine = [one for one in tried if one["stage"] == stage]
    assert len(mine) == 5 and f"DISK/data/{stage}: {FULL}" in {one["said"] for one in mine}
    for one in mine:
        said = one["said"]
        filled = next((name for name in STAGES if said == f"DISK/data/{name}: {FULL}"), None)
        assert (filled is None) == (said == ""), said
        assert one["stages"] == sorted(STAGES[: STAGES.index(filled)] if filled else STAGES)
        assert one["same"], one

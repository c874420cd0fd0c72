"""What the preparation of all data says on the way."""

import pytest
from conftest import make_documents

from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared import prepare
from scaler.config.recipe import load
from scaler.core.files import read_manifest, write_json


@pytest.fixture
def shards(tiny_recipe, tmp_path):
    """Write the manifest of shards whose training documents have these lengths."""
    content = read_manifest(tiny_recipe.tokenizer_folder.parent / "shards", "shards")

    def write(**changes):
        content["splits"]["train"] = [{**content["splits"]["train"][0], **changes}]
        write_json(tmp_path / "manifest.json", content)
        return tmp_path

    return write


@pytest.mark.parametrize(
    ("counts", "seq_len", "fraction", "short", "hint"),
    [
        ([0, 0, 0, 0, 0, 95, 5], 512, "95 %", 64, True),  # 32 to 63 tokens, and 64 to 127
        ([0, 0, 0, 0, 0, 89, 11], 512, "89 %", 64, False),
        ([0, 0, 0, 0, 0, 100], 128, "0.0 %", 16, False),
        ([0, 0, 0, 100], 128, "100 %", 16, True),
        ([100], 8, "0.0 %", 1, False),
    ],
)
def test_lengths_are_said_beside_the_length_of_a_row_with_a_hint_where_nearly_all_are_short(
    shards, counts, seq_len, fraction, short, hint
):
    folder = shards(documents=sum(counts), tokens=4000, lengths=counts)
    first, *more = prepare.lengths_beside_rows(folder, seq_len)
    assert first == (
        f"{folder}: a training document has 40 tokens on average, {fraction} have fewer than {short}; a row has "
        f"data.seq_len={seq_len}"
    )
    assert ["set text_unit: file" in line for line in more] == [True] * hint


def test_shards_of_before_have_no_lengths_and_nothing_is_said(shards):
    folder = shards()
    content = read_manifest(folder, "shards")
    del content["splits"]["train"][0]["lengths"]
    write_json(folder / "manifest.json", content)
    assert prepare.lengths_beside_rows(folder, 512) == []


def test_a_guide_of_many_pages_has_a_document_a_page_and_its_lengths_are_said(tiny_recipe_file, tmp_path, capsys):
    """The first recipe's authors trained on folders of Markdown, which were refused."""
    (tmp_path / "guide").mkdir()
    for number in range(320):
        text = "\n\n".join(make_documents(30, number))
        (tmp_path / "guide" / f"{number}.md").write_text(f"# Page {number}\n\n{text}\n")
    settings = [f"data.folder={tmp_path / 'data'}", f"corpus.sources=[{tmp_path / 'guide'}]"]
    for how in ("written", "up to date"):
        prepare.prepare(load(str(tiny_recipe_file), settings), WorkerPool())
        said = capsys.readouterr().out
        assert how in said
        assert "guide: 320 documents of " in said and "; a file is a document; 320 files of " in said
        assert " tokens on average, 0.0 % have fewer than 4; a row has data.seq_len=32" in said
        assert "text_unit" not in said
    settings[1] = f"corpus.sources=[{{source: {tmp_path / 'guide'}, text_unit: paragraph}}]"
    longer = ["data.seq_len=1024", "model.max_position_embeddings=1040"]
    prepare.prepare(load(str(tiny_recipe_file), [*settings, *longer]), WorkerPool())
    said = capsys.readouterr().out
    assert "guide: 9,920 documents of " in said and "; a paragraph is a document; 320 files of " in said
    assert "nearly all documents are far shorter than a row" in said

"""Rows hold every token of the shards once, each document between its special tokens, and what the manifest says."""

import shutil
import types
from itertools import chain, pairwise

import numpy as np
import pytest
from conftest import make_documents
from refusals import refused
from tokenizers import Tokenizer

from data_prep import rows
from data_prep.formats import texts
from data_prep.formats.token_shards import write_shard
from data_prep.pipeline import folders
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared.prepare import prepare
from data_prep.tokens import rows as tokens_rows
from scaler.config.data_sections import Corpus, Source
from scaler.config.recipe import load
from scaler.core.files import checksum, read_manifest
from scaler.data import token_rows
from scaler.data.prepared import open_prepared
from scaler.data.tokenizer import read_vocabulary

BEGIN, PAD, END, UNKNOWN = 0, 1, 2, 3
FIRST = 5  # ordinary id
NOT_MIXED = Corpus(sources=(Source("nowhere"),))
LENGTHS = {
    "train-a": [1, 2, 40, 7, 300, 1, 64, 30, 6, 29],
    "train-b": np.random.default_rng(0).integers(1, 90, 60).tolist(),
    "train-c": [17],
    "heldout-a": np.random.default_rng(1).integers(1, 90, 30).tolist(),
    "test-a": np.random.default_rng(2).integers(1, 90, 25).tolist(),
}


@pytest.fixture
def shards(tmp_path, tiny_recipe):
    """Write tmp_path/shards, in which no ordinary id occurs twice; give the documents of each split."""

    def write(lengths=LENGTHS, vocab_size=60_000, before=(), after=(), within=types.MappingProxyType({})):
        documents, entries = ({name.partition("-")[0]: [] for name in lengths} for _ in range(2))
        (tmp_path / "shards").mkdir()
        next_id = FIRST
        for name, sizes in lengths.items():
            ends = next_id + np.cumsum([0, *sizes])
            mine = [list(range(begin, end)) for begin, end in pairwise(ends.tolist())]
            next_id = int(ends[-1])
            around = [[*before, *document[:1], *within.get(name, ()), *document[1:], *after] for document in mine]
            batch = np.array(list(chain(*around)), dtype=np.int64), np.array(list(map(len, around)))
            found = write_shard(tmp_path / "shards" / name, [batch], token_rows.dtype_for(vocab_size), vocab_size)
            split = name.partition("-")[0]
            entries[split].append({**found, "characters": 5 * sum(sizes), "source": "some"})
            documents[split] += mine
        folders.write_manifest(
            tmp_path / "shards",
            "shards",
            {},
            vocab_size=vocab_size,
            tokenizer_xxh3=checksum(tiny_recipe.tokenizer_folder / "tokenizer.json"),
            strip_ids=sorted({*before, *after}),
            sources=[],
            history=[],
            splits=entries,
        )
        return documents

    return write


@pytest.fixture
def make(tmp_path, tiny_recipe):
    """Make tmp_path/rows from tmp_path/shards; say whether they were written."""

    def make(seq_len=32, min_tokens=1, tokenizer=tiny_recipe.tokenizer_folder):
        least = min_tokens if isinstance(min_tokens, dict) else dict.fromkeys(texts.SPLITS, min_tokens)
        return tokens_rows.make(
            tmp_path / "shards", tokenizer, tmp_path / "rows", seq_len, least, NOT_MIXED, WorkerPool()
        )

    return make


def read(folder, split):
    return np.concatenate(token_rows.TokenRows(token_rows.read(folder), split).files)


def chunks_of(table):
    """The chunks of all rows; fails where a row is anything else than chunks, each begun and ended, and padding."""
    chunks = []
    for row in table.tolist():
        while row[-1] == PAD:
            row.pop()
        begins = [place for place, token in enumerate(row) if token == BEGIN]
        assert begins[0] == 0
        for begin, end in pairwise([*begins, len(row)]):
            assert row[end - 1] == END
            chunks.append(row[begin + 1 : end - 1])
    assert not {BEGIN, PAD, END} & set(chain(*chunks))
    return chunks


def ordinary(table):
    return ~np.isin(table, [BEGIN, PAD, END])


@pytest.mark.parametrize("seq_len", [8, 32, 500])
@pytest.mark.parametrize("block_tokens", [40, 1 << 26])
@pytest.mark.parametrize(("file_tokens", "files"), [(1, 3), (1 << 22, 1)])
def test_every_token_is_there_once_and_no_chunk_crosses_documents(
    shards, make, tmp_path, monkeypatch, seq_len, block_tokens, file_tokens, files
):
    monkeypatch.setattr(tokens_rows, "BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr(tokens_rows, "FILE_TOKENS", file_tokens)
    documents = shards()
    assert make(seq_len)
    assert len(list((tmp_path / "rows").glob("train-*.rows"))) == files
    for split in texts.SPLITS:
        document_of = {token: number for number, document in enumerate(documents[split]) for token in document}
        chunks = chunks_of(read(tmp_path / "rows", split))
        assert sorted(chain(*chunks)) == sorted(document_of)
        for chunk in chunks:
            assert chunk == list(range(chunk[0], chunk[-1] + 1))
            assert document_of[chunk[0]] == document_of[chunk[-1]]


@pytest.mark.parametrize(("vocab_size", "dtype"), [(60_000, "<u2"), (70_000, "<i4")])
def test_ids_are_as_wide_as_the_vocabulary_needs(shards, make, tmp_path, vocab_size, dtype):
    documents = shards({"train-a": [9], "heldout-a": [vocab_size - FIRST - 9]}, vocab_size)
    make(500)
    assert read(tmp_path / "rows", "heldout").dtype == dtype
    assert max(chain(*chunks_of(read(tmp_path / "rows", "heldout")))) == documents["heldout"][-1][-1] == vocab_size - 1


def test_documents_that_fit_are_whole_and_decode_to_their_text(tiny_recipe, tmp_path):
    data = tiny_recipe.rows_folder.parent
    least = dict.fromkeys(texts.SPLITS, 1)
    tokens_rows.make(data / "shards", data / "tokenizer", tmp_path / "rows", 512, least, NOT_MIXED, WorkerPool())
    decode = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json")).decode
    corpus = read_manifest(data / "corpus", "corpus")
    for split in texts.SPLITS:
        written = [doc.text for entry in texts.entries(corpus, split) for doc in texts.read(data / "corpus", entry)]
        assert sorted(decode(chunk) for chunk in chunks_of(read(tmp_path / "rows", split))) == sorted(written)


@pytest.mark.parametrize(("before", "after"), [((BEGIN,), (END,)), ((), (END,)), ((BEGIN,), ()), ((), (END, END))])
def test_what_others_put_around_documents_is_no_part_of_the_rows(shards, make, tmp_path, before, after):
    documents = shards({**LENGTHS, "train-d": [0, 3, 0]}, before=before, after=after)
    make(500)
    for split in texts.SPLITS:
        chunks = chunks_of(read(tmp_path / "rows", split))
        assert all(chunks)
        assert sorted(chain(*chunks)) == sorted(chain(*documents[split]))


@pytest.mark.parametrize("min_tokens", [1, 10, 26, 30])
def test_rows_that_could_not_be_masked_are_left_out_and_counted(shards, make, tmp_path, min_tokens):
    documents = shards()
    make(32, min_tokens)
    manifest = token_rows.read(tmp_path / "rows")
    for split in texts.SPLITS:
        table = read(tmp_path / "rows", split)
        assert manifest.least_maskable(split) == ordinary(table).sum(axis=1).min() >= min_tokens
        lost = sum(map(len, documents[split])) - int(ordinary(table).sum())
        dropped = manifest.count(split, "dropped_rows")
        assert dropped <= lost <= dropped * (min_tokens - 1)
        assert dropped or min_tokens < 26


def test_the_manifest_tells_the_truth(shards, make, tmp_path):
    documents = shards()
    make(32, 10)
    manifest = token_rows.read(tmp_path / "rows")
    token_rows.verify(manifest)
    assert (manifest.seq_len, manifest.vocab_size) == (32, 60_000)
    for split in texts.SPLITS:
        table = read(tmp_path / "rows", split)
        assert manifest.count(split, "rows") == len(table)
        assert manifest.count(split, "tokens") == (table != PAD).sum()
        assert manifest.count(split, "documents") == len(documents[split])
        assert manifest.real_fraction(split) == pytest.approx((table != PAD).mean())
    train = read(tmp_path / "rows", "train")
    assert np.array_equal(manifest.unigram_counts(), np.bincount(train[ordinary(train)], minlength=60_000))


def test_entries_tell_the_tokens_and_characters_of_the_text_that_rows_were_made_from(shards, make, tmp_path):
    documents = shards()
    make(32, 26)  # with rows left out, whose text counts all the same
    manifest = token_rows.read(tmp_path / "rows")
    assert manifest.count("train", "dropped_rows")
    for split in texts.SPLITS:
        tokens = sum(map(len, documents[split]))
        assert manifest.total_of_text(split, "text_tokens") == tokens
        assert manifest.total_of_text(split, "characters") == 5 * tokens
        rows_of_split = token_rows.TokenRows(manifest, split)
        assert (rows_of_split.text_tokens, rows_of_split.characters) == (tokens, 5 * tokens)


def test_tokens_and_characters_are_those_of_the_text(tiny_recipe):
    data = tiny_recipe.rows_folder.parent
    manifest, of_text = token_rows.read(tiny_recipe.rows_folder), texts.manifest(data / "corpus")
    encode = Tokenizer.from_file(str(data / "tokenizer" / "tokenizer.json")).encode
    for split in texts.SPLITS:
        written = [doc.text for e in texts.entries(of_text, split) for doc in texts.read(data / "corpus", e)]
        assert manifest.total_of_text(split, "characters") == sum(map(len, written)) > 0
        assert manifest.total_of_text(split, "text_tokens") == sum(
            len(encode(text, add_special_tokens=False).ids) for text in written
        )


def test_a_test_split_is_masked_as_the_held_out_one_and_one_that_is_not_there_is_none(shards, make, tmp_path):
    shards({"train-a": [30] * 9, "heldout-a": [300]})
    make()
    manifest = token_rows.read(tmp_path / "rows")
    assert list(manifest.splits) == ["train", "heldout"]
    assert len(token_rows.TokenRows(manifest, "test")) == 0


def test_unigram_counts_are_those_of_the_training_rows_of_text(tiny_recipe):
    manifest = token_rows.read(tiny_recipe.rows_folder)
    counts = np.bincount(read(tiny_recipe.rows_folder, "train").ravel(), minlength=manifest.vocab_size)
    counts[list(read_vocabulary(tiny_recipe.tokenizer_folder).special_ids)] = 0
    assert counts.max() > 1000
    assert np.array_equal(manifest.unigram_counts(), counts)


def test_rows_that_are_there_are_left_alone(shards, make, tmp_path):
    shards()
    assert make(min_tokens=10)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()}
    assert not make(min_tokens=10)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "rows").iterdir()} == before


def test_held_out_rows_do_not_hang_on_how_many_tokens_training_masks(shards, make, tmp_path):
    shards()
    make(min_tokens={"train": 1, "heldout": 10, "test": 10})
    before = read(tmp_path / "rows", "heldout"), read(tmp_path / "rows", "train")
    assert make(min_tokens={"train": 30, "heldout": 10, "test": 10})
    assert np.array_equal(read(tmp_path / "rows", "heldout"), before[0])
    assert len(read(tmp_path / "rows", "train")) != len(before[1])


def test_changed_shards_are_packed_anew(shards, make, tmp_path):
    shards()
    make()
    shutil.rmtree(tmp_path / "shards")
    documents = shards({"train-a": [30] * 9, "heldout-a": [30]})
    assert make()
    assert sorted(chain(*chunks_of(read(tmp_path / "rows", "train")))) == list(chain(*documents["train"]))


def test_the_shards_are_refused_with_a_tokenizer_that_is_not_theirs(shards, make, tiny_recipe, tmp_path):
    shards()
    shutil.copytree(tiny_recipe.tokenizer_folder, tmp_path / "tokenizer")
    with (tmp_path / "tokenizer" / "tokenizer.json").open("a") as file:
        file.write(" ")
    with refused(r"shards: written with another tokenizer than .*tokenizer; make the shards"):
        make(tokenizer=tmp_path / "tokenizer")
    with refused(r"nowhere: no tokenizer here"):
        make(tokenizer=tmp_path / "nowhere")
    assert not list(tmp_path.glob("rows*"))


@pytest.mark.parametrize(
    ("lengths", "seq_len", "min_tokens", "said"),
    [
        ({"heldout-a": [3, 4]}, 64, 10, "the heldout split gives 7 tokens, not enough for one row"),
        ({"heldout-a": [30], "test-a": [3, 4]}, 64, 10,
         r"the test split gives 7 tokens, .* or shorter rows, or set corpus\.test_percent=0 to have no test split"),
        ({"heldout-a": [300]}, 2048, 290, "the train split gives 270 tokens, not enough for one"),
        ({"heldout-a": [300]}, 32769, 1, r"data\.seq_len=32769, but a row has at most 32,768"),
    ],
)  # fmt: skip
def test_rows_that_are_too_long_for_the_text_are_refused(shards, make, tmp_path, lengths, seq_len, min_tokens, said):
    shards({"train-a": [30] * 9, **lengths})
    with refused(said):
        make(seq_len, min_tokens)
    assert not (tmp_path / "rows").exists()


@pytest.fixture
def own_data(tiny_recipe_file, tmp_path):
    """A copy of the prepared data; a function from overrides to the recipe over it."""
    shutil.copytree(load(str(tiny_recipe_file)).rows_folder.parent, tmp_path / "data")
    return lambda *overrides: load(str(tiny_recipe_file), [f"data.folder={tmp_path / 'data'}", *overrides])


def test_more_masking_is_refused_in_training_until_data_preparation_has_packed_anew(own_data, tmp_path, capsys):
    recipe = own_data("objective.mask_probability=0.6")
    shards_before = checksum(tmp_path / "data" / "shards" / "manifest.json")
    assert token_rows.read(recipe.rows_folder).least_maskable("train") < 19
    with refused(r"mask_probability=0\.6 masks 19; run `scaler prepare`"):
        open_prepared(recipe).rows("train", recipe, 2)
    prepare(recipe, WorkerPool())
    assert "rows-32: written in" in capsys.readouterr().out
    assert token_rows.read(recipe.rows_folder).least_maskable("train") >= 19
    assert open_prepared(recipe).rows("train", recipe, 2).at(0, 4).labels.shape == (4, 19)
    assert checksum(tmp_path / "data" / "shards" / "manifest.json") == shards_before


def test_less_masking_trains_on_the_rows_that_are_there(own_data):
    recipe = own_data("objective.mask_probability=0.15")
    assert open_prepared(recipe).rows("train", recipe, 2).at(0, 4).labels.shape == (4, 5)


def test_another_row_length_makes_another_folder_beside_the_first(own_data, tmp_path):
    before = checksum(tmp_path / "data" / "rows-32" / "manifest.json")
    prepare(own_data("data.seq_len=48"), WorkerPool())
    assert sorted(path.name for path in (tmp_path / "data").glob("rows*")) == ["rows-32", "rows-48"]
    assert checksum(tmp_path / "data" / "rows-32" / "manifest.json") == before
    assert read(tmp_path / "data" / "rows-48", "train").shape[1] == 48
    (tmp_path / "data" / "rows-32").rename(tmp_path / "data" / "rows-40")
    with refused(r"rows-40: rows of 32 tokens, but data\.seq_len=40"):
        open_prepared(own_data("data.seq_len=40"))


def test_the_command_packs_shards_and_then_says_that_they_are_up_to_date(own_data, tmp_path, call):
    data = own_data().rows_folder.parent
    options = ("--out", tmp_path / "out", "--seq_len", 64, "--processes", 1)
    for how in ("written", "is up to date"):
        assert call(rows.main, data / "shards", data / "tokenizer", *options)[1] == f"{tmp_path / 'out'} {how}\n"
    assert len(chunks_of(read(tmp_path / "out", "train"))) >= len(make_documents(2000)) * 0.8


def test_rows_with_too_many_special_tokens_inside_of_documents_are_left_out_and_counted(shards, make, tmp_path):
    lengths = {"train-odd": [10] * 6, "train-b": [30] * 9, "heldout-a": [30] * 2}
    shards(lengths, within={"train-odd": [UNKNOWN] * 20})
    make(min_tokens=20)
    manifest = token_rows.read(tmp_path / "rows")
    assert (manifest.count("train", "rows"), manifest.count("train", "dropped_rows")) == (9, 6)
    assert (manifest.least_maskable("train"), manifest.count("train", "tokens")) == (30, 9 * 32)
    assert manifest.unigram_counts().sum() == 9 * 30

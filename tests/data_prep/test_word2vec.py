"""Word vectors of the tokenizer's entries: trained on the shards, the same after any interruption, row i of entry i."""

import shutil
import signal
import sys
import time

import numpy as np
import pytest
from conftest import make_documents
from limits import limit, wait_until
from on_disk import names
from refusals import refusal, refused
from small_data import write_documents, write_recipe

from data_prep import inspect
from data_prep import word2vec as data_prep_word2vec
from data_prep.formats.token_shards import write_shard
from data_prep.pipeline.folders import TASKS
from data_prep.pipeline.workers import WorkerPool
from data_prep.prepared import verify
from data_prep.prepared.prepare import prepare
from data_prep.tokens.shards import write_manifest
from data_prep.vocabulary import word2vec, word2vec_training
from data_prep.vocabulary.documents import LONGEST_PIECE
from scaler.config.data_sections import Word2Vec
from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.core.files import checksum, read_json, read_manifest, write_json
from scaler.data import arrays, word_vectors

pytest.importorskip("gensim")

ENTRIES = 400  # of the tiny recipe's tokenizer
TOPICS = 12
TINY = Word2Vec(vector_size=16, learning_rate=0.05, min_count=2)


def topical_documents(count, seed=0):
    """Of each topic, one of two words stands among four others; the two never meet, and share all their contexts."""
    chance = np.random.default_rng(seed)
    for topic, twin in zip(chance.integers(TOPICS, size=count), chance.integers(2, size=count), strict=True):
        others = 100 + 3 * (4 * int(topic) + chance.integers(4, size=9))  # entries with gaps between them
        others[[2, 6]] = 300 + 7 * int(topic) + int(twin)
        yield others.tolist()


def twins(topic):
    return 300 + 7 * topic, 301 + 7 * topic


@pytest.fixture
def shards(tmp_path, tiny_recipe):
    """Write tmp_path/shards of the given documents of each file, and a tokenizer that they belong to."""

    def write(files, strip_ids=()):
        folder, tokenizer = tmp_path / "shards", tmp_path / "tokenizer"
        for there in (folder, tokenizer):
            shutil.rmtree(there, ignore_errors=True)
        folder.mkdir()
        shutil.copytree(tiny_recipe.tokenizer_folder, tokenizer)
        splits = {}
        for name, documents in files.items():
            ids = np.array([token for document in documents for token in document], np.int64)
            lengths = np.array([len(document) for document in documents], np.int64)
            entry = write_shard(folder / name, [(ids, lengths)], np.uint16, ENTRIES)
            splits.setdefault(name.partition("-")[0], []).append(entry)
        xxh3 = checksum(tokenizer / "tokenizer.json")
        write_manifest(folder, splits, ENTRIES, xxh3, [], {"made": len(files)}, [], strip_ids)
        return folder

    return write


@pytest.fixture
def topical(shards):
    documents = list(topical_documents(4000))
    return shards({"train-a": documents[:1000], "train-b": documents[1000:], "heldout-a": [[9] * 50]})


def make(folder, settings=TINY, seed=0, threads=1, out=None):
    out = out or folder.parent / "word2vec"
    return word2vec.make(folder, folder.parent / "tokenizer", out, settings, seed, threads)


def opened(folder, width=16, name="word2vec"):
    return word_vectors.read(folder.parent / name, checksum(folder.parent / "tokenizer" / "tokenizer.json"), width)


def vectors_in(folder):
    return (folder / "vectors.npy").read_bytes()


def chains(count):
    """Runs of left neighbour, one of two twins, right neighbour, each of a topic by chance."""
    chance = np.random.default_rng(0)
    for _ in range(count):
        topics = chance.integers(TOPICS, size=5).tolist()
        yield [e for t in topics for e in (100 + 3 * t, 300 + 7 * t + int(chance.integers(2)), 200 + 5 * t)]


def nearest(vectors, entry, among):
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = unit @ unit[entry]
    cosines[entry] = -1
    return max(among, key=lambda other: cosines[other])


@pytest.mark.parametrize("architecture", ["cbow", "skip-gram"])
@pytest.mark.parametrize("threads", [1, 2])
def test_words_that_share_their_contexts_become_neighbours_and_row_i_is_entry_i(shards, architecture, threads):
    folder = shards({"train-a": list(chains(1000)), "train-b": list(chains(2000))})
    assert make(folder, Word2Vec(16, architecture, window=1, sample=0.0, learning_rate=0.05), threads=threads)
    found = opened(folder)
    trained = np.flatnonzero(found.counts >= 5).tolist()
    assert set(trained) == {entry for document in chains(2000) for entry in document}
    for topic in range(TOPICS):
        one, other = twins(topic)
        assert nearest(found.vectors, one, set(trained) - {one}) == other
        assert nearest(found.vectors, other, set(trained) - {other}) == one


def test_counts_are_those_of_the_training_documents_alone(topical):
    make(topical)
    expected = np.bincount([token for document in topical_documents(4000) for token in document], minlength=ENTRIES)
    np.testing.assert_array_equal(opened(topical).counts, expected)
    assert read_manifest(topical.parent / "word2vec", "word2vec")["tokens"] == 36_000


def test_trained_twice_by_one_thread_they_have_the_same_bytes_and_another_seed_gives_others(topical, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(topical, seed=seed, out=tmp_path / name)
    first, second, third = (vectors_in(tmp_path / name) for name in "abc")
    assert first == second != third


def test_it_is_trained_anew_only_when_shards_settings_or_seed_change(topical, shards):
    assert make(topical)
    assert not make(topical, threads=2)
    assert make(topical, seed=1)
    assert make(topical, Word2Vec(16, epochs=1), seed=1)
    assert not make(topical, Word2Vec(16, epochs=1), seed=1)
    assert make(shards({"train-a": list(topical_documents(500))}), Word2Vec(16, epochs=1), seed=1)
    (topical.parent / "word2vec" / "vectors.npy").unlink()
    assert make(topical, Word2Vec(16, epochs=1), seed=1)


@pytest.fixture
def spied(monkeypatch):
    """What each call of gensim's train was given, and what it said that it trained."""
    calls = []
    build = word2vec_training._model

    def model(*arguments):
        built = build(*arguments)
        train = built.train

        def spy(sentences, **options):
            seen = []
            monkeypatch.setattr(sentences, "_pieces", kept(sentences._pieces, seen))
            trained, raw = train(sentences, **options)
            calls.append({**options, "pieces": seen, "trained": trained, "raw": raw})
            return trained, raw

        built.train = spy
        return built

    def kept(pieces, seen):
        for piece in pieces:
            seen.append(piece.tolist())
            yield piece

    monkeypatch.setattr(word2vec_training, "_model", model)
    return calls


def test_the_learning_rate_falls_in_a_line_over_all_segments_and_epochs(topical, spied, monkeypatch):
    monkeypatch.setattr(word2vec_training, "SEGMENT_TOKENS", 7000)
    make(topical)
    sizes = [call["total_words"] for call in spied]
    assert sizes == [7000] * 5 + [1000] + [7000] * 5 + [1000] + [7000] * 5 + [1000]
    done = np.cumsum([0, *sizes]) / 108_000
    expected = 0.05 + done * (1e-4 - 0.05)
    assert [call["start_alpha"] for call in spied] == pytest.approx(expected[:-1], rel=1e-12)
    assert [call["end_alpha"] for call in spied] == pytest.approx(expected[1:], rel=1e-12)
    assert spied[-1]["end_alpha"] == pytest.approx(1e-4, rel=1e-12)


@pytest.mark.parametrize("segment", [1000, 7001, 1 << 20])
def test_every_epoch_holds_every_token_once_in_documents_and_none_is_lost(shards, spied, monkeypatch, segment):
    monkeypatch.setattr(word2vec_training, "SEGMENT_TOKENS", segment)
    chance = np.random.default_rng(0)
    documents = [chance.integers(5, ENTRIES, size).tolist() for size in (25_000, 1, 3, 10_000, 0, 10_001, 700, 9_999)]
    folder = shards({f"train-{n}": documents[n : n + 2] for n in range(0, 8, 2)})
    make(folder, Word2Vec(4, epochs=2, sample=0.0, min_count=1))
    total = sum(map(len, documents))
    seen = [piece for call in spied for piece in call["pieces"]]
    tokens = [token for piece in seen for token in piece]
    by_epoch = tokens[:total], tokens[total:]
    for epoch in by_epoch:
        assert sorted(epoch) == sorted(token for document in documents for token in document)
        text = "".join(map(chr, epoch))
        assert all("".join(map(chr, document)) in text for document in documents)
    assert by_epoch[0] != by_epoch[1]  # the shards come in another order
    assert max(map(len, seen)) == min(segment, LONGEST_PIECE)
    assert sum(call["trained"] for call in spied) == sum(call["raw"] for call in spied) == 2 * total
    if segment > total:  # no piece crosses from one document to the next
        assert sorted(map(len, seen)) == sorted(2 * [1, 3, 700, 9_999, 10_000, 10_000, 1, 10_000, 10_000, 5_000])


def test_gensim_takes_no_more_of_a_sentence_than_a_piece_has():
    from gensim.models.word2vec_inner import MAX_WORDS_IN_BATCH

    assert LONGEST_PIECE == MAX_WORDS_IN_BATCH


def test_special_tokens_at_the_ends_of_documents_are_stripped(shards, spied):
    documents = list(topical_documents(300))
    plain = shards({"train-a": documents})
    make(plain)
    expected = opened(plain)
    framed = shards({"train-a": [[0, *document, 2, 2] for document in documents]}, strip_ids=[0, 2])
    make(framed)
    np.testing.assert_array_equal(opened(framed).counts, expected.counts)
    np.testing.assert_array_equal(opened(framed).vectors, expected.vectors)


def test_rare_entries_take_no_part_in_training(shards):
    documents = list(topical_documents(300))
    plain = shards({"train-a": documents})
    make(plain)
    expected = opened(plain).vectors.copy()
    rare = [[10 + n, *document[:4], 10 + n, *document[4:]] for n, document in enumerate(documents[:40])]
    mixed = shards({"train-a": rare + documents[40:]})
    make(mixed, Word2Vec(16, learning_rate=0.05, min_count=3))  # each of the 40 occurs twice
    counts = opened(mixed).counts
    assert counts[10:50].tolist() == [2] * 40
    trained = counts >= 3
    np.testing.assert_array_equal(opened(mixed).vectors[trained], expected[trained])


def test_an_entry_of_just_min_count_is_trained_and_the_others_drawn(topical):
    counts = np.bincount([token for document in topical_documents(4000) for token in document], minlength=ENTRIES)
    edge = int(np.sort(counts[counts > 0])[5])
    make(topical, Word2Vec(16, min_count=edge))
    assert (counts == edge).any()
    share = read_manifest(topical.parent / "word2vec", "word2vec")["coverage"]
    assert share["entries"] == pytest.approx((counts >= edge).mean())
    assert share["tokens"] == pytest.approx(counts[counts >= edge].sum() / 36_000)


def test_drawn_vectors_have_the_moments_of_the_rarest_tenth_of_the_trained_ones():
    chance = np.random.default_rng(1)
    matrix = np.full((15_000, 8), 99, np.float32)
    trusted, counts = np.arange(15_000) >= 5000, np.full(15_000, 70)
    rarest = np.arange(15_000) % 10 == 7
    counts[trusted & rarest] = 8
    counts[~trusted] = 4
    before = chance.standard_normal((1000, 8)) * np.array([0, 1, 2, 3, 4, 5, 6, 1e-3]) + np.arange(8)
    matrix[trusted & rarest] = before
    kept = matrix[trusted].copy()
    word2vec.draw(matrix, trusted, counts, seed=5)
    np.testing.assert_array_equal(matrix[trusted], kept)
    drawn = matrix[~trusted]
    spread = before.std(axis=0)
    np.testing.assert_allclose(drawn.mean(axis=0), before.mean(axis=0), atol=5 * spread.max() / 5000**0.5)
    np.testing.assert_allclose(drawn.std(axis=0), spread, rtol=0.06, atol=1e-6)
    assert len(np.unique(drawn, axis=0)) == 5000
    correlation = np.corrcoef(drawn[:, 1:].T) - np.eye(7)
    assert np.abs(correlation).max() < 0.1


def test_what_an_entry_draws_hangs_on_the_seed_and_its_number():
    values = np.random.default_rng(1).standard_normal((50, 8)).astype(np.float32)

    def drawn(entries, seed):
        matrix = np.zeros((entries, 8), np.float32)
        matrix[:50] = values
        word2vec.draw(matrix, np.arange(entries) < 50, np.ones(entries), seed)
        return matrix[50:]

    few, many = drawn(60, 7), drawn(90, 7)
    np.testing.assert_array_equal(few, many[:10])
    assert not (few == drawn(60, 8)).any()


def test_with_every_entry_trained_none_is_drawn():
    matrix = np.ones((3, 2), np.float32)
    word2vec.draw(matrix, np.ones(3, bool), np.ones(3), 0)
    assert (matrix == 1).all()


DRIVER = """
import os, signal, sys
from data_prep.vocabulary import word2vec, word2vec_training
from data_prep.word2vec import main
word2vec_training.SEGMENT_TOKENS, word2vec_training.SAVE_SECONDS = 5000, 0
when, number = sys.argv.pop(1), int(sys.argv.pop(1))
count = 0
def dying(function, place):
    def call(*arguments):
        global count
        count += place == when
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return call
for module in (word2vec, word2vec_training):
    module.write_array = dying(module.write_array, "array")
word2vec_training.write_json = dying(word2vec_training.write_json, "state")
word2vec.Documents._open = dying(word2vec.Documents._open, "segment")
word2vec.draw = dying(word2vec.draw, "end")
main()
"""


@pytest.fixture
def started(start_command):
    """Start the command on the topical shards; `driver`: at which call of what it kills itself."""

    def started(*settings, driver=("never", -1)):
        options = ("--out", "word2vec", "--threads", 1, "vector_size=16", *settings)
        return start_command(sys.executable, "-c", DRIVER, *driver, "shards", "tokenizer", *options)

    return started


# after some segments; between both arrays of a save; before the state that names them; after the last epoch
@pytest.mark.parametrize(
    "driver",
    [
        ("array", 8),
        ("state", 11),
        *(pytest.param(late, marks=pytest.mark.slow) for late in (("segment", 12), ("end", 1))),
    ],
)
def test_killed_at_any_moment_and_started_again_it_comes_to_the_same_bytes(
    topical, tmp_path, monkeypatch, started, driver
):
    monkeypatch.setattr(word2vec_training, "SEGMENT_TOKENS", 5000)
    make(topical, Word2Vec(16), out=tmp_path / "whole")
    killed = started(driver=driver)
    killed.communicate(timeout=limit(400))
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "word2vec").exists()
    state = read_json(tmp_path / "word2vec.partial" / TASKS / word2vec_training.STATE)
    assert 0 < state["position"] <= 108_000
    positions = []
    monkeypatch.setattr(word2vec_training, "_save", lambda model, position, tasks: positions.append(position))
    make(topical, Word2Vec(16))
    assert positions == [p for p in (36_000, 72_000, 108_000) if p > state["position"]]
    assert vectors_in(tmp_path / "word2vec") == vectors_in(tmp_path / "whole")
    assert names(tmp_path / "word2vec") == ["README.md", "counts.npy", "manifest.json", "vectors.npy"]


@pytest.mark.usefixtures("topical")
def test_ctrl_c_ends_it_at_once_and_loses_only_what_came_after_the_save(tmp_path, started):
    process = started("epochs=100000")
    state = tmp_path / "word2vec.partial" / TASKS / word2vec_training.STATE
    wait_until(state.exists, process)
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=limit(400))
    assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
    assert read_json(state)["position"] > 0
    assert not (tmp_path / "word2vec").exists()


def test_another_setting_does_not_go_on_from_the_state(topical, tmp_path, monkeypatch):
    make_until(topical, monkeypatch, 2)
    make(topical, Word2Vec(16, window=2))
    make(topical, Word2Vec(16, window=2), out=tmp_path / "whole")
    assert vectors_in(tmp_path / "word2vec") == vectors_in(tmp_path / "whole")


def make_until(folder, monkeypatch, openings):
    """Training that fails when it opens so many shards, after a save of each segment."""
    count, whole = [0], word2vec.Documents.pieces

    def pieces(self, begin, end):
        yield from whole(self, begin, end)
        count[0] += 1
        if count[0] == openings:
            raise ScalerError("stopped here")

    with monkeypatch.context() as patch, refused("stopped here"):
        patch.setattr(word2vec.Documents, "pieces", pieces)
        patch.setattr(word2vec_training, "SAVE_SECONDS", 0)
        patch.setattr(word2vec_training, "SEGMENT_TOKENS", 5000)
        make(folder)


def test_an_error_while_documents_are_read_ends_it_and_the_next_run_goes_on(topical, tmp_path, monkeypatch):
    make_until(topical, monkeypatch, 4)
    assert read_json(tmp_path / "word2vec.partial" / TASKS / word2vec_training.STATE)["position"] == 15_000
    assert make(topical)


def test_a_damaged_state_is_named(topical, tmp_path, monkeypatch):
    make_until(topical, monkeypatch, 3)
    (path,) = (tmp_path / "word2vec.partial" / TASKS).glob("syn1neg-*.npy")
    path.write_bytes(path.read_bytes()[:-1])
    with refused(rf"{path.name}: its checksum .* delete its folder"):
        make(topical)


@pytest.fixture
def command(topical, call):
    """Call the command on the topical shards."""
    beside = topical.parent
    options = (topical, beside / "tokenizer", "--out", beside / "word2vec")
    return lambda *arguments: call(data_prep_word2vec.main, *options, *arguments)


def test_without_gensim_one_line_says_how_to_get_it(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models", None)
    said = refusal(command("vector_size=8"))
    assert "needs gensim" in said and "pip install '.[word2vec]'" in said
    assert names(tmp_path) == ["shards", "tokenizer"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "word2vec.vector_size is missing"),
        (["vector_size=0"], "word2vec.vector_size=0, but it is between 1 and 65536"),
        (["vector_size=8", "window=10000000000"], "word2vec.window=10000000000, but it is between 1 and 10000"),
        (["vector_siez=8"], "unknown key word2vec.vector_siez; did you mean 'vector_size'?"),
        (["vector_size=8", "architecture=glove"], "word2vec.architecture='glove', but it is one of cbow, skip-gram"),
        (["vector_size=8", "min_count=100000"], "no entry occurs word2vec.min_count=100000 times"),
        (["vector_size=8", "--threads", "0"], "--threads 0: 1 is the least"),
        (["vector_size=8", "--seed", "-1"], "seed=-1, but it is at least 0"),
        (["vector_size=8", "ready_made=gone.vec"], "gone.vec: no such file"),
    ],
)
def test_a_bad_setting_is_one_line_and_leaves_nothing(command, tmp_path, arguments, said):
    assert said in refusal(command(*arguments))
    assert names(tmp_path) == ["shards", "tokenizer"]


def test_shards_that_are_absent_empty_or_another_tokenizers_are_named(topical, shards, tmp_path):
    with refused("no shards here"):
        make(tmp_path / "nowhere")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    with refused("written with another tokenizer"):
        make(topical)
    path.unlink()
    with refused("no tokenizer here"):
        make(topical)
    with refused("no entry occurs"):
        make(shards({"train-a": []}))


def test_an_id_that_is_no_entry_is_named(topical):
    content = read_manifest(topical, "shards")
    write_json(topical / "manifest.json", {**content, "vocab_size": 370})
    with refused("but the tokenizer has 370 entries"):
        make(topical)


def test_ready_made_vectors_take_the_place_of_training(topical, command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gensim.models", None)  # they need none
    frequent = [100 + 3 * n for n in range(20)]
    vocabulary = read_json(tmp_path / "tokenizer" / "tokenizer.json")["model"]["vocab"]
    entry_of = {number: entry for entry, number in vocabulary.items()}
    rows = "".join(f"{entry_of[n]} {n} 1\n" for n in frequent)
    (tmp_path / "mine.vec").write_text(f"21 2\n{rows}unheard-of 1 1\n", encoding="utf-8")
    options = ("vector_size=2", f"ready_made={tmp_path / 'mine.vec'}")
    status, said, _ = command(*options)
    found = opened(topical, 2)
    np.testing.assert_array_equal(found.vectors[frequent], [[n, 1] for n in frequent])
    drawn = np.setdiff1d(np.arange(ENTRIES), frequent)
    assert (found.vectors[drawn, 1] == 1).all() and len(np.unique(found.vectors[drawn, 0])) == len(drawn)
    share = found.counts[frequent].sum() / 36_000
    assert status == 0
    assert f"400 entries of 2 numbers, 5.00% of them taken over, which stand for {share:.2%} of the training" in said
    assert "is up to date" in command(*options)[1]
    (tmp_path / "mine.vec").write_text(f"21 2\n{rows}unheard-of 1 2\n", encoding="utf-8")
    assert "written" in command(*options)[1]


def test_the_vectors_are_a_stage_of_a_recipe_that_asks_for_them(tmp_path, capsys, call):
    file = write_recipe(tmp_path, write_documents(tmp_path / "text.txt", make_documents(400)))
    prepare(load(str(file)), WorkerPool())
    assert not (tmp_path / "data" / "word2vec").exists()
    recipe = load(str(file), ["word2vec.vector_size=8", "seed=2"])
    capsys.readouterr()
    for how in ("written in", "up to date"):
        prepare(recipe, WorkerPool(), threads=1)
        said = capsys.readouterr().out
        (line,) = (line for line in said.splitlines() if line.startswith(f"{recipe.word2vec_folder}: {how}"))
        assert "400 entries of 8 numbers" in line
    stages = verify.stages(tmp_path / "data")
    assert [stage.name for stage in stages] == ["corpus", "tokenizer", "shards", "word2vec", "rows-32"]
    assert [problem for stage in stages for problem in verify.problems(stage, WorkerPool())] == []
    assert "  nearest to " in call(inspect.main, tmp_path / "data")[1]
    card = (recipe.word2vec_folder / "README.md").read_text()
    assert "| of the training tokens | " in card and "architecture: cbow" in card


def test_verification_names_damaged_vectors_and_those_of_another_tokenizer(topical, tmp_path):
    make(topical)
    folder = tmp_path / "word2vec"
    values = np.load(folder / "vectors.npy")
    values[7, 3] = np.nan
    content = read_manifest(folder, "word2vec")
    xxh3 = arrays.write_array(folder / "vectors.npy", values)
    assert "its checksum" in next(verify.problems(folder, WorkerPool()))
    write_json(folder / "manifest.json", {**content, "vectors_xxh3": xxh3})
    assert list(verify.problems(folder, WorkerPool())) == [
        f"{folder}: the vector of entry 7 is not finite; delete its folder and prepare the data again"
    ]
    write_json(folder / "manifest.json", {**content, "tokenizer_xxh3": "0" * 32})
    assert "made with another tokenizer" in next(verify.problems(folder, WorkerPool()))

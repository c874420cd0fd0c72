"""The tokenizer folder: a Transformers tokenizer with RoBERTa's special tokens."""

import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, make_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_prep import corpus as corpus_stage
from data_prep import folders, tokenizer
from scaler.errors import ScalerError
from scaler.recipe import Corpus, Tokenizer
from scaler.token_shards import checksum


@pytest.fixture(scope="session")
def corpus(tiny_recipe):
    return tiny_recipe.tokenizer_folder.parent / "corpus"


@pytest.fixture(scope="session")
def loaded(tiny_recipe):
    return AutoTokenizer.from_pretrained(tiny_recipe.tokenizer_folder, local_files_only=True)


def test_the_special_tokens_have_robertas_ids(loaded):
    tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    assert loaded.convert_tokens_to_ids(tokens) == [0, 1, 2, 3, 4]
    assert sorted(loaded.all_special_tokens) == sorted(tokens)
    assert [loaded.cls_token, loaded.pad_token, loaded.sep_token, loaded.unk_token, loaded.mask_token] == tokens
    assert [loaded.bos_token, loaded.eos_token] == ["<s>", "</s>"]


def test_a_text_and_a_pair_are_framed_as_robertas(loaded):
    first, second = (loaded(text, add_special_tokens=False).input_ids for text in ("kana lopo", "mishi"))
    assert loaded("kana lopo").input_ids == [0, *first, 2]
    assert loaded("kana lopo", "mishi").input_ids == [0, *first, 2, 2, *second, 2]


def test_a_mask_takes_the_place_of_a_word_and_the_space_before_it(loaded):
    before, after = (loaded(text, add_special_tokens=False).input_ids for text in ("kana", " mishi"))
    assert loaded("kana <mask> mishi").input_ids == [0, *before, 4, *after, 2]


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_from_its_tokens(loaded, text):
    ids = loaded(text.replace("<", "("), add_special_tokens=False).input_ids
    assert loaded.decode(ids, clean_up_tokenization_spaces=False) == text.replace("<", "(")
    assert min(ids, default=5) > 4


def test_frequent_words_become_one_token(loaded):
    assert len(loaded(" kana", add_special_tokens=False).input_ids) == 1


@pytest.mark.parametrize("vocab_size", [300, 333])
def test_the_vocabulary_has_the_size_asked_for(corpus, tmp_path, vocab_size):
    tokenizer.make(corpus, tmp_path / "tokenizer", Tokenizer(vocab_size))
    assert len(AutoTokenizer.from_pretrained(tmp_path / "tokenizer")) == vocab_size
    assert folders.read_manifest(tmp_path / "tokenizer", "tokenizer")["vocab_size"] == vocab_size


def test_trained_twice_it_has_the_same_bytes(corpus, tmp_path):
    for name in ("first", "second"):
        tokenizer.make(corpus, tmp_path / name, Tokenizer(350))
    first, second = ({file.name: file.read_bytes() for file in (tmp_path / n).iterdir()} for n in ("first", "second"))
    assert first == second


def test_it_is_trained_anew_only_when_corpus_or_size_change(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    folder = tmp_path / "tokenizer"
    assert tokenizer.make(tmp_path / "corpus", folder, Tokenizer(350))
    assert not tokenizer.make(tmp_path / "corpus", folder, Tokenizer(350))
    assert tokenizer.make(tmp_path / "corpus", folder, Tokenizer(340))
    manifest = tmp_path / "corpus" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents"', '"documents" ', 1))
    assert tokenizer.make(tmp_path / "corpus", folder, Tokenizer(340))


def test_its_manifest_holds_its_checksum(tiny_recipe):
    manifest = folders.read_manifest(tiny_recipe.tokenizer_folder, "tokenizer")
    assert manifest["tokenizer_xxh3"] == checksum(tiny_recipe.tokenizer_folder / "tokenizer.json")


def test_only_the_training_split_is_trained_on(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    for file in (tmp_path / "corpus").glob("heldout-*"):
        file.unlink()
    assert tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", Tokenizer(300))


def test_a_missing_corpus_or_part_of_it_is_named(corpus, tmp_path):
    with pytest.raises(ScalerError, match=r"no corpus here .*prepare it first"):
        tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", Tokenizer(300))
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "train-00000.jsonl.zst").unlink()
    with pytest.raises(ScalerError, match=r"train-00000\.jsonl\.zst: cannot be read .No such file"):
        tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", Tokenizer(300))
    assert [path.name for path in tmp_path.iterdir()] == ["corpus"]


def test_ctrl_c_is_heard_while_the_trainer_computes(tmp_path):
    (tmp_path / "text.txt").write_text("\n\n".join(make_documents(60_000)), encoding="utf-8")
    corpus_stage.make(Corpus(source=str(tmp_path / "text.txt"), heldout_percent=1), tmp_path / "corpus")
    process = subprocess.Popen(
        [sys.executable, "-m", "data_prep.tokenizer", "corpus", "--out", "out", "--vocab_size", "20000"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    while not (tmp_path / "out.partial").exists():
        assert process.poll() is None
        time.sleep(0.005)
    time.sleep(0.3)  # into the trainer
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()

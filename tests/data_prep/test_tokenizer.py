"""The tokenizer folder: a Transformers tokenizer with RoBERTa's special tokens."""

import copy
import json
import random
import shutil
import signal
import sys
import time

import pytest
from conftest import make_documents
from hypothesis import given, settings
from hypothesis import strategies as st
from limits import limit, wait_until
from on_disk import content, names
from refusals import refused
from small_data import make_corpus, write_documents
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from data_prep.formats import texts
from data_prep.vocabulary import tokenizer
from data_prep.vocabulary.long_words import LONGEST, Cutter
from scaler.config.data_sections import Tokenizer
from scaler.core.files import checksum, read_manifest
from scaler.data.tokenizer import Vocabulary, read_vocabulary, save_tokenizer


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
    assert read_manifest(tmp_path / "tokenizer", "tokenizer")["vocab_size"] == vocab_size


def test_trained_twice_it_has_the_same_bytes(corpus, tmp_path):
    for name in ("first", "second"):
        tokenizer.make(corpus, tmp_path / name, Tokenizer(350))
    assert content(tmp_path / "first") == content(tmp_path / "second")


def test_it_is_trained_anew_only_when_corpus_size_or_sample_change(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    for how in (Tokenizer(350), Tokenizer(340), Tokenizer(340, sample_mib=2)):
        assert tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", how)
        assert not tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", how)
    manifest = tmp_path / "corpus" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"documents"', '"documents" ', 1))
    assert tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", how)


def test_the_ids_that_rows_need_are_found(tiny_recipe):
    assert read_vocabulary(tiny_recipe.tokenizer_folder) == Vocabulary(400, 0, 2, 1, 4, (0, 1, 2, 3, 4))


def test_a_tokenizer_without_the_tokens_that_rows_need_is_refused(tiny_recipe, tmp_path):
    loaded = AutoTokenizer.from_pretrained(tiny_recipe.tokenizer_folder, local_files_only=True)
    loaded.sep_token = None
    loaded.save_pretrained(tmp_path)
    with refused("the tokenizer has no sep token, which masked-LM rows need"):
        read_vocabulary(tmp_path)
    with refused(r"nowhere: no tokenizer here; run `make data`"):
        read_vocabulary(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{")
    with refused(r"the tokenizer cannot be read .*; delete its folder"):
        read_vocabulary(tmp_path)


def test_its_manifest_holds_its_checksum(tiny_recipe):
    manifest = read_manifest(tiny_recipe.tokenizer_folder, "tokenizer")
    assert manifest["tokenizer_xxh3"] == checksum(tiny_recipe.tokenizer_folder / "tokenizer.json")


def training_documents(corpus):
    entries = texts.entries(texts.manifest(corpus), "train")
    return [document.text for entry in entries for document in texts.read(corpus, entry)]


def test_a_sample_is_the_same_each_time_and_about_as_large_as_asked_for(corpus):
    documents = training_documents(corpus)
    size = sum(len(text.encode()) for text in documents)
    assert list(tokenizer.sample(corpus, size)) == documents
    half, again, tenth = (list(tokenizer.sample(corpus, most)) for most in (size // 2, size // 2, size // 10))
    assert half == again
    assert set(tenth) < set(half) < set(documents)
    assert half == [text for text in documents if text in set(half)]  # in order
    assert sum(len(text.encode()) for text in half) == pytest.approx(size / 2, rel=0.15)
    assert sum(len(text.encode()) for text in tenth) == pytest.approx(size / 10, rel=0.3)


def test_a_document_stays_in_the_sample_whatever_stands_around_it(tmp_path):
    documents = list(dict.fromkeys(make_documents(2000)))

    def sampled(texts):
        corpus = make_corpus(tmp_path, write_documents(tmp_path / "a.txt", texts))
        entries = read_manifest(corpus, "corpus")["splits"]["train"]
        return set(tokenizer.sample(corpus, sum(entry["bytes"] for entry in entries) // 2))

    few, many = sampled(documents[:500]), sampled(documents)
    # the share differs in its last digits, so a document at its edge may come or go
    assert len((many & set(documents[:500])) ^ few) <= 2


def test_only_the_training_split_is_trained_on(corpus, tmp_path):
    shutil.copytree(corpus, tmp_path / "corpus")
    others = [*(tmp_path / "corpus").glob("heldout-*"), *(tmp_path / "corpus").glob("test-*")]
    assert len(others) == 2
    for file in others:
        file.unlink()
    assert tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", Tokenizer(300))


def test_a_missing_corpus_or_part_of_it_is_named(corpus, tmp_path):
    with refused(r"no corpus here .*prepare it first"):
        tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", Tokenizer(300))
    shutil.copytree(corpus, tmp_path / "corpus")
    (tmp_path / "corpus" / "train-text-00000-0000.jsonl.zst").unlink()
    with refused(r"train-text-00000-0000\.jsonl\.zst: missing; .*prepare the data again"):
        tokenizer.make(tmp_path / "corpus", tmp_path / "tokenizer", Tokenizer(300))
    assert names(tmp_path) == ["corpus"]


def test_ctrl_c_is_heard_while_the_trainer_computes(tmp_path, start_command):
    make_corpus(tmp_path, write_documents(tmp_path / "text.txt", make_documents(60_000)))
    process = start_command(sys.executable, "-m", "data_prep.tokenizer", "corpus", "--out", "out", "vocab_size=20000")
    wait_until((tmp_path / "out.partial").exists, process)
    time.sleep(0.3)  # into the trainer
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=limit(400))
    assert (process.returncode, said) == (130, "stopped by Ctrl-C; nothing half-done counts as done\n")
    assert not (tmp_path / "out").exists() and not (tmp_path / "out.partial").exists()


def runs(text):
    """The lengths of what neither BERT's nor GPT-2's pre-tokenizer cuts."""
    bert, gpt2 = pre_tokenizers.BertPreTokenizer(), pre_tokenizers.ByteLevel(add_prefix_space=False)
    return [end - begin for cut in (bert, gpt2) for _, (begin, end) in cut.pre_tokenize_str(text)]


LONG_WORDS = {
    "dna": "acgt" * 700,
    "base64": "aGVsbG8gd29ybGQ" * 200,
    "one letter": "a" * 2500,
    "digits": "0123456789" * 210,
    "chinese": "天气很好" * 700,
    "thai": "ประเทศไทย" * 300,
    "a line": "=" * 5000,
    "marks": "-\u0308" * 1500,
    "emoji in letters": "a😀" * 1200,
    "spaces": " " * 4000,
}


@pytest.mark.parametrize("kind", LONG_WORDS)
def test_long_words_are_cut_for_training_and_all_else_stays_whole(kind):
    cutter = Cutter()
    text = f"before {LONG_WORDS[kind]} after"
    pieces = list(cutter.pieces(text, "here"))
    assert "".join(pieces) == text and max(max(runs(piece)) for piece in pieces) <= LONGEST + 1  # a space before it
    assert max(runs(text)) > LONGEST or kind == "chinese"  # whose characters BERT takes one by one
    assert cutter.longest["here"] >= LONGEST
    minified = "function(a,b){return a.b[0]+b.c(1)};" * 500  # without a space, but of short words
    assert list(cutter.pieces(minified, "there")) == [minified] and set(cutter.longest) == {"here"}


def test_documents_with_long_words_are_named_and_counted(tmp_path, caplog):
    documents = [*make_documents(100), "acgt" * 1000, "t" * 3000, "=" * 2000]
    corpus = make_corpus(tmp_path, write_documents(tmp_path / "text.txt", documents))
    (entry,) = texts.entries(texts.manifest(corpus), "train")
    read = [document.text for document in texts.read(corpus, entry)]
    long = {text: number for number, text in enumerate(read, 1) if len(text) > LONGEST and " " not in text}
    assert len(long) > 1
    assert tokenizer.make(corpus, tmp_path / "tokenizer", Tokenizer(400))
    text, number = max(long.items(), key=lambda item: len(item[0]))
    where = f"document {number} of {corpus / entry['name']}.jsonl.zst"
    assert f"{len(long)} documents have words of over 1,000 characters" in caplog.text
    assert f"the longest has {len(text):,}, in {where}" in caplog.text
    last = read_manifest(tmp_path / "tokenizer", "tokenizer")["history"][-1]
    assert last["counts"] == {"word_over_1000_characters": len(long)}


@pytest.mark.parametrize("kind", ["byte_bpe", "wordpiece", "words"])
def test_a_word_of_200_000_letters_takes_seconds(tmp_path, kind):
    chance = random.Random(1)
    dna = ["".join(chance.choice("acgt") for _ in range(200_000)) for _ in range(2)]
    corpus = make_corpus(tmp_path, write_documents(tmp_path / "text.txt", [*make_documents(300), *dna]))
    begin = time.process_time()
    tokenizer.make(corpus, tmp_path / "tokenizer", Tokenizer(350, kind=kind, pieces=320))
    assert time.process_time() - begin < 15  # before words were cut: 30 for one of them, with byte_bpe


def test_transformers_4_knows_the_class_and_nothing_tells_of_the_making_machine(tiny_recipe, loaded, tmp_path):
    folder = tiny_recipe.tokenizer_folder
    for where, longest in ((folder, None), (tmp_path, 77)):
        if longest:
            save_tokenizer(loaded, tmp_path, longest)
        config = json.loads((where / "tokenizer_config.json").read_text())
        assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
        assert config.get("model_max_length") == longest
        assert not {"is_local", "local_files_only"} & set(config)
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert len(again("kana " * 500, truncation=True).input_ids) == 77
    assert again.get_vocab() == loaded.get_vocab() and again.mask_token_id == loaded.mask_token_id


def test_more_special_tokens_have_the_name_that_transformers_4_and_5_read(loaded, tmp_path):
    more = copy.deepcopy(loaded)
    more.add_special_tokens({"extra_special_tokens": ["<name>", "<place>"]})
    save_tokenizer(more, tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    assert config["additional_special_tokens"] == ["<name>", "<place>"] and "extra_special_tokens" not in config
    again = AutoTokenizer.from_pretrained(tmp_path, local_files_only=True)
    assert again.extra_special_tokens == ["<name>", "<place>"] and again.all_special_ids == more.all_special_ids

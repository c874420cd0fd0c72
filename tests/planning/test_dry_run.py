"""The dry run says what a run would do and touches nothing; and a run that cannot start says why in one line."""

import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from refusals import refusal

from scaler import train
from scaler.config.recipe import Recipe

ROWS = {split: f"{split}-text-00000-0000.rows" for split in ("train", "heldout")}


@pytest.fixture
def dry_run(tiny_recipe_file, tmp_path, monkeypatch, call) -> Callable[..., tuple[int, str, str]]:
    """Run `train.py --dry_run` in an empty folder: exit status, output and error output."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return functools.partial(call, train.main, "--recipe", tiny_recipe_file, "--dry_run")


def tree(*folders: Path) -> dict[Path, tuple[int, int]]:
    """Every path under the folders, with its size and when it was written."""
    paths = [path for folder in folders for path in (folder, *folder.rglob("*"))]
    return {path: (path.stat().st_size, path.stat().st_mtime_ns) for path in paths}


@pytest.mark.parametrize("arguments", [[], ["--json"], ["--run_dir", "elsewhere"]])
def test_nothing_is_touched(arguments, dry_run, tiny_recipe_file, tmp_path):
    before = tree(tmp_path / "work", tiny_recipe_file.parent)
    status, output, errors = dry_run(*arguments)
    assert (status, errors) == (0, "")
    assert "metrics.jsonl" in output
    assert tree(tmp_path / "work", tiny_recipe_file.parent) == before


def test_the_numbers_of_the_plan_agree(dry_run, tiny_recipe: Recipe):
    status, output, _ = dry_run("--json", "training.steps=50", "training.rows=24")
    plan = json.loads(output)
    batch, rows = plan["batch"], plan["rows"]
    assert status == 0
    assert batch == {"rows": 24, "micro_rows": 4, "accumulation": 6, "ranks": 1}
    assert batch["rows"] == plan["ds_config"]["train_batch_size"] == plan["recipe"]["training"]["rows"]
    assert plan["steps"] == 50
    assert plan["tokens"] == 50 * 24 * 32
    assert plan["epochs"] == round(50 * 24 / rows["train"]["rows"], 2)
    assert rows["train"]["masked_per_row"] == 8
    assert rows["heldout"]["masked_per_row"] == round(32 * tiny_recipe.objective.heldout_mask_probability)
    memory, width = plan["memory_per_rank_bytes"], plan["bytes_per_weight"]
    assert 0 <= memory["weights"] - plan["parameters"] * width < 8 * width  # even parts
    assert memory["gradients and what travels"] >= plan["parameters"] * width
    assert plan["memory_per_rank_bytes"]["logits"] == 2 * 4 * 8 * 400 * 4
    # counted by hand: 2 layers of width 32 and 64, 400 entries, 40 positions, a head tied to the embeddings
    embeddings = (400 + 40 + 1) * 32 + 2 * 32
    layer = 4 * (32 * 32 + 32) + 2 * 32 * 64 + 64 + 32 + 4 * 32
    head = 32 * 32 + 32 + 2 * 32 + 400
    assert plan["parameters"] == plan["trainable_parameters"] == embeddings + 2 * layer + head


def test_sgd_without_momentum_needs_no_memory_for_its_state(dry_run):
    def bytes_of_state(momentum: float) -> int:
        _, output, _ = dry_run("--json", "optimizer.name=sgd", f"optimizer.momentum={momentum}")
        return json.loads(output)["memory_per_rank_bytes"]["optimizer"]

    assert bytes_of_state(0.0) == 0 < bytes_of_state(0.9)


def test_masks_that_become_fewer_are_told_and_counted_at_their_mean(dry_run):
    falling = ("objective.mask_probability=0.25", "objective.final_mask_probability=0.125")
    plan = json.loads(dry_run("--json", *falling)[1])
    assert plan["training_masks_per_row"] == [8, 4] and plan["rows"]["train"]["masked_per_row"] == 8
    fixed = {masks: json.loads(dry_run("--json", f"objective.mask_probability={masks / 32}")[1]) for masks in (6, 8)}
    assert plan["training_flops"] == fixed[6]["training_flops"] < fixed[8]["training_flops"]
    assert plan["memory_per_rank_bytes"] == fixed[8]["memory_per_rank_bytes"]
    assert "8 masked in each at first, 4 at last; " in dry_run(*falling)[1]
    assert "8 masked in each; " in dry_run()[1]


def test_the_plan_for_people_shows_the_same_numbers(dry_run):
    plan, text = json.loads(dry_run("--json")[1]), dry_run()[1]
    for number in (plan["parameters"], plan["steps"], plan["tokens"], plan["rows"]["train"]["rows"]):
        assert f"{number:,}" in text
    for path in plan["writes"]:
        assert path in text


def test_the_share_of_real_tokens_is_high(dry_run):
    rows = json.loads(dry_run("--json")[1])["rows"]
    assert rows["train"]["real_token_share"] >= 0.99
    assert rows["train"]["dropped_rows"] <= 1


def test_the_next_run_gets_a_folder_of_its_own(dry_run, tmp_path):
    (tmp_path / "work" / "runs" / "tiny").mkdir(parents=True)
    assert all(path.startswith("runs/tiny-2/") for path in json.loads(dry_run("--json")[1])["writes"])


def test_without_data_the_vocabulary_is_the_recipes_and_what_waits_is_named(dry_run, tmp_path):
    nowhere = f"data.folder={tmp_path}/nowhere"
    there, absent = (json.loads(dry_run("--json", *more)[1]) for more in ([], [nowhere]))
    assert (absent["rows"], absent["epochs"]) == (None, None)
    assert absent["prepare"].startswith("scaler prepare --recipe ") and absent["prepare"].endswith(f" {nowhere}")
    same = ("parameters", "batch", "memory_per_rank_bytes", "training_flops", "writes", "training_masks_per_row")
    assert all(there[key] == absent[key] for key in same)
    status, text, errors = dry_run(nowhere)
    assert (status, errors) == (0, "")
    assert f"rows         not prepared: run `{absent['prepare']}`; 8 masked in each\n" in text
    assert "the model has the recipe's vocabulary size" in text and "epochs unknown" in text


def test_training_without_data_says_with_the_same_words_what_to_run(tiny_recipe_file, call, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ("--recipe", tiny_recipe_file, f"data.folder={tmp_path}/no where", "training.rows=24")
    status, _, error = call(train.main, *words)
    assert status == 2 and error.startswith(f"error: {tmp_path}/no where/rows-32: no rows here")
    assert (
        f"; run `scaler prepare --recipe {tiny_recipe_file} 'data.folder={tmp_path}/no where' training.rows=24`\n"
        in error
    )
    assert not list(tmp_path.iterdir())


def rewrite(path: str, old: bytes, new: bytes) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / path).read_bytes()
        assert old in content
        (folder / path).write_bytes(content.replace(old, new))

    return damage


def cut(path: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        content = (folder / path).read_bytes()
        (folder / path).write_bytes(content[: len(content) // 2])

    return damage


def one_token_for(role: str, other: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / "tokenizer" / "tokenizer_config.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        path.write_text(json.dumps({**content, f"{role}_token": content[f"{other}_token"]}), encoding="utf-8")

    return damage


def remove(path: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).unlink()


def replace(path: str, content: str) -> Callable[[Path], None]:
    return lambda folder: (folder / path).write_text(content, encoding="utf-8") and None


@pytest.mark.parametrize(
    "damage, said",
    [
        (cut("rows-32/manifest.json"), "rows-32: no rows here (no readable manifest.json)"),
        (remove("rows-32/manifest.json"), "rows-32: no rows here (no readable manifest.json)"),
        (replace("rows-32/manifest.json", "[]"), "rows-32: no rows here (no readable manifest.json)"),
        (replace("rows-32/manifest.json", "{}"), "rows-32: its manifest is None, format None"),
        (rewrite("rows-32/manifest.json", b'"kind": "rows"', b'"kind": "shards"'), "shards, format 2; rows, format 2,"),
        (rewrite("rows-32/manifest.json", b'"format": 2', b'"format": 9'), "rows, format 9; rows, format 2, is needed"),
        (rewrite("rows-32/manifest.json", b'"train": [', b'"trian": ['), "the split 'train' has no rows"),
        (rewrite("rows-32/manifest.json", b'"xxh3"', b'"xxh4"'), "not a manifest of rows (KeyError('xxh3'))"),
        (rewrite("rows-32/manifest.json", b'"seq_len": 32,\n  "v', b'"seq_len": 16,\n  "v'), "rows of 16 tokens, but"),
        (rewrite("tokenizer/tokenizer.json", b'"version": "1.0"', b'"version":  "1.0"'), "made with the tokenizer"),
        (cut("tokenizer/tokenizer.json"), "tokenizer: the tokenizer cannot be read"),
        (remove("tokenizer/tokenizer.json"), "tokenizer: no tokenizer here"),
        *((one_token_for("cls", other), "cls, sep and pad tokens are not three") for other in ("sep", "pad")),
        (one_token_for("pad", "sep"), "cls, sep and pad tokens are not three"),
        (cut(f"rows-32/{ROWS['train']}"), f"{ROWS['train']}: 40928 bytes where 81856 belong"),
        (remove(f"rows-32/{ROWS['heldout']}"), f"{ROWS['heldout']}: missing"),
        (cut("rows-32/unigram.npy"), "unigram.npy: its checksum is not the manifest's"),
        (remove("rows-32/unigram.npy"), "unigram.npy: missing"),
    ],
)
def test_damaged_data_is_refused_by_name(damage, said, dry_run, tiny_recipe: Recipe, tmp_path):
    shutil.copytree(tiny_recipe.data.folder, tmp_path / "data")
    damage(tmp_path / "data")
    assert said in refusal(dry_run(f"data.folder={tmp_path / 'data'}"))


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["training.stepz=5"], "unknown key training.stepz; did you mean 'steps'"),
        (["model.hidden_size=30"], "hidden size (30) is not a multiple"),
        (["model.hidden_act=gelluh"], "Transformers refuses this model section"),
        (["model.max_position_embeddings=33"], "max_position_embeddings=33, but data.seq_len=32 needs 34"),
        (["tokenizer.vocab_size=300"], "the tokenizer has 400 entries, tokenizer.vocab_size is 300"),
        (["objective.mask_probability=0.01"], "objective.mask_probability=0.01 masks 0 of 32"),
        (["objective.final_mask_probability=0.01"], "objective.final_mask_probability=0.01 masks 0 of 32"),
        (["objective.heldout_mask_probability=0.01"], "objective.heldout_mask_probability=0.01 masks 0 of 32"),
        (["objective.final_mask_probability=0.9"], "but objective.final_mask_probability=0.9 masks 29; run"),
        (["objective.mask_probability=0.9"], "but objective.mask_probability=0.9 masks 29; run `scaler prepare`"),
        (["objective.heldout_mask_probability=0.9"], "but objective.heldout_mask_probability=0.9 masks 29"),
        (["--recipe", "tinny"], "no recipe and no file 'tinny'"),
        (["--deepspeed_config", "zero9.json"], "zero9.json: no such file"),
    ],
)
def test_what_cannot_run_is_refused_before_it_runs(arguments, said, dry_run):
    assert said in refusal(dry_run(*arguments))

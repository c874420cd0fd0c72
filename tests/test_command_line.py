"""The options of every command: a small, frozen set, for an option once given is hard to take back."""

import importlib
import re
import sys

import pytest
from conftest import ROOT

from scaler import train


def test_the_options_of_training_are_these_and_no_others():
    assert set(vars(train.parse([]))) == {
        *("deepspeed_config", "recipe", "run_dir", "dry_run", "json"),
        *("local_rank", "overrides"),  # the launcher's, and the recipe's
    }


@pytest.mark.parametrize(
    "module, options, positionals",
    [
        ("scaler.train", {"deepspeed_config", "recipe", "run_dir", "dry_run", "json"}, ["section.key=value"]),
        ("scaler.fill_mask", {"top"}, ["model", "sentence"]),
        ("data_prep.__main__", {"recipe", "processes"}, ["section.key=value"]),
        (
            "data_prep.corpus",
            {"out", "text_field", "text_unit", "hub_config", "hub_split"}
            | {"min_characters", "heldout_percent", "part_mib"},
            ["source"],
        ),
        ("data_prep.tokenizer", {"out", "vocab_size"}, ["corpus"]),
        ("data_prep.shards", {"out", "processes"}, ["corpus", "tokenizer"]),
        ("data_prep.adopt", {"tokenizer", "train", "heldout", "out"}, []),
    ],
)
def test_help_names_these_options_and_no_others(module, options, positionals, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["command", "--help"])
    with pytest.raises(SystemExit) as ending:
        importlib.import_module(module).main()
    text = capsys.readouterr().out
    assert ending.value.code == 0
    assert set(re.findall(r"^  (?:-h, )?--(\w+)", text, re.MULTILINE)) == options | {"help"}
    arguments = text.partition("positional arguments:\n")[2].partition("\n\n")[0]
    assert re.findall(r"^  (\S+)", arguments, re.MULTILINE) == positionals


def test_training_runs_as_a_file_from_any_folder(tiny_recipe_file, run_command, tmp_path):
    done = run_command(
        *(sys.executable, ROOT / "scaler" / "train.py", "--local_rank=0", "--recipe", tiny_recipe_file, "--dry_run"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert "would write\n  runs/tiny/" in done.stdout

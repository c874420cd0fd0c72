"""The options of every command: a small, frozen set, for an option once given is hard to take back."""

import importlib
import re
import sys

import pytest
from conftest import ROOT

from scaler import train

COMMANDS: dict[str, tuple[set[str], list[str]]] = {
    "scaler.train": (
        {"deepspeed_config", "recipe", "run_dir", "ranks", "allow_changes", "dry_run", "json"},
        ["section.key=value"],
    ),
    "scaler.evaluate": ({"split", "recipe", "json"}, ["model"]),
    "scaler.preflight": (
        {"deepspeed_config", "recipe", "run_dir", "ranks", "allow_changes", "gpu", "slowest_share", "seconds"},
        ["section.key=value"],
    ),
    "scaler.sharing": (
        {"deepspeed_config", "recipe", "run_dir", "ranks", "allow_changes", "nodes", "ranks_per_node"},
        ["section.key=value"],
    ),
    "scaler.embedding_report": ({"recipe", "out", "words", "until"}, ["runs/NAME"]),
    "scaler.compare": ({"texts", "most", "finetuned", "out"}, ["models"]),
    "scaler.plan": (
        {"recipe", "deepspeed_config", "hardware", "nodes", "weak", "critical_rows", "noise_scale", "max_hours"}
        | {"max_cost", "json"},
        ["section.key=value"],
    ),
    "scaler.calibrate": ({"recipe", "deepspeed_config", "hardware", "rows", "seconds"}, ["out", "section.key=value"]),
    "scaler.noise_scale": ({"rows", "batches", "steps", "json"}, ["runs/NAME"]),
    "scaler.status": ({"json"}, ["runs/NAME"]),
    "scaler.finetune": (
        {"data", "validation", "test", "validation_percent", "test_percent", "task", "format", "encoding", "text_field"}
        | {"label_field", "skip_empty", "hub_config", "hub_revision", "learning_rates", "seeds", "epochs", "patience"}
        | {"batch_size", "max_length", "precision", "freeze_embeddings", "from_scratch", "deepspeed_config", "out"},
        ["model"],
    ),
    "scaler.goodput": (
        {"nodes", "gpus_per_node", "step_seconds", "steps", "every", "save_seconds", "write_seconds", "restart_seconds"}
        | {"replacement_seconds", "mtbf_node_hours", "spread", "elastic", "runs", "seed", "json", "out"},
        [],
    ),
    "scaler.sweep": (
        {"recipe", "deepspeed_config", "space", "trials", "workers", "ranks"},
        ["FOLDER", "section.key=value"],
    ),
    "scaler.report": ({"hardware", "out"}, ["STUDY"]),
    "scaler.study": (
        {"recipe", "deepspeed_config", "nodes", "ranks_per_node", "stages", "offload", "series", "micro_rows"}
        | {"buckets", "steps", "warmup", "define_only"},
        ["FOLDER", "section.key=value"],
    ),
    "scaler.studies.point": ({"steps", "warmup"}, ["FOLDER", "POINT"]),
    "scaler.fill_mask": ({"top"}, ["model", "sentence"]),
    "data_prep.__main__": ({"recipe", "processes"}, ["section.key=value"]),
    "data_prep.corpus": (
        {"out", "processes", "text_field", "id_field", "text_unit", "hub_config", "hub_split", "hub_revision"}
        | {"max_mib", "heldout_percent", "test_percent", "part_mib", "max_document_mib"},
        ["source"],
    ),
    "data_prep.clean": ({"out", "processes"}, ["corpus", "key=value"]),
    "data_prep.dedup": ({"out", "processes"}, ["text", "key=value"]),
    "data_prep.tokenizer": ({"out"}, ["text", "key=value"]),
    "data_prep.shards": ({"out", "processes"}, ["text", "tokenizer"]),
    "data_prep.rows": ({"out", "processes", "seq_len", "min_tokens"}, ["shards", "tokenizer"]),
    "data_prep.word2vec": ({"out", "threads", "seed"}, ["shards", "tokenizer", "key=value"]),
    "data_prep.adopt": ({"tokenizer", "train", "heldout", "test", "out"}, []),
    "data_prep.verify": ({"processes"}, ["DIR"]),
    "data_prep.labels": ({"out", "services", "texts_a_service", "sentences_a_service"}, []),
    "data_prep.inspect": ({"samples"}, ["DIR"]),
}


def test_every_command_is_among_these():
    modules = [path for package in ("scaler", "data_prep") for path in (ROOT / package).rglob("*.py")]
    commands = [path for path in modules if "\n@command\ndef main(" in path.read_text(encoding="utf-8")]
    assert {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in commands} == set(COMMANDS)


def test_the_options_of_training_are_these_and_no_others():
    assert set(vars(train.parse([]))) == {
        *("deepspeed_config", "recipe", "run_dir", "ranks", "allow_changes", "dry_run", "json"),
        *("local_rank", "overrides"),  # the launcher's, and the recipe's
    }


@pytest.mark.parametrize(
    ("module", "options", "positionals"), [(module, *expected) for module, expected in COMMANDS.items()]
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

"""The options of every command: a small, frozen set, because an option once given is hard to take back."""

import argparse
import json
import os
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from scaler import __main__ as front
from scaler import __version__, dry_run, fill_mask, goodput, plan, status, train
from scaler.config.recipe import RECIPES
from scaler.core import cli, commands
from scaler.core.cli import Parser
from scaler.studies import point

REFERENCE = ROOT / "docs" / "reference" / "commands.md"  # test_documentation.py checks that it is up to date
RUN = {"deepspeed_config", "recipe", "run_dir", "ranks", "allow_changes", "allow_untested_ds_keys"}
# command: options beside --help, --verbose and --quiet, and positional arguments
COMMANDS: dict[str, tuple[set[str], list[str]]] = {
    "prepare": ({"recipe", "processes"}, ["overrides"]),
    "corpus": (
        {"out", "processes", "text_field", "id_field", "text_unit", "hub_config", "hub_split", "hub_revision"}
        | {"max_mib", "heldout_percent", "test_percent", "part_mib", "max_document_mib", "unusable_percent"},
        ["source"],
    ),
    "clean": ({"out", "processes"}, ["corpus", "settings"]),
    "dedup": ({"out", "processes"}, ["text", "settings"]),
    "tokenizer": ({"out"}, ["text", "settings"]),
    "shards": ({"out", "processes"}, ["text", "tokenizer"]),
    "word2vec": ({"out", "threads", "seed"}, ["shards", "tokenizer", "settings"]),
    "rows": ({"out", "processes", "seq_len", "min_tokens"}, ["shards", "tokenizer"]),
    "adopt": ({"tokenizer", "train", "heldout", "test", "out"}, []),
    "verify": ({"processes", "json"}, ["folder"]),
    "inspect": ({"samples"}, ["folder"]),
    "labels": ({"out", "services", "texts_a_service", "sentences_a_service"}, []),
    "train": (RUN | {"dry_run", "json"}, ["overrides"]),
    "dry-run": (RUN | {"json"}, ["overrides"]),
    "status": ({"json"}, ["runs"]),
    "recipe": ({"json", "schema"}, ["recipe", "overrides"]),
    "evaluate": ({"split", "recipe", "json"}, ["model"]),
    "compare": ({"texts", "most", "finetuned", "out", "json"}, ["models"]),
    "fill-mask": ({"top", "json"}, ["model", "sentence"]),
    "embeddings": ({"recipe", "out", "words", "until", "json"}, ["runs"]),
    "finetune": (
        {"data", "validation", "test", "validation_percent", "test_percent", "task", "format", "encoding", "text_field"}
        | {"label_field", "skip_empty", "hub_config", "hub_revision", "learning_rates", "seeds", "epochs", "patience"}
        | {"batch_size", "max_length", "precision", "freeze_embeddings", "from_scratch", "deepspeed_config", "out"}
        | {"json"},
        ["model"],
    ),
    "plan": (
        {"recipe", "deepspeed_config", "hardware", "nodes", "weak", "critical_rows", "noise_scale", "max_hours"}
        | {"max_cost", "allow_untested_ds_keys", "json"},
        ["overrides"],
    ),
    "calibrate": (
        {"recipe", "deepspeed_config", "allow_untested_ds_keys", "hardware", "rows", "seconds", "json"},
        ["out", "overrides"],
    ),
    "study": (
        {"recipe", "deepspeed_config", "nodes", "ranks_per_node", "stages", "offload", "series", "micro_rows"}
        | {"buckets", "steps", "warmup", "write_only", "allow_untested_ds_keys", "json"},
        ["folder", "overrides"],
    ),
    "report": ({"hardware", "out", "json"}, ["study"]),
    "noise-scale": ({"rows", "batches", "steps", "json"}, ["run_dir"]),
    "goodput": (
        {"nodes", "gpus_per_node", "step_seconds", "steps", "every", "save_seconds", "write_seconds", "restart_seconds"}
        | {"replacement_seconds", "mtbf_node_hours", "step_deviation", "elastic", "runs", "seed", "json", "out"},
        [],
    ),
    "sweep": (
        {"recipe", "deepspeed_config", "space", "trials", "workers", "ranks", "allow_untested_ds_keys", "json"},
        ["folder", "overrides"],
    ),
    "preflight": (RUN | {"gpu", "slowest_share", "seconds", "json"}, ["overrides"]),
    "nodes-for-batch": (RUN | {"nodes", "ranks_per_node"}, ["overrides"]),
}
# The libraries whose import takes seconds, or half of one
HEAVY = [
    "torch",
    "transformers",
    "deepspeed",
    "matplotlib",
    "tensorboard",
    "scipy",
    "pyarrow",
    "datasets",
    "tokenizers",
]


@pytest.fixture
def scaler(call):
    """Call the command `scaler` with some words: exit status, output, error output."""
    return lambda *words: call(front.main, *words)


@pytest.fixture(params=COMMANDS)
def parser(request) -> Parser:
    """The parser of each command."""
    return cli.parser_of(request.param)


def shown(parser: Parser) -> list[argparse.Action]:
    """All arguments of a command that its help shows."""
    return [action for action in parser._actions if action.help != argparse.SUPPRESS and action.dest != "help"]


def test_every_command_is_among_these():
    modules = [path for package in ("scaler", "data_prep") for path in (ROOT / package).rglob("*.py")]
    found = [path for path in modules if "\n@command\ndef main(" in path.read_text(encoding="utf-8")]
    others = {"scaler.__main__", "scaler.studies.point"}  # of all commands, and of the ranks of a study
    assert set(commands.COMMANDS) == set(COMMANDS)
    assert {".".join(path.relative_to(ROOT).with_suffix("").parts) for path in found} == {
        *commands.COMMANDS.values(),
        *others,
    }


@pytest.mark.parametrize(("name", "options", "positionals"), [(name, *expected) for name, expected in COMMANDS.items()])
def test_a_command_has_these_options_and_no_others(name, options, positionals):
    parser = cli.parser_of(name)
    assert parser.option_names() == {f"--{option}" for option in options | {"help", "verbose", "quiet"}}
    assert [action.dest for action in shown(parser) if not action.option_strings] == positionals


def test_a_rank_of_a_study_takes_these_options_and_no_others():
    assert point.parser().option_names() == {"--help", "--verbose", "--quiet", "--steps", "--warmup"}


def test_every_option_has_a_sentence_of_help_and_says_what_it_is_without_it(parser):
    for action in shown(parser):
        meaning = parser._get_formatter()._expand_help(action)
        assert len(meaning.partition("(default")[0].split()) >= 2, action.dest
        takes_a_value, needed = action.nargs != 0, action.required
        assert not takes_a_value or needed or "default" in meaning, action.dest


def test_help_of_all_commands_loads_no_large_library():
    program = (
        "import sys; from scaler.core import cli, commands; "
        "texts = [cli.parser_of(name).format_help() for name in commands.COMMANDS]; commands.listing(); "
        f"print(*(name for name in {HEAVY} if name in sys.modules)); sys.exit(len(texts) != {len(COMMANDS)})"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_scaler_alone_lists_all_commands_by_task(scaler, words):
    ended, text, _ = scaler(*words)
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.startswith("  ")]
    assert ended == 0 and [line[0] for line in lines] == list(commands.COMMANDS)
    assert ["status", "Show how runs stand, from their folders alone."] in lines
    assert [line for line in text.splitlines() if line.endswith(":")] == [f"{group}:" for group in commands.GROUPS]


def test_scaler_tells_its_version(scaler):
    assert scaler("--version") == (0, f"scaler {__version__}\n", "")


def test_a_command_is_called_by_its_name(scaler):
    ended, text, _ = scaler("nodes-for-batch", "--nodes", "7", "--ranks-per-node=8", "training.rows=64")
    assert (ended, text) == (0, "4\n")


def test_help_of_a_command_is_the_same_by_every_way_in(scaler, call):
    assert scaler("plan", "--help") == call(plan.main, "--help")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["pln"], "unknown command 'pln'; did you mean 'plan'?"),
        (["xyzzy"], "unknown command 'xyzzy'; known are adopt, calibrate,"),
        (["plan", "--nodez", "1"], "scaler plan: unknown option --nodez; did you mean '--nodes'?"),
        (["plan", "--xyzzy"], "scaler plan: unknown option --xyzzy; see `scaler plan --help`"),
        (["plan", "--stages", "1"], "scaler plan: --stages is an option of `scaler study`, not of this command"),
        (
            ["status", "--run-dir", "x"],
            "--run_dir is an option of `scaler train`, `scaler dry-run`, `scaler preflight`",
        ),
        (["plan", "--hardware"], "scaler plan: --hardware: expected one argument; see `scaler plan --help`"),
        (["evaluate", "x", "--split", "train"], "--split: invalid choice: 'train' (choose from 'test', 'heldout')"),
        (["rows", "a", "--out", "x"], "arguments are required: TOKENIZER, --seq_len; see"),
        (["goodput"], "arguments are required: --step_seconds, --steps, --save_seconds, --restart_seconds; see"),
        (["plan", "--hardware", "x", "--nodes", "1,0"], "--nodes '1,0': whole numbers from 1 on with commas between"),
        (["sweep", "x", "--space", "a", "--trials", "0"], "--trials 0: 1 is the least"),
        (["sweep", "x", "--space", "a", "--trials", "few"], "--trials 'few': a whole number is needed"),
        (["finetune", "x", "--data", "y", "--learning_rates", "-1e-5"], "--learning_rates -1e-05: 0 < rate < 1 is"),
        (["calibrate", "x.yaml", "--rows", "-1,2"], "--rows '-1,2': two rising numbers are needed"),
        (["preflight", "--run_dir", "x", "--seconds", "nan"], "--seconds nan: give more than 0"),
        (["train", "--json"], "--json: a training prints no JSON; add --dry_run"),
        (["train", "--deepspeed_config", "zero11"], "zero11: no such file, and no name in ds_configs/; did you mean"),
        (["inspect"], "arguments are required: DIR; see `scaler inspect --help`"),
        (["inspect", "a", "b"], "scaler inspect: unrecognized arguments: b; see `scaler inspect --help`"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_status_2(scaler, words, said):
    ended, text, error = scaler(*words)
    assert (ended, text) == (2, "") and error.startswith("error: ") and error.count("\n") == 1
    assert said in error


def test_dashes_and_underscores_are_one(tmp_path):
    given = [["--run_dir", "a-b", "--allow_changes"], ["--run-dir=a-b", "--allow-changes"]]
    first, second = (vars(train.parse(words)) for words in given)
    assert first == second and str(first["run_dir"]) == "a-b"


def test_what_stands_behind_two_dashes_is_no_option():
    assert fill_mask.parser().parse(["runs", "--", "--a-b"]).sentence == ["--a-b"]


def test_options_stand_between_positional_arguments():
    found = train.parse(["training.rows=4", "--ranks", "2", "training.steps=2"])
    assert (found.overrides, found.ranks) == (["training.rows=4", "training.steps=2"], 2)


@pytest.mark.parametrize(("word", "verbosity"), [("-v", 1), ("--verbose", 1), ("-q", -1), ("--quiet", -1)])
def test_every_command_can_say_more_or_less(parser, word, verbosity):
    action = next(action for action in parser._actions if word in action.option_strings)
    assert (action.dest, action.const) == ("verbosity", verbosity)


def test_what_is_said_is_normal_by_default():
    assert train.parse([]).verbosity == 0 and train.parse(["-q"]).verbosity == -1


def test_a_deepspeed_configuration_is_a_file_or_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "zero3").write_text("{}")
    found = {text: train.parse(["--deepspeed_config", text]).deepspeed_config for text in ("zero1", "zero3", "my.json")}
    assert found["zero1"] == ROOT / "ds_configs" / "zero1.json"
    assert (str(found["zero3"]), str(found["my.json"])) == ("zero3", "my.json")


def test_numbers_with_commas_are_read_once_each():
    words = ["--step_seconds=1", "--steps=1000", "--save_seconds=1", "--restart_seconds=1"]
    assert goodput.parse([*words, "--nodes", "8,1,8"]).nodes == (8, 1)


def test_the_reference_of_a_command_names_all_its_arguments(parser):
    text = REFERENCE.read_text(encoding="utf-8").partition(f"### `{parser.prog}`\n")[2].partition("\n### ")[0]
    assert parser.description.split("\n")[0] in text
    for action in shown(parser):
        if action.dest != "verbosity":
            assert any(name in text for name in (*action.option_strings, str(action.metavar))), action.dest


def test_the_reference_tells_what_is_required_and_what_is_the_default():
    text = REFERENCE.read_text(encoding="utf-8")
    assert "| `--steps` | optimizer steps of the run **Required.** |" in text
    assert "| `--runs` | runs to simulate (default: 200) |" in text


def complete(line: str) -> set[str]:
    """What the shell offers for a line: the program is started as a completion of the shell starts it."""
    environment = {**os.environ, "_ARGCOMPLETE": "1", "COMP_LINE": line, "COMP_POINT": str(len(line))}
    environment |= {"_ARGCOMPLETE_IFS": "\n", "_ARGCOMPLETE_STDOUT_FILENAME": os.devnull}
    done = subprocess.run(
        ["bash", "-c", f'exec 8>&1 9>&2 1>&2; "{sys.executable}" -m scaler'],
        env={name: value for name, value in environment.items() if name != "_ARGCOMPLETE_STDOUT_FILENAME"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    return {word.strip() for word in done.stdout.split("\n") if word.strip()}


def test_the_shell_completes_commands_and_their_options():
    assert {*COMMANDS, "--version"} <= complete("scaler ")
    assert complete("scaler pre") == {"prepare", "preflight"}
    assert complete("scaler plan --max") == {"--max_hours", "--max_cost"}


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Two runs, one of them started, and a folder of something else."""
    monkeypatch.chdir(tmp_path)
    for name in ("new", "old"):
        (tmp_path / "runs" / name).mkdir(parents=True)
        (tmp_path / "runs" / name / "recipe.yaml").write_text("not: a recipe of this version\n")
    (tmp_path / "runs" / "data").mkdir()
    (tmp_path / "runs" / "old" / "state.json").write_text(json.dumps({"state": "stopped", "by": "SIGTERM"}))
    (tmp_path / "runs" / "old" / "metrics.jsonl").write_text('{"step": 40, "heldout_loss": 2.25}\n')
    before = time.time() - 4050
    for name in ("state.json", "metrics.jsonl"):
        os.utime(tmp_path / "runs" / "old" / name, (before, before))


def test_status_alone_lists_all_runs_a_line_each(runs, call):
    ended, text, _ = call(status.main)
    assert ended == 0
    assert [line.split() for line in text.splitlines()] == [
        ["run", "state", "step", "held-out", "loss", "last", "record"],
        ["runs/new", "None", "0", "of", "?", "-", "-"],
        ["runs/old", "stopped", "40", "of", "?", "2.250", "1h07m", "ago"],
    ]
    assert [run["run"] for run in json.loads(call(status.main, "--json")[1])] == ["runs/new", "runs/old"]


def test_status_without_runs_says_how_to_start_one(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    assert call(status.main) == (0, "no runs in runs/; `scaler train` starts one\n", "")
    assert call(status.main, "--json") == (0, "[]\n", "")


def test_a_recipe_is_printed_with_all_its_values(scaler):
    assert "quickstart" in scaler("recipe")[1].splitlines()
    content = json.loads(scaler("recipe", "quickstart", "training.rows=8", "--json")[1])
    assert content["training"]["rows"] == 8 and content["faults"]["hang_seconds"] == 600
    assert "hang_seconds: 600\n" in scaler("recipe", "quickstart")[1]


def test_the_schema_of_recipes_is_the_one_that_editors_get(scaler):
    assert json.loads(scaler("recipe", "--schema")[1]) == json.loads((RECIPES / "schema.json").read_text())


def test_the_dry_run_is_one_by_both_names(tiny_recipe_file, tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    words = ("--recipe", tiny_recipe_file, "--json")
    assert call(dry_run.main, *words) == call(train.main, *words, "--dry_run")


def test_training_runs_as_a_file_from_any_folder(tiny_recipe_file, run_command, tmp_path):
    done = run_command(
        *(sys.executable, ROOT / "scaler" / "train.py", "--local_rank=0", "--recipe", tiny_recipe_file, "--dry_run"),
        cwd=tmp_path,
        status=0,
        PYTHONPATH="",
    )
    assert "would write\n  runs/tiny/" in done.stdout

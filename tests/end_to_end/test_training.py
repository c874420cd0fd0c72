"""The main job on a small corpus: the real launcher, the real engine; what comes out, what is refused."""

import contextlib
import json
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import ROOT, opened
from limits import limit, wait_until
from on_disk import attempts, metric, records
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline

from scaler import train
from scaler.config.recipe import load
from scaler.data import prepared
from scaler.distributed import devices
from scaler.distributed.world import World, free_port
from scaler.evaluation import heldout
from scaler.model import build, masked_lm
from scaler.training import job, loop
from scaler.training import run as training_run
from scaler.training.progress import Progress

PRECISION = "bf16" if devices.bf16_is_native(torch.device("cpu")) else "fp32"
SETTINGS = ["training.steps=60", "training.log_every=10", "training.evaluate_every=30"]
TRAIN = ROOT / "scaler" / "train.py"


def launch(ranks: int) -> list[object]:
    return ["deepspeed", "--num_gpus", ranks, "--master_port", free_port(), TRAIN]


@pytest.fixture(scope="module")
def trained(tiny_recipe_file, run_command, tmp_path_factory):
    """A run of the launcher on two ranks at ZeRO-2: its folder, and what it said."""
    folder = tmp_path_factory.mktemp("runs")
    done = run_command(
        *launch(2),
        *("--recipe", tiny_recipe_file, "--run_dir", folder / "a", *SETTINGS),
        *("--deepspeed_config", ROOT / "ds_configs" / "zero2.json"),
        cwd=folder,
        status=0,
    )
    return folder / "a", done.stdout


@pytest.fixture
def run(trained):
    return trained[0]


def test_held_out_loss_falls_under_the_unigram_entropy(run):
    losses = metric(run, "heldout_loss")
    assert len(losses) == 3
    assert losses[-1] < metric(run, "heldout_unigram_entropy")[-1] - 0.2


def test_each_step_masks_as_many_as_the_recipe_says_for_it(tiny_recipe_file, tmp_path):
    masked, progress = [], Progress()

    class Engine:
        compute_clock = contextlib.nullcontext()

        def __call__(self, batch):
            masked[-1].add(batch.labels.shape[1])
            return torch.zeros(()), None

        def backward(self, loss):
            pass

        def step(self, rate):
            return 0.0

    falling = ["objective.mask_probability=0.25", "objective.final_mask_probability=0.125", "training.steps=8"]
    arguments = train.parse(["--recipe", str(tiny_recipe_file), "--run_dir", str(tmp_path / "run"), *falling])
    this = job.resolve(arguments, World())
    for _ in range(8):
        masked.append(set())
        loop.train_batch(Engine(), this, progress, World())
        progress.step += 1
        progress.consumed_rows += this.batch.rows
    assert masked == [{8}, {8}, {7}, {6}, {6}, {6}, {5}, {4}]  # round(32 * (0.25 - 0.125 * step / 8)), ties to even


def test_tensorboard_has_every_curve_and_the_filled_masks(run):
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0})
    events.Reload()
    scalars = {
        *("train/loss", "train/learning_rate", "train/gradient_norm", "heldout/loss", "heldout/masked_accuracy"),
        *("heldout/perplexity", "heldout/loss_per_character"),
        *("heldout/unigram_entropy", "speed/tokens_per_second", "speed/share_of_matmul_ceiling"),
        *("speed/memory_bytes", "speed/seconds_left", "checkpoint/stall_seconds"),
        *("speed/slowest_rank", "speed/slowest_rank_to_median"),
    }
    assert scalars == set(events.Tags()["scalars"])
    assert events.Tags()["tensors"] == ["heldout/filled_masks/text_summary"]
    assert [event.value for event in events.Scalars("heldout/loss")] == pytest.approx(metric(run, "heldout_loss"))


def test_the_picture_is_a_png(run):
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")


def test_the_export_has_the_held_out_loss_that_was_logged(run, tiny_recipe_file):
    recipe = load(str(run / "recipe.yaml"))
    network = AutoModelForMaskedLM.from_pretrained(run / "export", attn_implementation=build.ATTENTION).eval()
    reader = prepared.open_prepared(recipe).rows("heldout", recipe, build.first_position(network.config))
    (attempt,) = attempts(run)
    if attempt["ds_config"]["bf16"]["enabled"]:  # in which the run evaluated
        network = network.bfloat16()
    found = heldout.evaluate(masked_lm.MaskedLM(network), reader, 8, World())
    assert found.loss == pytest.approx(metric(run, "heldout_loss")[-1], abs=1e-5)
    assert found.masked_accuracy == pytest.approx(metric(run, "heldout_masked_accuracy")[-1], abs=1e-6)


def test_the_export_is_tied_and_fills_masks_in_plain_transformers(run):
    network = AutoModelForMaskedLM.from_pretrained(run / "export")
    assert network.lm_head.decoder.weight is network.roberta.embeddings.word_embeddings.weight
    fill = pipeline("fill-mask", model=network, tokenizer=AutoTokenizer.from_pretrained(run / "export"))
    guesses = fill(f"kana {fill.tokenizer.mask_token} kazu")
    assert sum(guess["score"] for guess in guesses) <= 1.0 and len({guess["token"] for guess in guesses}) == 5


def test_the_model_card_states_what_was_measured(run):
    card = (run / "export" / "README.md").read_text()
    assert f"{metric(run, 'heldout_loss')[-1]:.3f} nats" in card
    assert "Rows of training have 32 tokens; the tokenizer cuts texts at 38." in card and "4.57.6" in card
    assert "text.txt" in card and "1,671 documents" in card and "learning_rate: 0.01" in card


def test_fill_mask_shows_guesses_of_the_newest_run(run, run_command):
    command = (sys.executable, "-m", "scaler.fill_mask", run.parent, "kana <mask> kazu", "--top", 3)
    assert len(re.findall(r"'.*?' \d+%", run_command(*command, cwd=run, status=0).stdout)) == 3


def test_the_run_folder_repeats_its_settings(run, tiny_recipe_file):
    again = load(str(run / "recipe.yaml"))
    assert again == load(str(tiny_recipe_file), SETTINGS)
    asked = json.loads((run / "ds_config.json").read_text())
    assert asked == json.loads((ROOT / "ds_configs" / "zero2.json").read_text())
    (attempt,) = attempts(run)
    resolved = attempt["ds_config"]
    assert resolved["train_batch_size"] == 12
    assert resolved["train_micro_batch_size_per_gpu"] * resolved["gradient_accumulation_steps"] == 6


def test_progress_lines_say_loss_speed_ceiling_and_time_left(trained):
    line = r"step +\d+/60 \| loss \d\.\d+ \| lr \S+ \| norm \S+ \| [\d,]+ tokens/s \| \d+% of ceiling \| \d+s left"
    assert len(re.findall(line, trained[1])) == 6


def test_filled_masks_show_the_truth_and_guesses(tiny_recipe):
    tokenizer = prepared.open_prepared(tiny_recipe).tokenizer
    text = heldout.filled_masks(*opened(tiny_recipe), tokenizer, World(), count=3)
    assert len(re.findall(r"\*\*\[.+?\]\*\*", text)) == 3 and text.count("guesses:") == 3


def test_unigram_entropy_is_the_cross_entropy_under_the_training_frequencies(tiny_recipe):
    data = prepared.open_prepared(tiny_recipe)
    reader = data.rows("heldout", tiny_recipe, 2)
    counts = data.manifest.unigram_counts()
    rows = np.arange(len(reader.rows))
    labels = reader.fixed(rows).labels.flatten()
    expected = torch.nn.functional.cross_entropy(
        torch.log(torch.from_numpy(counts + 1.0)).expand(len(labels), -1), labels
    )
    assert heldout.unigram_entropy(reader, counts) == pytest.approx(float(expected))


# ---- what is refused: one clear line from however many ranks, and a non-zero exit


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2 and len(lines) == 1, done.stdout[-2000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    return lines[0]


def test_bad_input_is_one_line_from_two_ranks_of_the_launcher(tiny_recipe_file, run_command, tmp_path):
    done = run_command(*launch(2), "--recipe", tiny_recipe_file, "data.folder=nowhere", cwd=tmp_path)
    assert f"run `scaler prepare --recipe {tiny_recipe_file} data.folder=nowhere`" in refusal(done)


def test_a_misspelt_key_of_deepspeeds_section_is_named_and_nothing_is_written(tiny_recipe_file, run_command, tmp_path):
    config = tmp_path / "mine.json"
    config.write_text(json.dumps({"zero_optimization": {"stage": 2, "overlap_com": True}}))
    command = (sys.executable, "-m", "scaler.train", "--recipe", tiny_recipe_file, "--deepspeed_config", config)
    refused = refusal(run_command(*command, cwd=tmp_path))
    assert f"{config}: zero_optimization.overlap_com" in refused and "did you mean 'overlap_comm'?" in refused
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "failure, status, said",
    [
        (torch.OutOfMemoryError("CUDA out of memory.\nmore"), 2, "lower training.max_micro_rows"),
        (RuntimeError("Connection closed by peer [10.0.0.2]\nmore"), 75, "with --run_dir goes on from the last check"),
        (RuntimeError("Connection closed by peer [10.0.0.2]\nmore"), 75, "rank 0: another rank has gone (Conn"),
        (
            RuntimeError("[gloo/buffer.cc:78] Timed out waiting 1800000ms for recv operation to complete"),
            75,
            "in time ([",
        ),
    ],
)
def test_what_happens_to_a_rank_in_the_middle_is_one_line(monkeypatch, call, failure, status, said):
    def fail(*_):
        raise failure

    monkeypatch.setattr(training_run, "run", fail)
    ended, _, printed = call(train.main)
    assert ended == status and said in printed and printed.count("\n") == 1


def test_one_process_without_a_launcher_trains_too(tiny_recipe_file, run_command, tmp_path):
    command = (sys.executable, "-m", "scaler.train", "--recipe", tiny_recipe_file, "training.steps=4")
    run_command(*command, cwd=tmp_path, status=0)
    assert (tmp_path / "runs" / "tiny" / "export" / "model.safetensors").is_file()


@pytest.mark.slow  # tests/end_to_end/test_survival.py has the same without the launcher
def test_a_run_of_the_launcher_is_stopped_by_a_file_and_goes_on_as_one_process(
    tiny_recipe_file, tmp_path, run_command, start_command
):
    run = tmp_path / "run"
    command = [*launch(2), "--recipe", tiny_recipe_file, "--run_dir", run, "training.steps=150", "training.log_every=1"]
    process = start_command(*command, stdout=subprocess.PIPE, stderr=None)
    wait_until((run / "state.json").exists, process)  # its first checkpoint is there
    (run / "STOP").touch()
    said, _ = process.communicate(timeout=limit(400))
    assert process.returncode == 0 and "stopped by a file STOP" in said, said[-3000:]
    step = json.loads((run / "state.json").read_text())["step"]
    assert 0 < step < 150

    done = run_command(sys.executable, "-m", "scaler.train", "--run_dir", run, cwd=tmp_path, status=0)
    where = f"saved by 2 ranks at ZeRO-2 in {PRECISION}, on 1 rank at ZeRO-2 in {PRECISION}"
    assert f"step_{step:08d}, {where}" in done.stdout
    logged = [record["step"] for record in records(run / "metrics.jsonl") if "train_loss" in record]
    assert logged == list(range(1, 151))
    assert (run / "export" / "model.safetensors").is_file()


def test_a_locale_in_which_pytorch_cannot_read_its_files_is_named(tiny_recipe_file, run_command, tmp_path):
    ascii_alone = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = run_command(sys.executable, "-m", "scaler.train", "--recipe", tiny_recipe_file, cwd=tmp_path, **ascii_alone)
    line = refusal(done)
    assert "PyTorch cannot read its own files in this locale's encoding, ANSI_X3.4-1968" in line
    assert line.endswith("set PYTHONUTF8=1, or LC_ALL=C.UTF-8")
    assert not (tmp_path / "runs" / "tiny" / "recipe.yaml").exists()


def test_a_variable_that_is_left_over_is_refused_and_an_address_does_not_matter_to_one_rank(
    tiny_recipe_file, run_command, tmp_path
):
    train = (sys.executable, "-m", "scaler.train", "--recipe", tiny_recipe_file, "--run_dir", "run")
    few = ("training.steps=3", "training.evaluate_every=3")
    line = refusal(run_command(*train, *few, cwd=tmp_path, WORLD_SIZE="8"))
    assert line.startswith(
        "error: WORLD_SIZE=8 contradicts the launcher (none), by which this process is the only rank;"
    )
    left = {
        "MASTER_ADDR": "192.0.2.1",
        "MASTER_PORT": "29500",
        "LOCAL_RANK": "0",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }
    run_command(*train, *few, cwd=tmp_path, status=0, timeout=200, **left)
    assert len(attempts(tmp_path / "run")) == 1

"""What a run survives: stops, kills, bad losses, full disks, damaged checkpoints; and what it refuses to go on with."""

import math
import re
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM

STEPS = 24
# A family is a process that plays its scenarios; a fault of one family leaves the tests of the others alone.
FAMILIES = {
    "alone": "alone",
    "going on": "kept stopped second_ctrl_c finished longer dropout early other_intervals",
    "going on, slow": "three_ranks repeated longer_and_killed nobody_listens sgd sgd_without_momentum",
    "losses": "skipped went_back gave_up spike",
    "losses, slow": "gave_up_later stopped_after_a_skip spike_back",
    "ranks": "occupied hang killed",
    "ranks, slow": "frozen",
    "the end": "log_on_a_full_disk curves_fail tracker_fails no_picture two_dollars nothing_is_removed export_is_lost "
    "on_the_disk",
    "how it stands": "fails_as_it_starts dies_of_a_bug two_without_a_name",
    "disks": "full_disk stopped_on_a_full_disk read_only folder_removed file_in_the_way unreadable "
    "unreadable_rows not_removable log_removed",
    "disks, slow": "full_disk_once slow_disk",
    "bad input": "odd_batch misspelt_key folder_of_something_else below_a_file damaged_rows diverging",
    "damage": "flipped_byte missing_file flipped_digit cut_file all_damaged wrong_fingerprint wrong_probe_loss "
    "other_tokenizer other_rows checkpoint_of_another_model checkpoint_of_another_recipe",
    "damage, slow": "missing_manifest",
    "changes": "other_seed other_clipping other_batch fewer_steps_allowed other_model_allowed other_seed_allowed "
    "other_batch_allowed",
}


class Outcomes:
    """What came of each scenario, by name; its family is played when the first of them is asked for."""

    def __init__(self, worker_figures, recipe: Path) -> None:
        self._figures, self._recipe = worker_figures, recipe
        self._played: dict[str, dict | BaseException] = {}

    def __getitem__(self, scenario: str) -> dict:
        family = next(name for name, scenarios in FAMILIES.items() if scenario in scenarios.split())
        if family not in self._played:
            alone = "-" if family == "alone" else Path(self["alone"]["exported"]).parents[1]
            try:
                self._played[family] = self._figures("scenarios", self._recipe, alone, *FAMILIES[family].split())
            except BaseException as error:
                self._played[family] = error
        played = self._played[family]
        if isinstance(played, BaseException):
            raise played
        return played[scenario]


@pytest.fixture(scope="module")
def outcomes(tiny_recipe_file, worker_figures):
    return Outcomes(worker_figures, tiny_recipe_file)


@pytest.fixture
def outcome(outcomes, request):
    """Of the scenario that the test is named after, or its parameter."""
    return outcomes[getattr(request, "param", request.node.originalname.removeprefix("test_"))]


def series(outcome, name, key="metrics.jsonl"):
    return [record[name] for record in outcome[key] if name in record]


def steps_of(outcome):
    return [record["step"] for record in outcome["metrics.jsonl"] if "train_loss" in record]


def lines(outcome, start="error: "):
    return [line for line in outcome["said"].splitlines() if re.match(rf"([\d :-]+ rank 0 \| )?{start}", line)]


def the_line(outcome):
    """The only line of error that all ranks have said."""
    (line,) = lines(outcome)
    assert "Traceback" not in outcome["said"]
    return line


def came_to_its_end(outcome):
    finished = outcome["state.json"]["state"] == "finished"
    return finished and bool(outcome["exported"]) and outcome["checkpoints"][0] == STEPS


# ---- left alone


def test_alone(outcome):
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    assert len(series(outcome, "train_loss")) == STEPS
    assert len(series(outcome, "checkpoint_stall_seconds")) == 1 + STEPS // 6


def test_kept(outcome, outcomes):
    """The last ones stay, every n-th, and what each of the last calls the best; saving more often changes nothing."""
    assert outcome["manifest"]["progress"]["best_step"] == 24
    assert outcome["checkpoints"] == [24, 22, 20, 12, 10, 0]  # 12 is the best that 22 knew
    assert outcome["manifest"]["fingerprint"] == outcomes["alone"]["manifest"]["fingerprint"]


@pytest.mark.slow
def test_three_ranks(outcome, outcomes):
    """Another world size and stage give the same losses but for rounding, and a model whose decoder is tied."""
    alone = outcomes["alone"]
    assert outcome["statuses"] == [[0, 0, 0]] and came_to_its_end(outcome)
    assert series(outcome, "train_loss") == pytest.approx(series(alone, "train_loss"), abs=1e-4)
    assert series(outcome, "heldout_loss")[0] == pytest.approx(series(alone, "heldout_loss")[0], abs=1e-5)
    network = AutoModelForMaskedLM.from_pretrained(outcome["exported"])
    assert network.lm_head.decoder.weight is network.roberta.embeddings.word_embeddings.weight


def test_the_environment_names_what_a_result_hangs_on(outcomes):
    (attempt,) = outcomes["alone"]["environment.json"]["attempts"]
    assert attempt["ranks"] == 2 and attempt["seed"] == 0 and attempt["packages"]["deepspeed"]
    assert re.fullmatch("[0-9a-f]{40}(\\+changes)?", attempt["commit"])
    assert sum(attempt["hosts"].values()) == 2 and attempt["processor"] and attempt["cores"] >= 1
    assert attempt["ds_config"]["train_batch_size"] == 12


@pytest.mark.slow
def test_repeated(outcome, outcomes):
    """A run folder's recipe repeats the run, to the last bit."""
    for name in ("train_loss", "heldout_loss", "train_gradient_norm"):
        assert series(outcome, name) == series(outcomes["alone"], name)


@pytest.mark.parametrize(
    "outcome", [pytest.param("nobody_listens", marks=pytest.mark.slow), "folder_removed", "log_removed"], indirect=True
)
def test_it_comes_to_its_end_all_the_same(outcome):
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)


# ---- stopped politely


def test_stopped(outcome, outcomes):
    """Each way saves at once and ends with status 0; the run that went on is the uninterrupted one, bit for bit."""
    assert outcome["statuses"] == [[0, 0]] * 6 and came_to_its_end(outcome)
    assert [state["by"] for state in outcome["states"]] == ["SIGTERM", "SIGUSR1", "Ctrl-C", "SIGHUP", "a file STOP"]
    assert [state["step"] for state in outcome["states"]] == [4, 9, 13, 16, 18]
    assert all(state["state"] == "stopped" for state in outcome["states"])
    for name in ("train_loss", "train_learning_rate", "train_gradient_norm", "heldout_loss"):
        assert series(outcome, name) == series(outcomes["alone"], name)
    assert outcome["manifest"]["progress"] == outcomes["alone"]["manifest"]["progress"]
    assert outcome["manifest"]["fingerprint"] == outcomes["alone"]["manifest"]["fingerprint"]
    assert len(outcome["environment.json"]["attempts"]) == 6
    assert len(lines(outcome, "resumed from")) == 5


@pytest.mark.parametrize(
    "outcome",
    ["dropout", *(pytest.param(name, marks=pytest.mark.slow) for name in ("sgd", "sgd_without_momentum"))],
    indirect=True,
)
def test_at_an_equal_world_size_an_interruption_changes_no_bit(outcome):
    assert outcome["statuses"] == [[0, 0]] * 2 and "stopped by SIGTERM after step 10" in outcome["said"]
    assert series(outcome, "train_loss") == [r["train_loss"] for r in outcome["alone"] if "train_loss" in r]


def test_second_ctrl_c(outcome):
    assert outcome["statuses"] == [[130]] and "stopped by Ctrl-C" in outcome["said"]
    assert "Traceback" not in outcome["said"] and outcome["checkpoints"][0] == 6


def test_finished(outcome):
    assert outcome["statuses"] == [[0], [0]] and "this run is finished" in outcome["said"]
    assert len(outcome["environment.json"]["attempts"]) == 1


def test_longer(outcome):
    assert outcome["statuses"] == [[0], [0]] and came_to_its_end(outcome)
    assert "changed, as asked for: training.steps: 12 -> 24" in outcome["said"]
    assert steps_of(outcome) == list(range(1, STEPS + 1))


@pytest.mark.slow
def test_longer_and_killed(outcome):
    """It is no finished run any more, and the same command goes on."""
    assert outcome["statuses"] == [[0], [-9], [0]] and came_to_its_end(outcome)
    assert outcome["state"]["state"] == "running" and outcome["state"]["step"] == 12


def test_occupied(outcome):
    assert outcome["statuses"] == [[2]] and "another run is at work in it" in the_line(outcome)


# ---- losses and gradients


def test_skipped(outcome, outcomes):
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    (fault,) = outcome["faults.jsonl"]
    assert fault["verdict"] == "batch skipped" and fault["step"] == 11 and fault["rows"] == [120, 132]
    assert math.isfinite(fault["loss_by_rank"][0]) and math.isnan(fault["loss_by_rank"][1])
    assert outcome["manifest"]["progress"]["updates"] == STEPS - 1
    before, alone = series(outcome, "train_loss"), series(outcomes["alone"], "train_loss")
    assert before[:10] == alone[:10] and before[11:] != alone[11:]
    assert all(math.isfinite(loss) for loss in before[11:])


def test_went_back(outcome):
    """Three are skipped, the fourth in a row has the run go back to step 6 and step over what it had read."""
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    verdicts = [fault["verdict"] for fault in outcome["faults.jsonl"]]
    assert verdicts == ["batch skipped"] * 3 + ["back to a checkpoint"]
    progress = outcome["manifest"]["progress"]
    assert progress["step"] == STEPS and progress["consumed_rows"] == 12 * (STEPS + 12 - 6)
    assert progress["updates"] == STEPS
    assert steps_of(outcome) == list(range(1, STEPS + 1))


def test_gave_up(outcome):
    assert outcome["statuses"] == [[2, 2]] and not outcome["exported"]
    assert outcome["state.json"]["state"] == "failed"
    verdicts = [fault["verdict"] for fault in outcome["faults.jsonl"]]
    assert verdicts.count("back to a checkpoint") == 2 and verdicts[-1] == "run stopped"
    # the first return is to the newest checkpoint, the second to the one before
    assert [re.search(r"step_0+(\d)", line)[1] for line in lines(outcome, "resumed from")] == ["6", "0"]
    assert outcome["checkpoints"] == [0]  # the later one is no part of the run any more
    assert "lower optimizer.learning_rate" in the_line(outcome)


@pytest.mark.slow
def test_gave_up_later(outcome):
    """Each return is to the checkpoint before the last one's."""
    assert outcome["statuses"] == [[2, 2]]
    assert [re.search(r"step_0+(\d)", line)[1] for line in lines(outcome, "resumed from")] == ["8", "6", "4"]


@pytest.mark.slow
def test_stopped_after_a_skip(outcome):
    """It is saved all the same."""
    del outcome["state.json"]["written"]
    assert outcome["state.json"] == {"state": "stopped", "step": 11, "steps": STEPS, "by": "SIGTERM"}
    assert outcome["statuses"] == [[0, 0]] and outcome["checkpoints"][0] == 11


@pytest.mark.parametrize(
    ("outcome", "verdict", "steps"),
    [
        ("spike", "spike", 30),
        pytest.param("spike_back", "back to a checkpoint", 30 + 26 - 24, marks=pytest.mark.slow),
    ],
    indirect=["outcome"],
)
def test_spike(outcome, verdict, steps):
    (fault,) = outcome["faults.jsonl"]
    assert fault["verdict"] == verdict and fault["step"] == 26 and outcome["state.json"]["state"] == "finished"
    assert outcome["manifest"]["progress"]["consumed_rows"] == 12 * steps


def test_early(outcome):
    """The run stops two evaluations after the best, and exports that one."""
    assert outcome["statuses"] == [[0, 0]] and outcome["exported"]
    assert "stopped early" in outcome["said"]
    progress = outcome["manifest"]["progress"]
    assert progress["worse"] == 2 and progress["step"] == progress["best_step"] + 6 < STEPS
    assert f"step_{progress['best_step']:08d}, saved by" in outcome["said"]
    assert progress["best_step"] in outcome["checkpoints"]
    assert outcome["state.json"]["step"] == progress["step"]


# ---- ranks


def test_hang(outcome):
    assert outcome["statuses"] == [[75, 75]]
    assert "rank 1 on" in the_line(outcome) and "the same command goes on" in the_line(outcome)
    assert set(outcome["reports"]) == {"rank_00000.txt", "rank_00001.txt"}
    assert "sleep_for_ever" in outcome["reports"]["rank_00001.txt"]
    assert "backward" in outcome["reports"]["rank_00000.txt"]


@pytest.mark.slow
def test_frozen(outcome):
    assert outcome["statuses"] == [[75]]
    assert "rank 1 hangs and does not answer" in lines(outcome)[0]


def test_killed(outcome, outcomes):
    """The other rank ends by itself, and three ranks at ZeRO-3 finish what two at ZeRO-2 began."""
    assert outcome["statuses"] == [[75, -9], [0, 0, 0]] and came_to_its_end(outcome)
    assert "another rank has gone" in lines(outcome)[0] and "Traceback" not in outcome["said"]
    assert outcome["manifest"]["progress"]["digest"] == outcomes["alone"]["manifest"]["progress"]["digest"]
    assert series(outcome, "train_learning_rate") == series(outcomes["alone"], "train_learning_rate")
    assert series(outcome, "train_loss") == pytest.approx(series(outcomes["alone"], "train_loss"), abs=1e-4)


# ---- disks


@pytest.mark.slow
def test_full_disk_once(outcome):
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    assert "the checkpoint of step 6 could not be saved: rank 1: " in outcome["said"]
    assert "the disk is full" in outcome["said"] and 6 not in outcome["checkpoints"]


@pytest.mark.parametrize(
    ("outcome", "checkpoints", "said"),
    [
        ("full_disk", [0], ("3 in a row; training stopped", "the disk is full")),
        ("stopped_on_a_full_disk", [6, 0], ["stopped by SIGTERM, and could not save"]),
        ("read_only", [], ["not writable"]),  # found before the first step
    ],
    indirect=["outcome"],
)
def test_a_disk_that_takes_no_checkpoint_ends_the_run(outcome, checkpoints, said):
    assert outcome["statuses"] == [[2, 2]] and outcome["checkpoints"] == checkpoints
    assert all(words in the_line(outcome) for words in said) and bool(series(outcome, "train_loss")) == bool(
        checkpoints
    )


@pytest.mark.slow
def test_slow_disk(outcome):
    """Writing is no hanging."""
    assert outcome["statuses"] == [[0, 0]] and outcome["state.json"]["state"] == "finished"


# ---- what is no part of the result, and the end itself


def went_on(outcome, steps, ranks=2):
    """It came to its end all the same, with all its measurements, and not one traceback."""
    assert outcome["statuses"] == [[0] * ranks] and outcome["state.json"]["state"] == "finished" and outcome["exported"]
    assert steps_of(outcome) == list(range(1, steps + 1)) and "Traceback" not in outcome["said"]


def test_log_on_a_full_disk(outcome):
    """What could not be written is there in the end, once each."""
    went_on(outcome, 12)
    assert outcome["said"].count("metrics.jsonl: No space left on device; what is missing there is written with a") == 1
    assert series(outcome, "heldout_loss") and outcome["metrics.jsonl"][0]["step"] == 0


def test_curves_fail(outcome):
    went_on(outcome, 12)
    assert outcome["said"].count("TensorBoard's curves end here (") == 1 and "Input/output error" in outcome["said"]


def test_tracker_fails(outcome):
    went_on(outcome, 12)
    assert outcome["said"].count("DeepSpeed's monitors fail, and write no more: ") == 1


def test_no_picture(outcome):
    went_on(outcome, 6, ranks=1)
    assert "no picture of the loss: " in outcome["said"] and "done in " in outcome["said"]


def test_two_dollars(outcome):
    went_on(outcome, 6, ranks=1)
    assert outcome["drawn"]


def test_nothing_is_removed(outcome):
    went_on(outcome, STEPS)


def test_export_is_lost(outcome):
    """It is made again, bit for bit, and what is damaged stays beside it; without a checkpoint nothing is begun."""
    assert outcome["statuses"] == [[0]] * 7 and outcome["whole"] == [True] * 6
    assert outcome["said"].count("this run is finished, and its export has to be made again") == 5
    assert outcome["said"].count("this run is finished; its model is in") == 1
    assert outcome["aside"] == ["export.damaged", "export.damaged-2", "export.damaged-3", "export.damaged-4"]
    assert outcome["notes"] == "mine"
    assert outcome["last"] == [2] and "no checkpoint to go on from; name another" in the_line(outcome["in the end"])
    for name in ("metrics.jsonl", "state.json", "environment.json"):
        assert outcome["in the end"][name] == outcome[name]


def test_on_the_disk(outcome):
    """The export is on the disk before the run says that it is finished."""
    flushed = outcome["flushed"]
    began, finished = flushed.index("export.partial"), flushed.index("state finished")
    assert {f"export.partial/{name}" for name in outcome["files"]} <= set(flushed[:began])
    assert "metrics.jsonl" in flushed[:finished] and "." in flushed[began:finished]


# ---- how it stands


def test_fails_as_it_starts(outcome):
    assert outcome["statuses"] == [[2], [0]]
    assert outcome["state"]["state"] == "failed" and "metrics.jsonl: Input/output error" in outcome["state"]["why"]


def test_dies_of_a_bug(outcome):
    assert outcome["statuses"] == [[1]] and "ZeroDivisionError" in outcome["said"]
    assert outcome["state.json"]["state"] == "failed" and outcome["state.json"]["why"] == "ZeroDivisionError: a bug"


def test_two_without_a_name(outcome):
    assert outcome["statuses"] == [[0, 0]]
    assert outcome["runs"] == ["tiny", "tiny-2"] and outcome["all exported"]


# ---- what cannot begin


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("odd_batch", "training.rows=6 or 8"),
        ("misspelt_key", "did you mean 'steps'?"),
        ("folder_of_something_else", "is neither new nor a run"),
        ("below_a_file", "file is a file; name another folder"),
        ("damaged_rows", "-00000-0000.rows: "),
        ("diverging", "lower optimizer.learning_rate"),
        ("file_in_the_way", "there is a file in the way"),
    ],
    indirect=["outcome"],
)
def test_bad_input_is_one_line_from_two_ranks(outcome, said):
    assert outcome["statuses"] == [[2, 2]] and not outcome["exported"] and said in the_line(outcome)


# ---- checkpoints that are not what they were


@pytest.mark.parametrize(
    ("outcome", "named"),
    [
        ("flipped_byte", "step_00000018/rank_00001.safetensors: its checksum is not the manifest's"),
        ("missing_file", "step_00000018/rank_00000.safetensors: missing"),
        ("flipped_digit", "step_00000018/manifest.json: "),
        pytest.param("missing_manifest", "step_00000018/manifest.json: missing or damaged", marks=pytest.mark.slow),
        ("cut_file", "step_00000018/rank_00000.safetensors: 1000 bytes where"),
    ],
    indirect=["outcome"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(outcome, named, outcomes):
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    assert named in outcome["said"] and "the one before is used" in outcome["said"]
    assert "/step_00000012, saved by 2 ranks" in outcome["said"]
    assert series(outcome, "train_loss") == series(outcomes["alone"], "train_loss")


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("all_damaged", "no checkpoint is whole"),
        ("wrong_fingerprint", "exp_avg has the fingerprint"),
        ("wrong_probe_loss", "the loss on the probe batch was 1.50000"),
        ("other_tokenizer", "made with the tokenizer 00000000"),
        ("other_rows", "trained on other rows than"),
        ("other_seed", "recipe.yaml: the run began with seed=0, and now it is 5"),
        ("other_clipping", "recipe.yaml: the run began with gradient_clipping=1.0, and now it is 0.5"),
        ("other_batch", "recipe.yaml: the run began with training.rows=12, and now it is 24"),
        ("fewer_steps_allowed", "training.steps=10, but "),
        ("other_model_allowed", "recipe.yaml: the run has model.hidden_size=32, and not 64; name another --run_dir"),
        ("unreadable", "rank_00000.safetensors: Input/output error (on "),
        ("unreadable_rows", "heldout.rows: Input/output error (on "),
        ("not_removable", "step_00000024.partial: Permission denied (on "),
        ("checkpoint_of_another_model", "manifest.json: the run has model.intermediate_size=128, and not 64"),
        ("checkpoint_of_another_recipe", "manifest.json: the run began with optimizer.learning_rate=0.0001"),
    ],
    indirect=["outcome"],
)
def test_what_cannot_go_on_is_refused_in_one_line(outcome, said):
    assert outcome["statuses"] == [[2, 2]] and not outcome["exported"] and said in the_line(outcome)
    assert len(outcome["environment.json"]["attempts"]) == 1  # that of the run; a refused start writes nothing


@pytest.mark.parametrize(
    ("outcome", "said", "rows"),
    [
        ("other_seed_allowed", "changed, as asked for: seed: 0 -> 5", 12 * STEPS),
        ("other_batch_allowed", "changed, as asked for: training.rows: 12 -> 24", 12 * 18 + 24 * 6),
    ],
    indirect=["outcome"],
)
def test_a_change_that_was_asked_for_is_made_and_said(outcome, said, rows):
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    assert said in outcome["said"] and outcome["manifest"]["progress"]["consumed_rows"] == rows


def test_other_intervals(outcome, outcomes):
    """What decides nothing of what is learned may change without a word."""
    assert outcome["statuses"] == [[0, 0]] and came_to_its_end(outcome)
    assert outcome["manifest"]["fingerprint"] == outcomes["alone"]["manifest"]["fingerprint"]

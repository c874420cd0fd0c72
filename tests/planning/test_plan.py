"""The plan as text and JSON, its answers to bad input, and the table of GPU memory."""

import json

import pytest
from conftest import ROOT
from refusals import refusal

from scaler.core.errors import ScalerError
from scaler.planning.gpu_memory import gpu_memory_table


def test_the_plan_as_text_and_json(planned):
    options = ("--hardware", "p5.48xlarge", "--nodes", "1,2,4", "--weak", "training.rows=64", "training.steps=1000")
    status, output, error = planned(*options, "--json")
    assert status == 0, error
    content = json.loads(output)
    assert [line["nodes"] for line in content["points"]] == [1, 2, 4]
    assert [line["rows"] for line in content["points"]] == [64, 128, 256]
    for line in content["points"]:
        steps = 1000 * 64 / line["rows"]
        assert line["hours"] == pytest.approx(steps * line["step_seconds"] / line["goodput"] / 3600)
        assert line["cost"] == pytest.approx(line["hours"] * line["nodes"] * 55.04)
        assert line["tokens_per_second"] == pytest.approx(line["rows"] * 32 / line["step_seconds"])
    assert content["hardware"]["measured"] == []
    status, text, _ = planned(*options)
    assert status == 0 and "measured of the hardware: nothing" in text and "ZeRO" in text


def test_nodes_that_cannot_share_the_batch_are_shown_with_the_reason(planned):
    status, output, _ = planned("--hardware", "p5.48xlarge", "--nodes", "1,16", "training.rows=64")
    assert status == 0 and "training.rows=64 cannot be shared by 128 ranks" in output


def test_a_budget_is_kept(planned):
    options = (
        "--hardware",
        "p5.48xlarge",
        "--nodes",
        "1,2,4,8",
        "training.rows=64",
        "training.steps=1000000",
        "--json",
    )
    points = json.loads(planned(*options)[1])["points"]
    hours = sorted(line["hours"] for line in points)
    content = json.loads(planned(*options, "--max_hours", str(hours[1] * 1.001))[1])
    assert content["within"]["hours"] <= hours[1] * 1.001
    assert content["within"]["cost"] == min(p["cost"] for p in points if p["hours"] <= hours[1] * 1.001)
    cost = max(line["cost"] for line in points)
    assert json.loads(planned(*options, "--max_cost", str(cost))[1])["within"]["hours"] == hours[0]
    assert "nothing is within the budget: the fastest takes" in planned(*options[:-1], "--max_hours", "1e-9")[1]


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--hardware", "p5.48xlarg"), "did you mean 'p5.48xlarge'?"),
        (("--hardware", "p5.48xlarge", "--nodes", "0"), "whole numbers from 1 on"),
        (("--hardware", "p5.48xlarge", "--nodes", "1,x"), "whole numbers from 1 on"),
        (("--hardware", "p5.48xlarge", "--nodes", "3", "training.rows=64"), "cannot be shared by 24 ranks"),
        (("--hardware", "dgx-h100", "--max_cost", "5"), "has no price"),
        (("--hardware", "dgx-h100", "--max_hours", "nan"), "--max_hours nan: give a limit from 0 on"),
        (("--hardware", "dgx-h100", "--max_hours", "-1"), "--max_hours -1: give a limit from 0 on"),
        (("--hardware", "p5.48xlarge", "training.row=3"), "did you mean 'rows'?"),
        (("--hardware", "p5.48xlarge", "--deepspeed_config", "none.json"), "no such file"),
    ],
)
def test_bad_input_is_one_line(planned, arguments, said):
    status, _, error = planned(*arguments)
    assert status == 2 and said in error and "Traceback" not in error


def test_what_training_refuses_of_a_deepspeed_configuration_is_not_planned(planned, tmp_path):
    file, options = tmp_path / "mine.json", ("--hardware", "p5.48xlarge", "--nodes", "1", "training.rows=64")
    file.write_text('{"prescale_gradients": false}')
    status, _, error = planned(*options, "--deepspeed_config", file)
    assert status == 2 and "prescale_gradients: this project was never run with it" in error
    assert planned(*options, "--deepspeed_config", file, "--allow_untested_ds_keys")[0] == 0
    file.write_text('{"fp16": {"enabled": true}}')
    status, _, error = planned(*options, "--deepspeed_config", file)
    assert status == 2 and "fp16 is not supported" in error


def test_a_training_that_fits_nowhere_says_what_would(planned, tmp_path):
    file = tmp_path / "small.yaml"
    file.write_text("{name: small, devices: 1, memory_bytes: 1.0e+5, flops: {fp32: 1.0e+12}, memory_bandwidth: 1.0e+9, "
                    "inside: 1.0e+9, between: 1.0e+9}")  # fmt: skip
    assert "try ZeRO-3, optimizer offload or more nodes" in refusal(
        planned("--hardware", file, "--nodes", "1", "training.rows=8")
    )


def test_nodes_that_fail_before_they_can_keep_a_step_are_refused(planned, tmp_path):
    file = tmp_path / "frail.yaml"
    file.write_text("{name: frail, devices: 1, memory_bytes: 1.0e+9, flops: {fp32: 1.0e+12}, memory_bandwidth: 1.0e+9, "
                    "inside: 1.0e+9, between: 1.0e+9, mtbf_node_hours: 1.0e-9}")  # fmt: skip
    status, _, error = planned("--hardware", file, "--nodes", "1", "training.rows=8")
    assert status == 2 and "mtbf_node_hours=1e-09, but nodes that fail so often keep no step" in error


def test_on_a_slow_network_each_gradient_goes_to_its_owner_alone(planned, tmp_path):
    file = tmp_path / "slow.yaml"
    file.write_text("{name: slow, devices: 1, memory_bytes: 1.0e+9, flops: {fp32: 1.0e+12}, memory_bandwidth: 1.0e+9, "
                    "inside: 1.0e+5, between: 1.0e+5}")  # fmt: skip
    arguments = ("--hardware", file, "--nodes", "2", "training.rows=8")
    status, output, _ = planned(*arguments)
    assert status == 0 and "on 2 nodes ZeRO-1, use_multi_rank_bucket_allreduce false, with 4 x 1 would take" in output
    (told,) = json.loads(planned(*arguments, "--json")[1])["other_stages"]
    chosen = planned(*arguments, "--deepspeed_config", ROOT / "ds_configs" / "zero1_least_traffic.json", "--json")[1]
    content = json.loads(chosen)
    assert content["other_stages"] == []
    assert content["points"][0]["step_seconds"] == told["step_seconds"]


def test_the_table_of_gpu_memory_says_what_fits_and_with_which_micro_batch(planned):
    rows = gpu_memory_table(["quickstart"], ["v100-16", "h100"])
    assert [(row["gpus"], row["gpu"], row["precision"]) for row in rows] == [
        (1, "v100-16", "fp32"), (1, "h100", "bf16"), (8, "v100-16", "fp32"), (8, "h100", "bf16")
    ]  # fmt: skip
    assert all(row["fits"] and row["most_micro_rows"] >= row["micro_rows"] > 0 for row in rows)
    alone, shared = (row["peak_bytes"] for row in rows if row["gpu"] == "h100")
    assert shared < alone
    with pytest.raises(ScalerError, match="did you mean 'h100'"):
        gpu_memory_table(["quickstart"], ["h10"])

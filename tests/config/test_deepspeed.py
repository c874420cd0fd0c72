"""DeepSpeed's JSON: what ships, how the batch is solved, what is filled in, and what contradicts the recipe."""

import json
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from deepspeed.runtime.precision_config import get_bfloat16_config
from hypothesis import given, settings
from hypothesis import strategies as st
from refusals import error_of

from scaler.config import deepspeed as ds_config
from scaler.config.batch import solve_batch
from scaler.config.recipe import load
from scaler.core.errors import ScalerError
from scaler.distributed import devices

SHIPPED = sorted((ROOT / "ds_configs").glob("*.json"))
HERE = Path("mine.json")
AUTO = {
    **dict.fromkeys(("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps"), "auto"),
    "bf16": {"enabled": "auto"},
    "zero_optimization": {"stage": 2},
}


def resolve(content: dict, native_bf16: bool = False, ranks: int = 2, rows: int = 48, **options: bool) -> dict:
    recipe = load("quickstart", [f"training.rows={rows}", "training.max_micro_rows=16"])
    solved = solve_batch(rows, ranks, 16)
    return ds_config.resolve(content, HERE, recipe, solved, native_bf16, **options)


def test_the_shipped_files_differ_in_zero_alone():
    contents = [ds_config.read(path) for path in SHIPPED]
    assert [path.stem for path in SHIPPED] == [
        "zero0",
        "zero1",
        "zero1_least_traffic",
        "zero2",
        "zero2_offload",
        "zero3",
    ]
    assert [ds_config.zero_stage(content) for content in contents] == [0, 1, 1, 2, 2, 3]
    rest = [{name: value for name, value in content.items() if name != "zero_optimization"} for content in contents]
    assert all(content == rest[0] for content in rest)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_resolves_to_plain_values(path):
    resolved = resolve(ds_config.read(path))
    assert "auto" not in json.dumps(resolved)
    assert resolved["zero_optimization"] == ds_config.read(path)["zero_optimization"]


@settings(deadline=None)
@given(per_rank=st.integers(1, 200), ranks=st.integers(1, 64), max_micro_rows=st.integers(1, 64))
def test_the_micro_batch_is_the_largest_that_divides_and_fits(per_rank, ranks, max_micro_rows):
    batch = solve_batch(per_rank * ranks, ranks, max_micro_rows)
    assert batch.micro_rows * batch.accumulation * batch.ranks == batch.rows == per_rank * ranks
    fitting = [n for n in range(1, max_micro_rows + 1) if per_rank % n == 0]
    assert batch.micro_rows == max(fitting)


@pytest.mark.parametrize(
    "rows, ranks, message",
    [
        (10, 4, "use training.rows=8 or 12, or one of 1, 2, 5 ranks"),
        (8, 3, "use training.rows=6 or 9, or one of 1, 2, 4 ranks"),
        (3, 8, "use training.rows=8, or one of 1, 3 ranks"),
    ],
)
def test_a_batch_that_ranks_cannot_share_names_the_nearest_that_they_can(rows, ranks, message):
    with pytest.raises(ScalerError, match=f"training.rows={rows} cannot be shared equally by {ranks} ranks") as refused:
        solve_batch(rows, ranks, 64)
    assert message in str(refused.value)


def test_auto_is_filled_in_from_the_recipe():
    resolved = resolve(AUTO)
    batch = [resolved[name] for name in list(AUTO)[:3]]
    assert batch == [48, 12, 2]


def test_a_file_may_leave_the_batch_out_or_repeat_it():
    assert resolve({}) == resolve({"train_batch_size": 48, "gradient_accumulation_steps": 2})


@pytest.mark.parametrize("native", [True, False])
def test_bf16_auto_follows_the_hardware_and_a_fixed_value_does_not(native):
    assert resolve(AUTO, native)["bf16"]["enabled"] is native
    assert resolve({**AUTO, "bf16": {"enabled": not native}}, native)["bf16"]["enabled"] is not native
    assert resolve({}, native)["bf16"].get("enabled", False) is False


@pytest.mark.parametrize("enabled", [True, 1])
def test_the_precision_is_the_one_that_deepspeed_takes_from_the_same_value(enabled):
    resolved = resolve({"bf16": {"enabled": enabled}}, False)
    assert ds_config.precision_of(resolved) == "bf16"
    assert get_bfloat16_config(resolved).enabled is True


def test_the_content_that_was_read_stays_as_it_was():
    before = json.dumps(AUTO)
    resolve(AUTO)
    assert json.dumps(AUTO) == before


@pytest.mark.parametrize(
    "content, message",
    [
        ({"train_batch_size": 64}, "train_batch_size=64, but the recipe's training.rows make it 48 on 2 ranks"),
        (
            {"train_micro_batch_size_per_gpu": 16},
            "train_micro_batch_size_per_gpu=16, but the recipe's training.rows and training.max_micro_rows make it 12",
        ),
        ({"gradient_accumulation_steps": 1}, "gradient_accumulation_steps=1, but the recipe's training.rows"),
        ({"optimizer": {"type": "Adam"}}, "'optimizer' belongs to the optimizer section of the recipe (quickstart)"),
        ({"scheduler": {"type": "WarmupLR"}}, "'scheduler' belongs to the schedule section of the recipe"),
        ({"fp16": {"enabled": True}}, "fp16 is not supported"),
        ({"fp16": {"enabled": "auto"}}, "fp16 is not supported"),
        ({"bf16": {"enabled": "yes"}}, "bf16.enabled='yes', but true, false or \"auto\""),
        ({"zero_optimization": {"round_robin_gradients": True}}, "round_robin_gradients"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "leaves no norm"),
        ({"zero_optimization": {"offload_optimizer": {"device": "nvme"}}}, "offload_optimizer.device='nvme', but"),
        ({"zero_optimization": {"offload_param": {"device": "nvme"}}}, "offload_param.device='nvme', but"),
        ({"zero_optimization": {"stage": 3, "mics_shard_size": 2}}, "mics_shard_size=2, but"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "zero_hpz_partition_size=2, but"),
        ({"bf16": {"check_grad_overflow": False}}, "check_grad_overflow"),
        ({"steps_per_print": "auto"}, 'steps_per_print is "auto", but nothing decides it'),
        ({"gradient_clipping": "auto"}, "a number from 0 on is needed"),
        ({"gradient_clipping": float("nan")}, "gradient_clipping=nan, but a number from 0 on is needed"),
        (
            {"zero_optimization": {"stage": 2, "reduce_bucket_size": "auto"}},
            'zero_optimization.reduce_bucket_size is "auto", but nothing decides it',
        ),
    ],
)
def test_what_contradicts_the_recipe_is_refused_with_both_places(content, message):
    error = error_of(resolve, content)
    assert error.startswith("mine.json: ")
    assert message in error


@pytest.mark.parametrize(
    ("zero", "message"),
    [
        ({"stage": 4}, "stage=4, but ZeRO has the stages 0, 1, 2 and 3"),
        ({"stage": "2"}, "stage='2', but ZeRO has the stages"),
        ({"stage": True}, "stage=True, but ZeRO has the stages"),
        ({"reduce_bucket_size": "5e8"}, "reduce_bucket_size='5e8', but a number from 1 on is needed"),
        ({"reduce_bucket_size": -1}, "reduce_bucket_size=-1, but a number from 1 on is needed"),
        ({"reduce_bucket_size": float("nan")}, "reduce_bucket_size=nan, but a number from 1 on is needed"),
        ({"offload_optimizer": "cpu"}, "offload_optimizer='cpu', but an object of settings is needed, such as"),
        ({"offload_param": [1]}, "offload_param=[1], but an object of settings is needed, such as"),
    ],
)
def test_a_wrong_type_is_refused_when_the_file_is_read(tmp_path, zero, message):
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"zero_optimization": zero}))
    assert error_of(ds_config.read, path).startswith(f"{path}: zero_optimization.{message}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"curriculum_learning": {"enabled": True}}, "curriculum_learning: this project was never run with it; remove"),
        ({"gradient_predivide_factor": 2}, "gradient_predivide_factor: this project was never run with it"),
        (
            {"prescale_gradients": True, "elasticity": {}},
            "prescale_gradients, elasticity: this project was never run wi",
        ),
        ({"zero_optimization": {"zero_quantized_weights": True}}, "zero_optimization.zero_quantized_weights: this"),
        (
            {"zero_optimization": {"reduce_bucket": 5}},
            "with it; did you mean 'reduce_bucket_size'? Otherwise remove it, or add --allow_untested_ds_keys",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu", "super_offload": True}}},
            "zero_optimization.offload_optimizer.super_offload: this",
        ),
    ],
)
def test_a_key_that_nobody_tried_is_refused_unless_it_is_allowed(content, message):
    error = error_of(resolve, content)
    assert message in error and error.startswith("mine.json: ")
    assert error.endswith("or add --allow_untested_ds_keys")
    allowed = resolve(content, allow_untested=True)
    assert {name: allowed[name] for name in content} == content


def test_a_key_that_gives_wrong_results_is_never_allowed():
    content = {"zero_optimization": {"round_robin_gradients": True, "zero_quantized_weights": True}}
    with pytest.raises(ScalerError, match="round_robin_gradients gives wrong weights"):
        resolve(content, allow_untested=True)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_key_of_a_shipped_configuration_is_a_tried_one(path):
    assert ds_config.untested_keys(json.loads(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ([], ("exp_avg", "exp_avg_sq")),
        (["optimizer.name=sgd"], ("momentum_buffer",)),
        (["optimizer.name=sgd", "optimizer.momentum=0"], ()),
    ],
)
def test_the_state_of_an_optimizer_is_what_pytorch_keeps(settings, names):
    asked = load("quickstart", settings).optimizer
    assert ds_config.optimizer_state(asked) == names
    weight = torch.ones(3, requires_grad=True)
    adam = asked.name == "adamw"
    used = torch.optim.AdamW([weight]) if adam else torch.optim.SGD([weight], momentum=asked.momentum)
    weight.sum().backward()
    used.step()
    assert tuple(name for name, value in used.state[weight].items() if value is not None and name != "step") == names


def test_fp16_switched_off_is_as_good_as_absent():
    assert resolve({"fp16": {"enabled": False}}) == resolve({})


@pytest.mark.parametrize(
    "text, message",
    [
        ("{", "not JSON"),
        ("[]", "a JSON object is needed"),
        ('{"zero_optimisation": {}}', "unknown key 'zero_optimisation'; did you mean 'zero_optimization'"),
        ('{"bf16": true}', "bf16=True, but an object of settings is needed"),
        ('{"zero_optimization": 2}', "zero_optimization=2, but an object of settings is needed"),
        ('{"fp16": "auto"}', "fp16='auto', but an object of settings is needed"),
    ],
)
def test_a_file_that_is_no_configuration_is_refused(text, message, tmp_path):
    (tmp_path / "mine.json").write_text(text, encoding="utf-8")
    assert f"{tmp_path / 'mine.json'}: {message}" in error_of(ds_config.read, tmp_path / "mine.json")


def test_a_file_that_is_not_there_is_refused():
    with pytest.raises(ScalerError, match=r"nowhere\.json: no such file"):
        ds_config.read(Path("nowhere.json"))


def test_a_cpu_without_bf16_instructions_is_not_native():
    flags = Path("/proc/cpuinfo")
    if not flags.exists():
        pytest.skip("the processor's abilities are read from Linux")
    expected = any(flag in flags.read_text() for flag in ("avx512_bf16", "amx_bf16", " bf16"))
    assert devices.bf16_is_native(torch.device("cpu")) is expected

"""Keys of DeepSpeed's configuration that are accepted leave the losses as they are: TRIED_KEYS is what was tried."""

import json

import pytest
from configs import content_of
from conftest import ROOT
from on_disk import attempts, metric

from scaler.config import deepspeed as ds_config
from scaler.distributed.world import free_port

SETTINGS = ("training.steps=6", "training.log_every=1", "training.evaluate_every=3", "checkpoint.every=3")
SMALL = {"reduce_bucket_size": 5000, "allgather_bucket_size": 5000, "overlap_comm": True}
PRINTING = {"steps_per_print": 1, "wall_clock_breakdown": True, "dump_state": True, "memory_breakdown": True}
OTHERS = {"comms_logger": {"enabled": True, "verbose": False}, "data_types": {"grad_accum_dtype": "fp32"}}
OFFLOAD = {"device": "cpu", "pin_memory": False}
TRIALS = {
    "zero1": [{"zero_optimization": {**SMALL, "contiguous_gradients": True, "allgather_partitions": False}}],
    "zero2": [
        {"zero_optimization": {"contiguous_gradients": False, "allgather_partitions": False, "reduce_scatter": False}},
        {"zero_optimization": SMALL, **PRINTING, **OTHERS},
        {"zero_optimization": {"offload_optimizer": OFFLOAD, "use_multi_rank_bucket_allreduce": False}},
    ],
    "zero3": [
        {
            "zero_optimization": {
                **{"contiguous_gradients": True, "overlap_comm": True, "sub_group_size": 1000},
                **{"stage3_prefetch_bucket_size": 1000, "stage3_param_persistence_threshold": 10},
                **{"stage3_max_live_parameters": 1000, "stage3_max_reuse_distance": 1000},
                "stage3_gather_16bit_weights_on_model_save": True,
            }
        },
        {"zero_optimization": {"offload_param": OFFLOAD, "offload_optimizer": OFFLOAD}},
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TRIALS)
def test_tried_keys_leave_the_losses_as_they_are(name, tiny_recipe_file, run_command, tmp_path):
    """Two ranks train without the keys, and with each group of them."""

    def losses(run: str, content: dict, *options: str) -> list[float]:
        config = tmp_path / f"{run}.json"
        config.write_text(json.dumps(content))
        run_command(
            *("torchrun", "--nproc_per_node", 2, "--master_port", free_port(), ROOT / "scaler" / "train.py"),
            *("--recipe", tiny_recipe_file, "--run_dir", tmp_path / run, "--deepspeed_config", config),
            *(*options, *SETTINGS),
            cwd=tmp_path,
            status=0,
        )
        return metric(tmp_path / run, "train_loss") + metric(tmp_path / run, "heldout_loss")

    plain = content_of(name)
    expected = losses("plain", plain)
    assert len(expected) >= 6
    for number, keys in enumerate(TRIALS[name]):
        content = {**plain, **keys, "zero_optimization": {**plain["zero_optimization"], **keys["zero_optimization"]}}
        assert losses(f"trial-{number}", content) == pytest.approx(expected, abs=1e-6)
    assert losses("allowed", {**plain, "prescale_gradients": False}, "--allow_untested_ds_keys") == expected
    assert [start["untested_ds_keys"] for start in attempts(tmp_path / "plain")] == [[]]
    assert [start["untested_ds_keys"] for start in attempts(tmp_path / "allowed")] == [["prescale_gradients"]]


def test_each_tried_key_is_shipped_refused_by_its_value_or_tried_here():
    trials = [keys for several in TRIALS.values() for keys in several]
    shipped = [json.loads(path.read_text()) for path in (ROOT / "ds_configs").glob("*.json")]
    in_use = {name for content in (*trials, *shipped) for name in content}
    in_zero = {name for content in (*trials, *shipped) for name in content.get("zero_optimization", {})}
    assert ds_config.TRIED_KEYS[""] - {"fp16"} == in_use
    refused = {"compute_grad_norm", "round_robin_gradients", "mics_shard_size", "zero_hpz_partition_size"}
    assert ds_config.TRIED_KEYS["zero_optimization"] - refused == in_zero

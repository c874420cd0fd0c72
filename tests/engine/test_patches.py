"""Replacements of library code: switched by SCALER_PATCHES, kept to where they were measured and to known sources."""

import importlib
import logging
import os
import re
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT
from torch import nn

from scaler.config import recipe
from scaler.core import switches
from scaler.core.errors import ScalerError
from scaler.distributed import local_ranks
from scaler.distributed.world import World
from scaler.engine import engine, patches, process_group
from scaler.engine.patches import direct_collectives
from scaler.engine.state import ShardedState

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HEAD = ("What", "Why", "Versions tried", "Measured gain", "Upstream", "Test")


@pytest.fixture
def installed():
    """What was installed, by a function that notes it."""
    calls = []

    def install():
        calls.append("installed")

    install.calls = calls
    return install


def test_the_table_and_the_switch_have_the_same_names():
    assert tuple(patches.PATCHES) == switches.NAMES


@pytest.mark.parametrize("name", switches.NAMES)
def test_each_has_a_head_of_fixed_form_that_names_tests_that_exist(name):
    text = importlib.import_module(patches.PATCHES[name].module).__doc__
    assert tuple(re.findall(r"^([A-Z][a-z ]+): ", text, re.MULTILINE)) == HEAD
    tests = re.findall(r"tests/[\w/]+\.py", text)
    assert tests and all((ROOT / test).is_file() for test in tests)


@pytest.mark.parametrize("name", switches.NAMES)
def test_the_source_of_the_installed_deepspeed_is_known(name):
    assert patches.is_known(name)


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, set(switches.NAMES)),
        ("all", set(switches.NAMES)),
        ("none", set()),
        (" attention,allocator ", {"attention", "allocator"}),
    ],
)
def test_the_variable_chooses(given, names):
    assert switches.switched_on({} if given is None else {switches.VARIABLE: given}) == names


def test_an_unknown_name_is_refused_with_the_nearest():
    with pytest.raises(ScalerError, match="unknown patch 'atention'; did you mean 'attention'"):
        switches.switched_on({switches.VARIABLE: "atention"})


def test_one_that_is_off_is_not_installed_and_that_is_recorded(monkeypatch, installed):
    monkeypatch.setenv(switches.VARIABLE, "none")
    assert not patches.apply("gradient_norm", installed, CPU, 2)
    assert not installed.calls and switches.outcomes()["gradient_norm"] == "off"
    monkeypatch.setenv(switches.VARIABLE, "gradient_norm")
    assert patches.apply("gradient_norm", installed, CPU, 2)
    assert installed.calls and switches.outcomes()["gradient_norm"] == "applied"


@pytest.mark.parametrize(
    ("device", "stage", "offload", "reason"),
    [
        (CUDA, 2, False, "not measured on cuda"),
        (CPU, 3, False, "not for ZeRO-3"),
        (CPU, 1, True, "not with offload"),
    ],
)
def test_none_is_installed_where_it_was_not_measured(installed, device, stage, offload, reason):
    assert not patches.apply("gradient_norm", installed, device, stage, offload)
    assert not installed.calls and switches.outcomes()["gradient_norm"] == reason


def test_an_unknown_source_is_left_unpatched_and_said(monkeypatch, installed, caplog):
    monkeypatch.setattr(logging.getLogger("scaler"), "propagate", True)
    changed = patches.Patch("", replaces=patches.PATCHES["gradient_norm"].replaces, tried=("0" * 16,))
    monkeypatch.setitem(patches.PATCHES, "gradient_norm", changed)
    assert not patches.apply("gradient_norm", installed, CPU, 2)
    assert not installed.calls and "gradient_norm" not in patches.usable()
    assert "gradient_norm: unknown source of deepspeed" in caplog.text and "correct and slower" in caplog.text


def test_a_function_that_is_gone_makes_the_source_unknown(monkeypatch):
    patches.fingerprint.cache_clear()
    gone = patches.Patch("", replaces=("deepspeed.comm.torch:TorchBackend.no_more",), tried=("0" * 16,))
    monkeypatch.setitem(patches.PATCHES, "direct_collectives", gone)
    try:
        assert not patches.is_known("direct_collectives")
        assert patches.fingerprint("direct_collectives") == "no deepspeed.comm.torch.TorchBackend.no_more"
    finally:
        patches.fingerprint.cache_clear()


def join_with(world: World, *given: str) -> str:
    os.environ[switches.VARIABLE] = given[world.rank]
    try:
        process_group.join(world)
    except ScalerError as error:
        return str(error)
    finally:
        process_group.leave()
    return ""


def test_ranks_that_may_apply_different_patches_all_say_so():
    worlds = [World(rank, 2, rank, 2) for rank in range(2)]
    text = "rank 1 may apply no patch, and rank 0 attention, dropout; give all nodes the same SCALER_PATCHES"
    assert [text in said for said in local_ranks.call(worlds, join_with, "attention,dropout", "none")] == [True, True]


def test_the_reduction_refuses_an_argument_that_it_does_not_know(monkeypatch):
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda group: 2)
    zero = SimpleNamespace(
        **{"dp_process_group": None, "bit16_groups": [[torch.ones(4)]], "reduce_scatter": True},
        **{"reduce_bucket_size": 4, "gradient_average": True},
    )
    direct_collectives.install_reduction(zero, SimpleNamespace())
    with pytest.raises(TypeError, match="use_new_ring"):
        zero.allreduce_and_scatter([], torch.float32, divide=False, use_new_ring=True)


def test_the_device_is_asked_once_deepspeed_has_moved_the_model_and_not_of_offloaded_parameters(monkeypatch):
    device = ["cpu"]

    def initialize(model, **_):  # as on a GPU with offload_param, where parameters stay on the CPU
        device[0] = "cuda"
        bare = SimpleNamespace(write_events=None)
        return SimpleNamespace(module=model, optimizer=SimpleNamespace(), monitor=bare), None

    monkeypatch.setattr(engine.deepspeed, "initialize", initialize)
    monkeypatch.setattr(engine, "get_accelerator", lambda: SimpleNamespace(device_name=lambda: device[0]))
    monkeypatch.setattr(engine, "ShardedState", lambda *_: None)
    monkeypatch.setattr(engine, "ComputeClock", lambda found: found)
    resolved = {"zero_optimization": {"stage": 3, "offload_param": {"device": "cpu"}}}
    running = engine.Engine(nn.Linear(2, 2), recipe.load("quickstart").optimizer, resolved)
    assert running.compute_clock == CUDA
    assert switches.outcomes()["gradient_norm"] == "not measured on cuda"


@pytest.mark.parametrize(
    ("stage", "bf16", "missing"),
    [
        (0, True, "fp16_groups, fp32_groups"),
        (2, False, "update_lp_params, _hp_mapping"),
        (3, True, "grad_position, .*_z3_optimizer"),
    ],
)
def test_a_deepspeed_without_what_checkpoints_read_is_refused(stage, bf16, missing):
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ScalerError, match=rf"deepspeed .* lacks {missing} at ZeRO-{stage}") as refused:
        ShardedState(model, optimizer, SimpleNamespace(), stage, bf16, ())
    assert "\n" not in str(refused.value)

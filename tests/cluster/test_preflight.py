"""What a preflight makes of the reports of its ranks; and one of two ranks, for real."""

import json
import os
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from scaler.cluster import parity
from scaler.cluster import preflight as preflight_of_nodes
from scaler.cluster.verdict import Report, judge, render
from scaler.core.errors import ScalerError
from scaler.data import prepared
from scaler.distributed import links
from scaler.distributed.world import World, free_port

HOSTS = [f"node{number}" for number in range(4)]
WELL = {
    **{"python": "3.11", "packages": {"torch": "2.13"}, "commit": "abc", "device": "H100", "gpus": 8, "rows": "r"},
    **{"tokenizer": "t", "memory_bytes": 80 << 30, "matmul": 6e14, "inside": 3e11, "between": 5e10, "clock": 0.01},
    **{"loss": 6.0, "gradient_norm": 2.5, "error": 1e-3, "bound": 5e-2},
}


def reports(changes=None, **of_all):
    """Of four nodes with a rank each; `changes` by rank."""
    made = []
    for rank, host in enumerate(HOSTS):
        change = dict((changes or {}).get(rank, {}))
        facts = WELL | of_all | change.pop("facts", {})
        made.append(Report(rank, host, **{"phase": "end", "facts": facts} | change))
    return made


def verdict(found, hosts=HOSTS):
    return judge(found, hosts, slowest_share=0.5, seconds=60)


def test_nodes_that_are_alike_are_well():
    found = verdict(reports())
    assert (found.bad, found.setting, found.status) == ({}, None, 0)


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"packages": {"torch": "2.12"}}, "packages is torch 2.12, not 2.13"),
        ({"commit": "abc+changes"}, "commit is abc+changes, not abc"),
        ({"device": "A100"}, "device is A100, not H100"),
        ({"rows": "other"}, "rows is other, not r"),
        ({"clock": 2.5}, "its clock is +2.5 s off the others'"),
        ({"matmul": 2.9e14}, "matrix multiplications: 48% of the median of all"),
        ({"between": 1e9}, "links to other nodes: 2% of the median of all"),
        ({"inside": 1e11}, "all-reduce inside the node: 33% of the median of all"),
        ({"loss": 6.1}, "computes a loss of 6.1 where others get 6"),
        ({"gradient_norm": float("nan")}, "computes a gradient_norm of nan where others get 2.5"),
        ({"error": 0.2}, "the engine's step is 2.0e-01 away from plain PyTorch's"),
        ({"error": float("nan")}, "the engine's step is nan away from plain PyTorch's"),
    ],
)
def test_a_node_that_differs_from_most_is_bad(facts, said):
    found = verdict(reports({2: {"facts": facts}}))
    assert found.bad == {"node2": [said]}
    assert found.status == 75 and found.setting is None


def test_a_node_with_a_problem_of_its_own_is_bad_and_those_that_waited_for_it_are_not():
    waited = {"phase": "meeting", "problem": "other ranks have come no further", "waited": True}
    own = {"phase": "machine", "problem": "the disk is full"}
    found = verdict(reports({0: waited, 1: waited, 2: own, 3: waited}))
    assert found.bad == {"node2": ["machine: the disk is full"]} and found.status == 75


def test_a_node_that_is_not_heard_of_is_bad():
    found = verdict(reports()[:3])
    assert list(found.bad) == ["node3"] and "rank 3 was not heard of for 60 s" in found.bad["node3"][0]


def test_where_no_launcher_says_the_nodes_the_silent_rank_is_named():
    found = verdict(reports()[:3], hosts=["", "", "", ""])
    assert list(found.bad) == ["the node of rank 3"]


@pytest.mark.parametrize("ranks", [{0, 1, 2, 3}, {1, 2, 3}])
def test_what_is_wrong_on_most_nodes_is_a_setting(ranks):
    problem = {"phase": "network", "problem": "no interface ib7"}
    found = verdict(reports(dict.fromkeys(ranks, problem)))
    assert found.status == 2 and "no interface ib7" in found.setting


def test_the_engine_that_differs_on_all_ranks_is_a_setting():
    found = verdict(reports(error=0.3))
    assert found.status == 2 and "away from plain PyTorch's" in found.setting


def test_ranks_that_all_wait_for_each_other_are_no_nodes_fault():
    waited = {"phase": "network", "problem": "no end within 60 s", "waited": True}
    found = verdict(reports(dict.fromkeys(range(4), waited)))
    assert found.status == 75 and "wait for each other in network" in found.unclear and found.bad == {}


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"commit": "def"}, "commit on node1 is def, not abc as on node0; make them equal"),
        ({"loss": 6.5}, "computes a loss of 6 where others get 6.5; one of the nodes computes wrongly"),
        ({"clock": 2.5}, "the clocks of the nodes are up to 2.5 s apart"),
    ],
)
def test_of_two_nodes_that_differ_nobody_can_say_which_is_wrong(facts, said):
    found = verdict(reports({1: {"facts": facts}})[:2], HOSTS[:2])
    assert found.status == 75 and found.bad == {} and said in found.unclear


def test_of_two_nodes_the_one_under_half_of_the_others_speed_is_bad():
    assert list(verdict(reports({0: {"facts": {"matmul": 2.9e14}}})[:2], HOSTS[:2]).bad) == ["node0"]
    assert verdict(reports({0: {"facts": {"matmul": 3.1e14}}})[:2], HOSTS[:2]).status == 0


def test_the_only_node_of_a_job_can_be_bad_but_its_settings_are_the_jobs():
    machine = {"phase": "machine", "problem": "7 GPUs for 8 ranks"}
    assert verdict(reports({0: machine})[:1], HOSTS[:1]).bad == {"node0": ["machine: 7 GPUs for 8 ranks"]}
    settings = {"phase": "settings", "problem": "unknown key"}
    assert (
        verdict(reports({0: settings})[:1], HOSTS[:1]).setting
        == "settings: unknown key (on all nodes, so it is a setting)"
    )


def test_the_table_has_a_line_for_each_node_and_marks_the_bad_one():
    found = reports({2: {"facts": {"matmul": 1e14}}})
    lines = render(found, verdict(found)).splitlines()
    assert lines[0].split() == ["node", "ranks", "device", "free", "TFLOP/s", "intra-node", "inter-node", "all"]
    assert [line.split()[0] for line in lines[1:5]] == HOSTS
    assert [line.endswith("bad") for line in lines[1:5]] == [False, False, True, False]
    assert "node3  1      H100    80 GiB  600.00   300.00      50.00       -" in lines


@pytest.mark.parametrize("members", range(2, 12))
def test_pairs_of_hosts_meet_once_and_one_at_a_time(members):
    rounds = links.pairs(range(members), limit=99)
    for pairs in rounds:
        assert len({member for pair in pairs for member in pair}) == 2 * len(pairs)
    met = [frozenset(pair) for pairs in rounds for pair in pairs]
    assert len(met) == len(set(met)) == members * (members - 1) // 2


@pytest.mark.parametrize("model_type", ["roberta", "distilbert", "modernbert"])
def test_the_model_of_the_parity_check_is_small_and_has_no_dropout_whatever_the_recipe_leaves_out(
    tiny_recipe, model_type
):
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 3, "max_position_embeddings": 40}
    if model_type == "distilbert":
        sizes = {"dim": 32, "n_heads": 4, "n_layers": 3, "max_position_embeddings": 40}
    recipe = replace(tiny_recipe, model={"model_type": model_type, **sizes})
    network = parity._network(SimpleNamespace(recipe=recipe, data=prepared.open_prepared(tiny_recipe)), rounded=False)
    assert network.model.config.num_hidden_layers == parity.LAYERS
    assert {module.p for module in network.modules() if isinstance(module, torch.nn.Dropout)} <= {0.0}


@pytest.mark.parametrize("frozen", [True, False])
def test_the_model_of_the_parity_check_trains_the_token_embeddings_only_where_the_run_does(tiny_recipe, frozen):
    recipe = replace(tiny_recipe, optimizer=replace(tiny_recipe.optimizer, frozen_embeddings=frozen))
    network = parity._network(SimpleNamespace(recipe=recipe, data=prepared.open_prepared(tiny_recipe)), rounded=True)
    assert network.model.get_input_embeddings().weight.requires_grad is not frozen


def test_the_memory_of_a_rank_is_its_share_of_the_containers(monkeypatch, tmp_path):
    rank = preflight_of_nodes.Rank(SimpleNamespace(gpu=None), World(size=2, local_size=2), tmp_path)
    monkeypatch.setattr(preflight_of_nodes.limits, "available_memory", lambda: 3 << 30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    rank.job, rank.report.facts["memory_needed"] = object(), 2 << 30
    with pytest.raises(ScalerError, match=r"^1\.5 GiB of memory are free, and a rank needs 2\.0$"):
        rank.machine()


@pytest.fixture
def preflight(run_command, tiny_recipe_file, tmp_path):
    def run(*arguments):
        launcher = ("deepspeed", "--num_gpus", 2, "--master_port", free_port())
        program = (*launcher, ROOT / "scaler" / "preflight.py", "--run_dir", tmp_path / "run")
        return run_command(*program, "--recipe", tiny_recipe_file, *arguments, cwd=tmp_path, CUDA_VISIBLE_DEVICES="")

    return run


def test_two_ranks_are_well(preflight, tmp_path):
    before = tmp_path / "run" / "preflight" / "by-hand"
    before.mkdir(parents=True)
    for name in ("notes.txt", "rank_00007.json"):
        (before / name).write_text("{}")
        os.utime(before / name, (0, 0))
    done = preflight("--ranks", 2, "--slowest_share", 0.01)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "preflight: 2 ranks on 1 node: all is well" in done.stdout
    assert (before / "notes.txt").exists() and not (before / "rank_00007.json").exists()
    result = json.loads((tmp_path / "run" / "preflight" / "by-hand" / "result.json").read_text())
    assert result["bad_nodes"] == {} and result["setting"] is None
    for rank in result["ranks"]:
        assert rank["phase"] == "end" and rank["facts"]["error"] < rank["facts"]["bound"]


def test_a_missing_run_folder_is_asked_for(run_command, tmp_path):
    done = run_command(sys.executable, "-m", "scaler.preflight", cwd=tmp_path)
    assert done.returncode == 2 and "--run_dir is needed" in done.stderr

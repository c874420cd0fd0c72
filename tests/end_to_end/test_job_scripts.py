"""What of the job scripts can be told without a scheduler."""

import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT

from scaler import sharing
from scaler.config import batch
from scaler.core.errors import ScalerError

SCRIPTS = [path for path in sorted((ROOT / "slurm").glob("*.sh")) if path.name not in ("env.sh", "job.sh")]


def test_the_scripts_are_clean(run_command):
    checker = Path(sys.executable).with_name("shellcheck")
    files = [*(path.relative_to(ROOT) for path in SCRIPTS), ".ci/run"]
    run_command(checker, "-x", *files, cwd=ROOT, status=0)


def test_job_scripts_find_an_option_in_both_spellings(run_command):
    text = (ROOT / "slurm" / "job.sh").read_text()
    option = text[text.index("option() {") : text.index("# requeue ")]
    for words in ("--run_dir runs/a-b", "--run-dir runs/a-b", "--run-dir=runs/a-b", "run_dir=c --run_dir=runs/a-b x"):
        found = run_command("bash", "-c", f"{option}\noption run_dir {words}", cwd=ROOT, status=0)
        assert found.stdout == "runs/a-b\n", words


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_job_script_that_no_scheduler_started_says_so(script, run_command):
    done = run_command("bash", script, cwd=ROOT, status=2)
    assert "this is a job script; submit it: sbatch" in done.stderr


def test_one_that_is_submitted_from_elsewhere_names_what_it_lacks(tmp_path, run_command):
    done = run_command("bash", shutil.copy(SCRIPTS[0], tmp_path), cwd=tmp_path, status=2)
    assert "slurm/job.sh: No such file or directory" in done.stderr


@pytest.mark.parametrize(
    ("rows", "nodes", "ranks", "shared"), [(64, 8, 8, 8), (64, 7, 8, 4), (64, 3, 8, 2), (9, 2, 1, 1), (12, 5, 2, 3)]
)
def test_the_most_nodes_that_share_a_batch(rows, nodes, ranks, shared):
    assert batch.nodes_that_share(rows, nodes, ranks) == shared


def test_a_batch_that_not_even_one_node_shares_is_refused():
    with pytest.raises(ScalerError, match=r"training.rows=12 cannot be shared equally by the 8 ranks of a node"):
        batch.nodes_that_share(12, 4, 8)


def test_the_rows_are_those_of_the_run_and_of_the_command_line(tiny_recipe_file, tmp_path, call):
    shutil.copy(tiny_recipe_file, tmp_path / "recipe.yaml")
    nodes = ("--nodes", 5, "--ranks_per_node", 1)
    assert call(sharing.main, *nodes, "--run_dir", tmp_path)[:2] == (0, "4\n")
    assert call(sharing.main, *nodes, "--recipe", tiny_recipe_file, "training.rows=9")[:2] == (0, "3\n")

"""What of the job scripts can be told without a scheduler."""

import shlex
import shutil
import subprocess
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


def words_of(line):
    """What job.sh makes of a line, as array.sh uses it; None where it is refused."""
    text = (ROOT / "slurm" / "job.sh").read_text()
    function = text[text.index("words() {") : text.index("# requeue ")]
    program = f'set -euo pipefail\n{function}\nwords "$1" || exit 7\nprintf \'%s\\0\' "${{found[@]}}"'
    done = subprocess.run(["bash", "-c", program, "bash", line], capture_output=True, check=False)
    assert done.stderr == b"" and done.returncode in (0, 7)
    return None if done.returncode else done.stdout.decode().split("\0")[:-1]


@pytest.mark.parametrize(
    "line",
    [
        "--recipe quickstart 'corpus.sources=[my/texts]' data.folder=data/mine",
        '--recipe quickstart "data.folder=my data" training.steps=5',
        """a\\ b c"d e"'f g'h 'say "no"' "say \\"no\\" \\\\ to" "" ''""",
        "'corpus.sources=[{source: a, weight: 2}, {source: \"b c\"}]'   --run_dir runs/caf\u00e9 ",
        "--recipe x # a remark",
        "a#b",
    ],
)
@pytest.mark.parametrize("end", ["", "\r", " \r"])
def test_a_line_of_an_array_is_read_as_a_shell_reads_it(line, end):
    assert words_of(line + end) == shlex.split(line, comments="#b" not in line)


def test_nothing_in_a_line_of_an_array_is_expanded(tmp_path):
    line = f'$(touch {tmp_path}/a) `touch {tmp_path}/b` $HOME ~ * "$(touch {tmp_path}/c)" x;touch {tmp_path}/d'
    expected = ["$(touch", f"{tmp_path}/a)", "`touch", f"{tmp_path}/b`", "$HOME", "~", "*", f"$(touch {tmp_path}/c)"]
    assert words_of(line) == [*expected, "x;touch", f"{tmp_path}/d"]
    assert not list(tmp_path.iterdir())
    assert words_of("\ufeff--recipe x") == ["--recipe", "x"]  # as Windows begins files


@pytest.mark.parametrize("line", ["'half", '--recipe "half', '"half\\"', "half\\"])
def test_half_a_quote_in_a_line_of_an_array_is_refused(line):
    assert words_of(line) is None


@pytest.mark.parametrize("number", ["x[$(touch ran)]", "", "-1", "1e3"])
def test_what_is_no_number_of_ranks_is_refused_and_not_run(tmp_path, number):
    text = (ROOT / "slurm" / "job.sh").read_text()
    functions = (
        text[text.index("fail() {") : text.index("[ -n ")] + text[text.index("fits() {") : text.index("# option ")]
    )
    program = f'set -euo pipefail\n{functions}\nnodes=2 cores=8 gpus=0 SRUN_OPTIONS=() INSIDE=()\non_nodes "$1" -- true'
    command = ["bash", "-c", program, "bash", number]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, f"error: {number}: a number of ranks is needed\n")
    assert not list(tmp_path.iterdir())


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

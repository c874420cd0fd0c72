"""`make clean` removes what make has built; data and runs go only where somebody says yes."""

import shutil
import subprocess

import pytest
from conftest import ROOT

KEPT, BUILT = ("data/one/text.txt", "runs/one/metrics.jsonl"), (".venv/bin/python", "build/site/index.html")


@pytest.fixture
def make(tmp_path):
    if shutil.which("make") is None:
        pytest.skip("no make here")
    for name in (*KEPT, *BUILT):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()

    def run(target, answer=""):
        command = ["make", "--silent", "-f", ROOT / "Makefile", target]
        done = subprocess.run(command, cwd=tmp_path, input=answer, capture_output=True, text=True, check=False)
        return done, {name for name in (*KEPT, *BUILT) if (tmp_path / name).exists()}

    return run


def test_clean_removes_what_was_built_alone(make):
    done, left = make("clean")
    assert done.returncode == 0 and left == {*KEPT}


@pytest.mark.parametrize(("answer", "removed"), [("yes\n", True), ("no\n", False), ("\n", False), ("", False)])
def test_data_and_runs_go_where_somebody_says_yes(make, answer, removed):
    done, left = make("clean-runs", answer)
    assert left == {*BUILT, *(() if removed else KEPT)}
    assert (done.returncode == 0) is removed and "data runs" in done.stdout

"""A training that is interrupted at random moments, by kills, power cuts and stops, and goes on at other world sizes.

The short form; `make chaos` is the long one.
"""

import json
import sys

import pytest
from conftest import WORKERS


@pytest.mark.slow
@pytest.mark.parametrize("way_of_saving", ["synchronous", "asynchronous"])
def test_a_run_interrupted_three_times_is_the_run_left_alone(tiny_recipe_file, run_command, tmp_path, way_of_saving):
    done = run_command(
        *(sys.executable, WORKERS / "chaos.py", "--recipe", tiny_recipe_file, "--folder", tmp_path / "chaos"),
        *("--interruptions", 3, "--steps", 60, "--every", 6, "--seed", 3),
        *(["--synchronous"] if way_of_saving == "synchronous" else []),
        cwd=tmp_path,
        timeout=900,
        status=0,
        CUDA_VISIBLE_DEVICES="",
    )
    figures = json.loads(done.stdout[done.stdout.index("{\n") :])
    assert figures["interruptions"] == 3 and figures["final step"] == 60
    assert len(set(figures["digests of rows and masks"])) == 1
    if way_of_saving == "synchronous":
        assert figures["most steps lost"] <= 6

"""Who may import whom: what `lint-imports` (pyproject.toml) cannot say."""

import subprocess
import sys
from importlib import metadata

from conftest import ROOT

TORCH_FREE = [
    *("data_prep.__main__", "scaler.config.recipe", "scaler.config.command_line", "scaler.sharing"),
    *("scaler.studies.report", "scaler.sweeps.report", "scaler.finetuning.report", "scaler.finetuning.folder"),
]


def test_data_preparation_and_recipes_load_without_torch():
    program = f"import sys, {', '.join(TORCH_FREE)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_no_module_bears_the_name_of_another_library():
    # for `python scaler/train.py` puts this folder first on the path, until train.py takes it off
    names = {path.stem for path in (ROOT / "scaler").iterdir()} - {"__init__", "__main__"}
    assert not names & set(sys.stdlib_module_names)
    assert not names & metadata.packages_distributions().keys()

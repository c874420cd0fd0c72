"""Who may import whom: the layers of scaler/, read from its source."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import pytest
from conftest import ROOT

# From the bottom up. A module imports from layers below its own, and in its own from those named before it.
LAYERS = {
    "facts": ["allocator", "errors", "slurm", "mpi", "world"],
    "pure": [
        *("manifests", "token_rows", "order", "packing", "masking", "schedule", "settings", "progress"),
        *("node_verdict", "word_vectors", "labelled", "label_splits", "failures", "hardware", "footprint", "traffic"),
        "study_folder",
    ],
    "parts": [
        *(
            "recipe",
            "command_line",
            "critical_batch",
            "batches",
            "ds_config",
            "head",
            "dropout",
            "attention",
            "model",
            "embeddings",
            "initialisation",
            "prepared",
            "run_folder",
        ),
        *("job", "encoder", "features", "scores", "activations", "forecast", "workload", "scaling", "bottlenecks"),
        "sweep_space",
    ],
    "engine": [
        *(
            "faults",
            "stop",
            "watchdog",
            "checkpoint_format",
            "checkpoint_folder",
            "checkpoint",
            "held_state",
            "own_work",
            "gradient_norm",
            "exchange",
            "engine",
        ),
        *("resume", "heldout", "metrics", "loop", "export", "links", "parity", "masked_words"),
        *("sweep_trial", "sweep_report"),
        *("finetune_trial", "finetune_folder", "finetune_report", "finetune_sweep", "scaling_words"),
        *("report_pictures", "report_page"),
    ],
    "verbs": [
        "dry_run",
        "plan",
        "calibrate",
        "evaluate",
        "embedding_report",
        "train",
        "fill_mask",
        "compare",
        "preflight",
        "status",
        "sharing",
        "finetune",
        "goodput",
        "sweep",
        "noise_scale",
        "report",
        "study_point",
        "local_ranks",
        "study",
    ],
}
ORDER = [module for layer in LAYERS.values() for module in layer]
FILES = {path.stem: path for path in (ROOT / "scaler").glob("*.py") if path.stem != "__init__"}
WITHOUT_TORCH = ["allocator", "errors", *LAYERS["pure"], "recipe", "command_line", "critical_batch", "sharing"]


def imports(path: Path) -> Iterator[str]:
    """Every imported module, wherever the import stands; `from package import name` counts as package.name."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}:{node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_has_its_place():
    assert sorted(ORDER) == sorted(FILES)


@pytest.mark.parametrize("module", sorted(FILES))
def test_a_module_imports_only_what_stands_before_it(module):
    parts = [name.split(".") for name in imports(FILES[module])]
    used = {part[1] for part in parts if part[0] == "scaler"}
    assert used <= set(ORDER[: ORDER.index(module)])


@pytest.mark.parametrize("package", ["scaler", "data_prep"])
def test_deepspeed_is_imported_in_the_engine_alone(package):
    users = {path.name for path in (ROOT / package).glob("*.py") if "deepspeed" in map(_top, imports(path))}
    assert users == ({"engine.py"} if package == "scaler" else set())


def test_data_preparation_shares_little_with_training():
    used = {
        name.split(".")[1]
        for path in (ROOT / "data_prep").glob("*.py")
        for name in imports(path)
        if _top(name) == "scaler"
    }
    assert used == {"errors", "mpi", "manifests", "token_rows", "order", "packing", "masking", "recipe", "word_vectors"}


def test_training_knows_nothing_of_data_preparation():
    assert not [path for path in FILES.values() if "data_prep" in map(_top, imports(path))]


def test_data_preparation_and_the_pure_modules_load_without_torch():
    modules = ["data_prep.__main__", *(f"scaler.{module}" for module in WITHOUT_TORCH)]
    program = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0


def test_no_module_bears_the_name_of_another_library():
    # for `python scaler/train.py` puts this folder first on the path, until train.py takes it off
    assert not FILES.keys() & set(sys.stdlib_module_names)
    assert not FILES.keys() & metadata.packages_distributions().keys()


def _top(name: str) -> str:
    return name.partition(".")[0]

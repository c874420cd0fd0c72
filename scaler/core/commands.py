"""Name every command of `scaler`, and find its module and its summary."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType

# Strings, not imports: a module is loaded when its command is called, and nothing here depends on a command.
GROUPS: dict[str, dict[str, str]] = {
    "prepare data": {
        "prepare": "data_prep.__main__",
        "corpus": "data_prep.corpus",
        "clean": "data_prep.clean",
        "dedup": "data_prep.dedup",
        "tokenizer": "data_prep.tokenizer",
        "shards": "data_prep.shards",
        "word2vec": "data_prep.word2vec",
        "rows": "data_prep.rows",
        "adopt": "data_prep.adopt",
        "verify": "data_prep.verify",
        "inspect": "data_prep.inspect",
        "labels": "data_prep.labels",
    },
    "train": {
        "train": "scaler.train",
        "dry-run": "scaler.dry_run",
        "status": "scaler.status",
        "recipe": "scaler.recipe",
    },
    "use a model": {
        "evaluate": "scaler.evaluate",
        "compare": "scaler.compare",
        "fill-mask": "scaler.fill_mask",
        "embeddings": "scaler.embedding_report",
        "finetune": "scaler.finetune",
    },
    "scale": {
        "plan": "scaler.plan",
        "calibrate": "scaler.calibrate",
        "study": "scaler.study",
        "report": "scaler.report",
        "noise-scale": "scaler.noise_scale",
        "goodput": "scaler.goodput",
    },
    "tune": {"sweep": "scaler.sweep"},
    "run on a cluster": {"preflight": "scaler.preflight", "nodes-for-batch": "scaler.sharing"},
}
COMMANDS: dict[str, str] = {name: module for group in GROUPS.values() for name, module in group.items()}


def summary(module: str) -> str:
    """Return the first line of a module's docstring without importing the module."""
    found = importlib.util.find_spec(module)
    if found is None or found.origin is None:
        raise ModuleNotFoundError(module)
    text = ast.get_docstring(ast.parse(Path(found.origin).read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def listing() -> str:
    """List all commands by group, a line each."""
    lines = []
    for group, commands in GROUPS.items():
        lines += ["", f"{group}:", *(f"  {name:<16} {summary(module)}" for name, module in commands.items())]
    return "\n".join(lines[1:])


def module_of(name: str) -> ModuleType:
    """Import a command, and return its module, which has `parser()` and `main()`."""
    return importlib.import_module(COMMANDS[name])

"""Find an exported model on disk, and load it whole."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from transformers import (
    AutoModelForMaskedLM,
    PreTrainedModel,
)

from scaler.core.errors import ScalerError
from scaler.model import build


def find_model(path: Path, recipe: str | None) -> tuple[Path, Path, str]:
    """What to evaluate: the folder of the model, the one for the result, and the recipe that names the rows.

    Args:
        path: a run, its export, or any Transformers folder.
        recipe: name or file; by default that of the run.

    Raises: ScalerError when there is no model, or no recipe.
    """
    path = path.resolve()  # "." has no parent
    folder = path if (path / "config.json").is_file() else path / "export"
    run = folder.parent if folder.name == "export" and (folder.parent / "recipe.yaml").is_file() else None
    if not (folder / "config.json").is_file():
        if run:
            raise ScalerError(f"{path}: this run has no export yet, for it is not finished; evaluate it once it is")
        raise ScalerError(f"{path}: no run and no exported model here; name a folder such as runs/quickstart")
    if not run and recipe is None:
        raise ScalerError(f"{path}: no run's folder, so nothing says which rows to evaluate on; name a --recipe")
    return folder, run or folder, recipe or str(folder.parent / "recipe.yaml")


def load_whole(folder: Path) -> PreTrainedModel:
    """A masked LM in fp32, with its head, from safetensors alone and without code of its own.

    Raises: ScalerError when it cannot be loaded whole.
    """
    try:
        network, loaded = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=build.ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, for a configuration or weights that are damaged or of another kind
        reason = " ".join(str(error).split())[:300]
        raise ScalerError(f"{folder}: no masked LM that Transformers loads from safetensors ({reason})") from error
    if loaded["missing_keys"]:
        some = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ScalerError(f"{folder}: its weights lack {some}; evaluate a whole masked LM, with its head")
    return network.eval()


def find_export(path: Path) -> Path:
    """The export folder that `path` is or contains; of several runs, the newest. Raises ScalerError if none."""
    for candidate in (path, path / "export"):
        if (candidate / "config.json").is_file():
            return candidate
    runs = sorted(path.glob("*/export/config.json"), key=lambda config: config.stat().st_mtime)
    if runs:
        return runs[-1].parent
    raise ScalerError(f"{path}: no exported model here; `make pretrain` makes one in runs/quickstart")


HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find_encoder(asked: str) -> str:
    """The folder of a run's export, any Transformers folder, or a hub id. Raises ScalerError if it is none."""
    path = Path(asked)
    for folder in (path, path / "export"):
        if (folder / "config.json").is_file():
            return str(folder)
    if (path / "recipe.yaml").is_file():
        raise ScalerError(f"{path}: this run has no export yet, for it is not finished; fine-tune it once it is")
    if path.exists() or not HUB_ID.fullmatch(asked) or asked.startswith("runs/"):
        raise ScalerError(f"{path}: no run and no exported model here; name a folder such as runs/quickstart")
    return asked

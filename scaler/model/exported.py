"""Find an exported model on disk, and load it whole."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from scaler.core.errors import ScalerError
from scaler.model.folder import CONFIG, EXPORT

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECIPE = "recipe.yaml"
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def find(path: Path) -> Path:
    """Return the folder of an exported model: `path` itself, or the export of the run in `path`.

    Raises: ScalerError when there is none.
    """
    for folder in (path, path / EXPORT):
        if (folder / CONFIG).is_file():
            return folder
    if (path / RECIPE).is_file() or (path.name == EXPORT and (path.parent / RECIPE).is_file()):
        raise ScalerError(
            f"{path}: this run has no export: it is not finished, or somebody has removed it; the same command with "
            "--run_dir goes on to it"
        )
    raise ScalerError(
        f"{path}: no run and no exported model here; name a folder such as runs/quickstart, which `make pretrain` makes"
    )


def find_newest(path: Path) -> Path:
    """Return the folder of an exported model as `find` does; of a folder of runs, the newest export.

    Raises: ScalerError when there is none.
    """
    is_one = any((path / name).is_file() for name in (CONFIG, f"{EXPORT}/{CONFIG}", RECIPE))
    runs = sorted(path.glob(f"*/{EXPORT}/{CONFIG}"), key=lambda config: config.stat().st_mtime)
    return runs[-1].parent if runs and not is_one else find(path)


def find_or_hub_id(asked: str) -> str:
    """Return the folder of an exported model, or `asked` where it is an id of the Hugging Face hub.

    Raises: ScalerError when it is neither.
    """
    path = Path(asked)
    if not path.exists() and HUB_ID.fullmatch(asked) and not asked.startswith("runs/"):
        return asked
    return str(find(path))


def find_with_recipe(path: Path, recipe: str | None) -> tuple[Path, Path, str]:
    """Find what to evaluate: the folder of the model, the folder for the result, and the recipe that names the rows.

    Args:
        path: a run, its export, or any Transformers folder.
        recipe: name or file; by default that of the run.

    Raises: ScalerError when there is no model, or no recipe.
    """
    folder = find(path.resolve())  # "." has no parent
    run = folder.parent if folder.name == EXPORT and (folder.parent / RECIPE).is_file() else None
    if not run and recipe is None:
        raise ScalerError(f"{path}: not a run, so nothing says which rows to evaluate on; name a --recipe")
    return folder, run or folder, recipe or str(folder.parent / RECIPE)


def load_whole(folder: Path) -> PreTrainedModel:
    """Load a masked LM in fp32, with its head, from safetensors alone and without code of its own.

    Raises: ScalerError when it cannot be loaded whole.
    """
    import torch
    from transformers import AutoModelForMaskedLM

    from scaler.model.build import ATTENTION

    try:
        network, loaded = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            attn_implementation=ATTENTION,
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:  # of many kinds, when a configuration or weights are damaged or of another kind
        reason = " ".join(str(error).split())[:300]
        raise ScalerError(f"{folder}: no masked LM that Transformers loads from safetensors ({reason})") from error
    if loaded["missing_keys"]:
        some = ", ".join(sorted(loaded["missing_keys"])[:3])
        raise ScalerError(f"{folder}: its weights lack {some}; evaluate a whole masked LM, with its head")
    return network.eval()

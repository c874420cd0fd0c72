"""Export a trained model as a Transformers folder, and read it back to compare."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import AutoModelForMaskedLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from scaler.core import files
from scaler.core.errors import ScalerError
from scaler.model.build import positions
from scaler.model.saving import save

CARD = "README.md"
disable_progress_bar()  # of saving and loading weights


def export(
    state: Mapping[str, torch.Tensor], model: PreTrainedModel, tokenizer: Any, card: str, folder: Path
) -> dict[str, str]:
    """Write an export folder. It appears once it was read back, gave the same logits, and is on the disk.

    Args:
        state: whole parameters in fp32, by their names in `model`.
        model: a model of the same configuration, which receives the state.
        tokenizer: saved beside the model.
        card: content of the folder's README.md.
        folder: where to write; an older export there is replaced.

    Returns: the checksum of each file by its name, but for the card, which users edit.

    Raises: ScalerError when the state does not fit the model, or the logits differ.
    """
    parameters = dict(model.named_parameters())
    if set(parameters) != set(state):
        raise ScalerError(f"export: parameters {sorted(set(parameters) ^ set(state))[:3]} are not on both sides")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(state[name])
    model.tie_weights()
    model.eval()
    partial, before = (folder.with_name(f"{folder.name}{ending}") for ending in (".partial", ".before.partial"))
    shutil.rmtree(partial, ignore_errors=True)
    try:
        save(model, tokenizer, partial, positions(model.config))
        files.write_whole(partial / CARD, card)
        again = AutoModelForMaskedLM.from_pretrained(partial, local_files_only=True).eval()
        ids = torch.arange(min(32, len(tokenizer))).unsqueeze(0)
        with torch.no_grad():
            difference = float((model(input_ids=ids).logits - again(input_ids=ids).logits).abs().max())
        if not difference <= 0:  # or not a number
            raise ScalerError(f"{folder}: the logits of what was written differ by {difference:.1e}; not exported")
        files.flush_folder(partial)
        checksums = {path.name: files.checksum(path) for path in partial.iterdir() if path.name != CARD}
        if folder.exists():  # renamed, because a removal takes longer, and may fail half-way
            shutil.rmtree(before, ignore_errors=True)
            os.replace(folder, before)
        os.replace(partial, folder)
        files.flush(folder.parent)
        shutil.rmtree(before, ignore_errors=True)
        return checksums
    except Exception as error:
        if type(error) not in (SafetensorError, Exception):  # what safetensors and tokenizers raise on a full disk
            raise
        raise ScalerError(f"{folder}: cannot be written ({error}); checkpoints and metrics are kept") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)

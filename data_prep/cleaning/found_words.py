"""Record in a stage how the words of its text were found, and keep stages that another definition of a word made."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from data_prep.pipeline import folders
from scaler.core import words
from scaler.core.errors import ScalerError
from scaler.core.files import read_manifest

KEY = "words"  # of `made_from`
logger = logging.getLogger(__name__)


def recorded() -> dict[str, str]:
    """Return what a stage that looks at words adds to its `made_from`."""
    return {KEY: words.version()}


def is_current(folder: Path, kind: str, made_from: dict[str, Any]) -> bool:
    """Return True when the folder was made from these inputs and settings, with a warning where words differ.

    Such a folder is kept, because all later stages and the trainings depend on its bytes.
    """
    try:
        before = read_manifest(folder, kind)["made_from"].get(KEY)
    except (ScalerError, KeyError, AttributeError):
        return False
    now = made_from.get(KEY)
    if not folders.is_current(folder, kind, {**made_from, KEY: before} if before else _without(made_from)):
        return False
    if before != now:
        logger.warning(
            f"{folder}: kept as it is, though its words were found otherwise ({before or 'marks were no letters'}; "
            f"now {now}); remove the folder to make it anew"
        )
    return True


def _without(made_from: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in made_from.items() if key != KEY}

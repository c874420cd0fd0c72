"""DeepSpeed configurations of one precision on every machine, where that of `ds_configs` follows the machine."""

import json
from pathlib import Path
from typing import Any

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def content_of(name: str, bf16: bool = False) -> dict[str, Any]:
    """That of ds_configs/`name`.json."""
    return {**json.loads((CONFIGS / f"{name}.json").read_text()), "bf16": {"enabled": bf16}}


def configuration(folder: Path, name: str, bf16: bool = False) -> Path:
    """Write such a copy of ds_configs/`name`.json into a folder; its path."""
    path = folder / f"{name}-{'bf16' if bf16 else 'fp32'}.json"
    path.write_text(json.dumps(content_of(name, bf16)))
    return path

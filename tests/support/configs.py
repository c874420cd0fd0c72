"""DeepSpeed configurations of one precision on every machine, where that of `ds_configs` follows the machine."""

import json
from pathlib import Path

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def configuration(folder: Path, name: str, bf16: bool = False) -> Path:
    """Write such a copy of ds_configs/`name`.json into a folder; its path."""
    content = json.loads((CONFIGS / f"{name}.json").read_text())
    content["bf16"]["enabled"] = bf16
    path = folder / f"{name}-{'bf16' if bf16 else 'fp32'}.json"
    path.write_text(json.dumps(content))
    return path

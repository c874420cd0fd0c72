"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

Shape = Literal["linear", "cosine", "constant", "sqrt"]


def learning_rate(step: int, *, peak: float, warmup_steps: int, total_steps: int, shape: Shape, floor: float) -> float:
    """Return the learning rate of optimizer step `step` (0-based).

    It rises linearly to `peak` over `warmup_steps`, then falls to `floor * peak` at `total_steps` along `shape`:
    "linear" (as RoBERTa: Liu et al. 2019), "cosine", "sqrt" (1 - sqrt of the progress: Hägele et al. 2024)
    or "constant".
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    falls = {
        "linear": 1.0 - progress,
        "cosine": 0.5 * (1.0 + math.cos(math.pi * progress)),
        "sqrt": 1.0 - math.sqrt(progress),
        "constant": 1.0,
    }
    return peak * (floor + (1.0 - floor) * falls[shape])

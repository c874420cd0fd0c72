"""The DeepSpeed engine behind one interface for every ZeRO stage and precision.

A training step is `loss, _ = engine(batch)`, `engine.backward(loss)` and `engine.step(learning_rate)` for each
micro-batch. The comments name what DeepSpeed does and its documentation leaves out.
"""

from __future__ import annotations

import locale
import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import nn

from scaler.config import deepspeed as ds_config
from scaler.config.training_sections import Optimizer
from scaler.core import switches
from scaler.core.errors import ScalerError, dispensable
from scaler.engine import patches
from scaler.engine.clock import ComputeClock
from scaler.engine.patches import direct_collectives, gradient_norm
from scaler.engine.state import ShardedState
from scaler.model import embeddings
from scaler.model.parameters import parameter_groups

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # caused by DeepSpeed

logger = logging.getLogger(__name__)
NEVER = 1 << 62  # steps between DeepSpeed's own prints; it refuses 0


class Engine:
    """A model in training under DeepSpeed.

    Attributes:
        stage: of ZeRO.
        bf16: the model computes in bf16 instead of fp32.
        clipping: the norm to which gradients are clipped; 0 for none.
        watch: called with what the engine is about to do.
        compute_clock: measures the time that the caller spends computing without other ranks.
        state: this rank's shards of weights and optimizer state, for checkpoints.
    """

    def __init__(self, model: nn.Module, settings: Optimizer, resolved: dict[str, Any]) -> None:
        self.stage = ds_config.zero_stage(resolved)
        self.bf16 = ds_config.precision_of(resolved) == "bf16"
        self.clipping = float(resolved.get("gradient_clipping", 0.0))
        self.watch: Callable[[str], None] = lambda doing: None
        optimizer = make_optimizer(model, settings)
        try:
            self.deepspeed, *_ = deepspeed.initialize(
                model=model, optimizer=optimizer, config={"steps_per_print": NEVER, **resolved}
            )
        except UnicodeDecodeError as error:  # PyTorch opens files of its own, which DeepSpeed makes it import
            raise ScalerError(
                f"PyTorch cannot read its own files in this locale's encoding, "
                f"{locale.getpreferredencoding(False)} ({error}); set PYTHONUTF8=1, or LC_ALL=C.UTF-8"
            ) from error
        except (ValueError, AssertionError, KeyError) as error:
            raise ScalerError(f"DeepSpeed refuses its configuration: {' '.join(str(error).split())[:400]}") from error
        device = torch.device(get_accelerator().device_name())  # at stage 3 parameters can be on the CPU
        self.compute_clock = ComputeClock(device)
        self._patch(device)
        self._bear_monitors()
        if self.stage == 0:
            # In bf16 DeepSpeed takes an empty step as it starts. At learning rate 0 it moves no weight, but it would
            # put Adam's bias correction one step ahead.
            optimizer.state.clear()
        kinds = ds_config.optimizer_state(settings)
        self.state = ShardedState(self.module, optimizer, self.deepspeed.optimizer, self.stage, self.bf16, kinds)

    # ---- a training step

    def __call__(self, *arguments: Any) -> Any:
        """Run the model forward."""
        self.watch("the forward pass")
        return self.deepspeed(*arguments)

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradient of a micro-batch's loss, divided by the number of accumulated micro-batches."""
        self.watch("the backward pass")
        self.deepspeed.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Count a micro-batch, and update the weights after the last one of a batch.

        Returns: the global gradient norm before clipping at the end of a batch, else 0. If it is not finite, the
        weights are unchanged: DeepSpeed skips such a step silently at stages 1 to 3, and this method at stage 0.
        """
        self.watch("the optimizer step")
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["learning_rate_multiplier"]
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()
            return 0.0
        if self.stage or self.bf16:
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm())
        # DeepSpeed has averaged the gradients in the backward pass, and reports no norm
        norm = float(torch.nn.utils.get_total_norm([p.grad for p in self.module.parameters() if p.grad is not None]))
        if math.isfinite(norm):
            self.deepspeed.step()
        else:
            self.deepspeed.zero_grad()
            self.deepspeed.micro_steps += 1  # as its own step would
        return norm

    def train(self, training: bool) -> None:
        """Switch between training and evaluation."""
        self.deepspeed.train(training)

    # ---- the weights

    @property
    def module(self) -> Any:
        """Return the model."""
        return self.deepspeed.module

    def full_state(self) -> dict[str, torch.Tensor]:
        """Return all parameters by name, whole, in fp32 and on the CPU, from the master weights. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param

        masters = self.state.masters()
        state = {}
        for name, parameter in self.module.named_parameters():
            full = masters.get(id(parameter))
            if full is None and self.stage:
                full = safe_get_full_fp32_param(parameter)
            if full is None:  # frozen, or stage 0 in fp32
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    full = parameter.detach().clone()
            state[name.removeprefix("model.")] = full.detach().float().cpu().clone()
        return state

    def token_embeddings(self) -> embeddings.TokenEmbeddings:
        """Return name, shape and checksum of the token embeddings as they are now. Collective."""
        model = self.module.model
        with deepspeed.zero.GatheredParameters([model.get_input_embeddings().weight], enabled=self.stage == 3):
            return embeddings.note(model, self.bf16)

    def close(self) -> None:
        """Free the engine."""
        self.deepspeed.destroy()

    # ---- details

    def _bear_monitors(self) -> None:
        """Let a monitor of DeepSpeed (tensorboard, csv_monitor, wandb) that fails cost a warning and not the run."""
        monitor = self.deepspeed.monitor
        write = monitor.write_events

        def write_events(events: Any) -> None:
            with dispensable("DeepSpeed's monitors fail, and write no more"):
                write(events)
                return
            monitor.enabled = False

        monitor.write_events = write_events

    def _patch(self, device: torch.device) -> None:
        """Replace what DeepSpeed does slowly, where that was measured; see scaler/engine/patches."""
        zero, backend = self.deepspeed.optimizer, deepspeed.comm.comm.cdb
        if self.stage in (1, 2) and hasattr(backend, "reduce_to_owners"):
            direct_collectives.install_reduction(zero, backend)
        offload = bool(getattr(zero, "cpu_offload", False))
        install_norm = partial(gradient_norm.install, zero, deepspeed.comm.all_reduce)
        patches.apply("gradient_norm", install_norm, device, self.stage, offload)
        outcomes = switches.outcomes().items()
        logger.debug("patches: " + ", ".join(f"{name}: {outcome}" for name, outcome in outcomes))


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Return AdamW (fused) or SGD over the trainable parameters, at learning rate 0 until `Engine.step` sets one."""
    groups = parameter_groups(model, settings.weight_decay)
    for group in groups:
        group["learning_rate_multiplier"] = settings.embedding_rate if group["name"] == "embeddings" else 1.0
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)


def check(resolved: dict[str, Any], path: Path) -> None:
    """Let DeepSpeed check its `zero_optimization` section before anything is built.

    Raises: ScalerError that names the file and the key.
    """
    try:
        DeepSpeedZeroConfig(**resolved.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ScalerError(f"{path}: {key}={first.get('input')!r}: {first['msg']}") from error

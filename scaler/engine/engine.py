"""The DeepSpeed engine: the only place that starts it, and the facts about it that its documentation leaves out."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from pydantic import ValidationError
from torch import nn

from scaler.config import deepspeed as ds_config
from scaler.config.deepspeed import STATE_KINDS
from scaler.config.training_sections import Optimizer
from scaler.core.errors import ScalerError
from scaler.engine.clock import ComputeClock
from scaler.engine.patches import direct_collectives, gradient_norm
from scaler.engine.state import ShardedState
from scaler.model import embeddings
from scaler.model.parameters import parameter_groups

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of DeepSpeed's own calls


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW (fused) or SGD over the trainable parameters, at learning rate 0 until `Engine.step` sets one."""
    groups = parameter_groups(model, settings.weight_decay)
    for group in groups:
        group["learning_rate_multiplier"] = settings.embedding_rate if group["name"] == "embeddings" else 1.0
    if settings.name == "adamw":
        return torch.optim.AdamW(groups, lr=0.0, betas=settings.betas, eps=settings.eps, fused=True)
    return torch.optim.SGD(groups, lr=0.0, momentum=settings.momentum)


def check(resolved: dict[str, Any], path: Path) -> None:
    """Let DeepSpeed check its own section before anything is built. Raises ScalerError that names file and key."""
    try:
        DeepSpeedZeroConfig(**resolved.get("zero_optimization", {}))
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("zero_optimization", *first["loc"])))
        raise ScalerError(f"{path}: {key}={first.get('input')!r}: {first['msg']}") from error


class Engine:
    """A DeepSpeed engine that shows the training loop the same face for every ZeRO stage and precision.

    Attributes:
        watch: is told what the engine is about to do.
        compute_clock: a clock for what needs no other rank.
        held: this rank's share of weights and optimizer state.
    """

    def __init__(self, model: nn.Module, settings: Optimizer, resolved: dict[str, Any]) -> None:
        self.watch: Callable[[str], None] = lambda doing: None
        self.compute_clock = ComputeClock(next(model.parameters()).device)
        optimizer = make_optimizer(model, settings)
        self.stage = ds_config.zero_stage(resolved)
        self.bf16 = bool(resolved["bf16"].get("enabled"))
        self.clipping = float(resolved.get("gradient_clipping", 0.0))
        try:
            self.deepspeed, *_ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                # its own printing needs a counter; 0 is refused
                config={"steps_per_print": 1 << 62, **resolved},
            )
        except (ValueError, AssertionError, KeyError) as error:
            raise ScalerError(f"DeepSpeed refuses its configuration: {' '.join(str(error).split())[:400]}") from error
        if self.stage in (1, 2) and next(model.parameters()).device.type == "cpu":
            direct_collectives.reduce_by(self.deepspeed.optimizer, deepspeed.comm.comm.cdb)
        if self.stage in (1, 2) and not self.deepspeed.optimizer.cpu_offload:
            gradient_norm.give_to(self.deepspeed.optimizer, deepspeed.comm.all_reduce)
        if self.stage == 0:
            # in bf16 DeepSpeed takes an empty step as it starts; at learning rate 0 it moves no weight,
            # but would put Adam's bias correction one step ahead
            optimizer.state.clear()
        without = settings.name == "sgd" and settings.momentum == 0
        kinds = () if without else STATE_KINDS[settings.name]
        self.state = ShardedState(self.module, optimizer, self.deepspeed.optimizer, self.stage, self.bf16, kinds)

    @property
    def module(self) -> Any:
        """The wrapped model."""
        return self.deepspeed.module

    def train(self, training: bool) -> None:
        """Switch between training and evaluation."""
        self.deepspeed.train(training)

    def __call__(self, *arguments: Any) -> Any:
        """Run the model forward."""
        self.watch("the forward pass")
        return self.deepspeed(*arguments)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this micro-batch's gradient; DeepSpeed divides by the accumulation."""
        self.watch("the backward pass")
        self.deepspeed.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Count a micro-batch; after the last one of a batch update the weights.

        Returns: at the end of a batch the global gradient norm before clipping, else 0. If it is not finite, the
        weights are as they were: DeepSpeed skips such a step in silence at stages 1 to 3, and here stage 0 does too.
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
        norm = self._norm_of_replicated_gradients()
        if math.isfinite(norm):
            self.deepspeed.step()
        else:
            self.deepspeed.zero_grad()
            self.deepspeed.micro_steps += 1  # as its own step would
        return norm

    def _norm_of_replicated_gradients(self) -> float:
        # plain fp32 data parallelism: DeepSpeed averages in backward, and reports no norm
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def full_state(self) -> dict[str, torch.Tensor]:
        """The model's whole state in fp32 on the CPU, from the master weights; every rank must call it."""
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
        """What the token embeddings are now; every rank must call it."""
        model = self.module.model
        with deepspeed.zero.GatheredParameters([model.get_input_embeddings().weight], enabled=self.stage == 3):
            return embeddings.note(model, self.bf16)

    def close(self) -> None:
        """Free the engine."""
        self.deepspeed.destroy()

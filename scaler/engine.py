"""The DeepSpeed engine: the only place that starts it, and the facts about it that its documentation leaves out."""

from __future__ import annotations

import logging
import math
import os
import warnings
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from scaler import ds_config
from scaler.errors import ScalerError
from scaler.model import parameter_groups
from scaler.recipe import Optimizer
from scaler.world import World, publish

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
import deepspeed
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of DeepSpeed's own calls


def join(world: World) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs."""
    # At every start DeepSpeed compiles a shared-memory all-reduce that only its inference engine calls (105 s on one
    # core, and it wants a C++ compiler). Training never uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    publish(world)
    if "OMP_NUM_THREADS" not in os.environ:  # DeepSpeed's launcher leaves every rank to take all cores
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    if torch.cuda.is_available():
        torch.cuda.set_device(world.local_rank)
    deepspeed.init_distributed(
        dist_backend="nccl" if torch.cuda.is_available() else "gloo", auto_mpi_discovery=False, verbose=False
    )


def leave() -> None:
    """Leave the process group, if this rank has joined one: gloo's threads abort a process that ends with them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def make_optimizer(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW (fused) or SGD over the trainable parameters, at learning rate 0 until `Engine.step` sets one."""
    groups = parameter_groups(model, settings.weight_decay)
    for group in groups:
        group["rate"] = settings.embedding_rate if group["name"] == "embeddings" else 1.0
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
    """A DeepSpeed engine that shows the training loop the same face for every ZeRO stage and precision."""

    def __init__(self, model: nn.Module, settings: Optimizer, resolved: dict[str, Any]) -> None:
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
        if self.stage == 0:
            # in bf16 DeepSpeed takes an empty step as it starts; at learning rate 0 it moves no weight,
            # but would put Adam's bias correction one step ahead
            optimizer.state.clear()

    @property
    def module(self) -> Any:
        """The wrapped model."""
        return self.deepspeed.module

    def train(self, training: bool) -> None:
        """Switch between training and evaluation."""
        self.deepspeed.train(training)

    def __call__(self, *arguments: Any) -> Any:
        """Run the model forward."""
        return self.deepspeed(*arguments)

    def backward(self, loss: torch.Tensor) -> None:
        """Add this micro-batch's gradient; DeepSpeed divides by the accumulation."""
        self.deepspeed.backward(loss)

    def step(self, learning_rate: float) -> float:
        """Count a micro-batch; after the last one of a batch update the weights.

        Returns: at the end of a batch the global gradient norm before clipping, else 0. If it is not finite, the
        weights are as they were: DeepSpeed skips such a step in silence at stages 1 to 3, and here stage 0 does too.
        """
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = learning_rate * group["rate"]
        if not self.deepspeed.is_gradient_accumulation_boundary():
            self.deepspeed.step()
            return 0.0
        if self.stage or self.bf16:
            self.deepspeed.step()
            return float(self.deepspeed.get_global_grad_norm())
        norm = self._norm_of_replicated_gradients()
        if math.isfinite(norm):
            self.deepspeed.step()
        return norm

    def _norm_of_replicated_gradients(self) -> float:
        # plain fp32 data parallelism: DeepSpeed averages in backward, and reports no norm
        gradients = [p.grad for p in self.module.parameters() if p.grad is not None]
        return float(torch.nn.utils.get_total_norm(gradients))

    def full_state(self) -> dict[str, torch.Tensor]:
        """The model's whole state in fp32 on the CPU, from the master weights; every rank must call it."""
        from deepspeed.utils import safe_get_full_fp32_param

        of_stage_0 = {}
        if self.stage == 0 and self.bf16:
            wrapped = self.deepspeed.optimizer
            for halves, masters in zip(wrapped.fp16_groups, wrapped.fp32_groups, strict=True):
                of_stage_0.update({id(half): master for half, master in zip(halves, masters, strict=True)})
        state = {}
        for name, parameter in self.module.named_parameters():
            full = of_stage_0.get(id(parameter))
            if full is None and self.stage:
                full = safe_get_full_fp32_param(parameter)
            if full is None:  # frozen, or stage 0 in fp32
                with deepspeed.zero.GatheredParameters([parameter], enabled=self.stage == 3):
                    full = parameter.detach().clone()
            state[name.removeprefix("model.")] = full.detach().float().cpu().clone()
        return state

    def close(self) -> None:
        """Free the engine."""
        self.deepspeed.destroy()

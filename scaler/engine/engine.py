"""The DeepSpeed engine: the only place that starts it, and the facts about it that its documentation leaves out."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import nn

from scaler.config import deepspeed as ds_config
from scaler.config.recipe import Optimizer
from scaler.core.errors import ScalerError
from scaler.distributed.world import World, device, publish
from scaler.engine.clock import OwnWork
from scaler.engine.patches import allocator, gradient_norm
from scaler.engine.patches import direct_collectives as exchange
from scaler.engine.state import HeldState
from scaler.model import embeddings
from scaler.model.build import parameter_groups

os.environ.setdefault("DS_ACCELERATOR", "cuda" if torch.cuda.is_available() else "cpu")
import deepspeed
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")  # of DeepSpeed's own calls


# The state that an optimizer keeps for each weight, by its own names.
STATE_KINDS: dict[str, tuple[str, ...]] = {"adamw": ("exp_avg", "exp_avg_sq"), "sgd": ("momentum_buffer",)}
# What DeepSpeed's backend calls of torch.distributed in a training, by the backend's names.
COLLECTIVES = (
    *("all_reduce", "all_reduce_coalesced", "reduce", "reduce_scatter", "reduce_scatter_tensor", "broadcast"),
    *("all_gather", "all_gather_into_tensor", "all_gather_coalesced", "all_to_all", "all_to_all_single", "barrier"),
    "reduce_to_owners",  # of `exchange`, on CPUs
)


def join(world: World, seconds: float | None = None) -> None:
    """Join the process group: NCCL on GPUs, gloo on CPUs.

    Args:
        seconds: that the ranks wait for each other, now and in every collective; torch's 30 minutes by default.

    Raises: ScalerError when the ranks cannot meet.
    """
    # At every start DeepSpeed compiles a shared-memory all-reduce that only its inference engine calls (105 s on one
    # core, and it wants a C++ compiler). Training never uses it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    publish(world)
    if "OMP_NUM_THREADS" not in os.environ:  # DeepSpeed's launcher leaves every rank to take all cores
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world.local_size))
    backend, place = "gloo", device(world)
    if place.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(place)
        os.environ["LOCAL_RANK"] = str(place.index)  # from which DeepSpeed takes its device
    else:
        allocator.keep_freed_memory()
    limit = {} if seconds is None else {"timeout": timedelta(seconds=seconds)}
    try:
        deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False, **limit)
    except (torch.distributed.DistError, ValueError) as error:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise ScalerError(
            f"rank {world.rank}: {world.size} ranks could not meet at {where} ({str(error).splitlines()[0][:200]}); "
            "all nodes must reach that address, and the port must be free: set MASTER_ADDR and MASTER_PORT"
        ) from error
    if backend == "gloo":
        exchange.give_to(deepspeed.comm.comm.cdb)


def is_lost_connection(error: RuntimeError) -> bool:
    """A collective failed because another rank is no longer there."""
    said = str(error).lower()
    if "invalid usage" in said or "invalid argument" in said:  # of NCCL; nothing that another start mends
        return False
    words = ("connection", "gloo", "nccl", "peer", "socket")
    return isinstance(error, torch.distributed.DistError) or any(word in said for word in words)


def leave() -> None:
    """Leave the process group, if this rank has joined one: gloo's threads abort a process that ends with them."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@contextlib.contextmanager
def timed_collectives(device: torch.device) -> Iterator[list[float]]:
    """The seconds of each collective that DeepSpeed calls inside `with`, in a list that grows; each is waited for.

    DeepSpeed's own logger (0.19.8) cannot give them: for each call it writes down the sum of all calls so far (it reads
    its timers with `reset=False`), and on CPUs it does not wait for asynchronous ones, which stage 3 has.
    """
    backend = deepspeed.comm.comm.cdb
    found: list[float] = []

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def timed(collective: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            start = now()
            handle = collective(*arguments, **options)
            if handle is not None and hasattr(handle, "wait"):
                handle.wait()
            found.append(now() - start)
            return handle

        return call

    own = dict(vars(backend))
    try:
        for name in filter(partial(hasattr, backend), COLLECTIVES):
            setattr(backend, name, timed(getattr(backend, name)))  # of this object, before those of its class
        yield found
    finally:
        for name in COLLECTIVES:
            vars(backend).pop(name, None)
        vars(backend).update(own)


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
    """A DeepSpeed engine that shows the training loop the same face for every ZeRO stage and precision.

    Attributes:
        watch: is told what the engine is about to do.
        own_work: a clock for what needs no other rank.
        held: this rank's share of weights and optimizer state.
    """

    def __init__(self, model: nn.Module, settings: Optimizer, resolved: dict[str, Any]) -> None:
        self.watch: Callable[[str], None] = lambda doing: None
        self.own_work = OwnWork(next(model.parameters()).device)
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
            exchange.reduce_by(self.deepspeed.optimizer, deepspeed.comm.comm.cdb)
        if self.stage in (1, 2) and not self.deepspeed.optimizer.cpu_offload:
            gradient_norm.give_to(self.deepspeed.optimizer, deepspeed.comm.all_reduce)
        if self.stage == 0:
            # in bf16 DeepSpeed takes an empty step as it starts; at learning rate 0 it moves no weight,
            # but would put Adam's bias correction one step ahead
            optimizer.state.clear()
        without = settings.name == "sgd" and settings.momentum == 0
        kinds = () if without else STATE_KINDS[settings.name]
        self.held = HeldState(self.module, optimizer, self.deepspeed.optimizer, self.stage, self.bf16, kinds)

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

        masters = self.held.masters()
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

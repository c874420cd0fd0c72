"""This rank's shards of weights and optimizer state at every ZeRO stage, which checkpoints write and read."""

from __future__ import annotations

from typing import Any

import deepspeed
import torch

from scaler.checkpoint.format import FROZEN, WEIGHT, ParameterShard
from scaler.core.errors import ScalerError

# private attributes of DeepSpeed's optimizers and of the parameters that they train
_STAGE_3 = (
    *("grad_position", "get_param_id", "fp32_partitioned_groups_flat", "checkpoint_event_prologue"),
    *("checkpoint_event_epilogue", "_reassign_or_swap_out_partitioned_parameters"),
)
_OF_OPTIMIZER = {1: ("update_lp_params",), 2: ("update_lp_params",), 3: _STAGE_3}
_OF_PARAMETER = {1: ("_hp_mapping",), 2: ("_hp_mapping",), 3: ("ds_tensor", "ds_numel", "_z3_optimizer")}


class ShardedState:
    """The shards of one DeepSpeed engine on this rank.

    DeepSpeed has no public access to them that works at every stage, so this class reads its private attributes.

    Args:
        module: the model.
        optimizer: the torch optimizer that DeepSpeed was given.
        wrapped: DeepSpeed's own optimizer around it.
        stage: of ZeRO.
        bf16: the forward pass computes in bf16.
        kinds: names of the tensors that the optimizer keeps for each weight.

    Raises: ScalerError when this DeepSpeed lacks an attribute that is needed.
    """

    def __init__(
        self,
        module: Any,
        optimizer: torch.optim.Optimizer,
        wrapped: Any,
        stage: int,
        bf16: bool,
        kinds: tuple[str, ...],
    ) -> None:
        self._module, self._optimizer, self._wrapped = module, optimizer, wrapped
        self._stage, self._bf16, self._kinds = stage, bf16, kinds
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        of_optimizer = _OF_OPTIMIZER.get(stage, ("fp16_groups", "fp32_groups") if bf16 else ())
        needed = [(wrapped, name) for name in of_optimizer]
        needed += [(parameter, name) for parameter in trained[:1] for name in _OF_PARAMETER.get(stage, ())]
        missing = [name for owner, name in needed if not hasattr(owner, name)]
        if missing:
            raise ScalerError(
                f"deepspeed {deepspeed.__version__} lacks {', '.join(missing)} at ZeRO-{stage}, which "
                "checkpoints need; install the version that requirements.lock names"
            )

    def shards(self, updates: int) -> list[ParameterShard]:
        """Return this rank's shards as views of what the engine holds, so that they can be read and written.

        Args:
            updates: the optimizer steps that moved the weights; before the first there is no optimizer state.
        """
        rank = torch.distributed.get_rank()
        masters = self.masters()
        shards = []
        for long_name, parameter in self._module.named_parameters():
            start, whole = 0, parameter.numel()
            if self._stage == 3:
                length = parameter.ds_tensor.ds_numel  # of a rank's shard, padding included
                start, whole = rank * length, int(parameter.ds_numel)
                length = max(0, min(length, whole - start))
                if parameter.requires_grad:
                    zero = parameter._z3_optimizer
                    group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                    tensors = self._state(zero.fp32_partitioned_groups_flat[group], offset, length, updates)
                else:
                    tensors = {FROZEN: parameter.ds_tensor.data[:length]}
                start = min(start, whole)
            elif not parameter.requires_grad:
                tensors = {FROZEN: parameter.data.view(-1)}
            elif self._stage == 0:
                tensors = self._state(masters.get(id(parameter), parameter), 0, whole, updates)
            elif (held := parameter._hp_mapping) is not None:
                (flat,) = self._optimizer.param_groups[held.param_group_index]["params"]
                where, start = held.hp_fragment_address, held.lp_fragment_address.start
                tensors = self._state(flat, where.start, where.numel, updates)
            else:
                tensors = {WEIGHT: torch.empty(0)}
            everywhere = self._stage == 0 or (self._stage < 3 and not parameter.requires_grad)
            shards.append(ParameterShard(long_name.removeprefix("model."), start, whole, tensors, everywhere))
        return shards

    def masters(self) -> dict[int, torch.Tensor]:
        """Return DeepSpeed's fp32 copies by `id` of their parameter: at stage 0 in bf16; none otherwise."""
        if self._stage or not self._bf16:
            return {}
        pairs = zip(self._wrapped.fp16_groups, self._wrapped.fp32_groups, strict=True)
        return {id(half): master for group in pairs for half, master in zip(*group, strict=True)}

    def _state(self, holder: torch.Tensor, offset: int, length: int, updates: int) -> dict[str, torch.Tensor]:
        # created here where the optimizer has none yet, with the zeros that it would create at its first step
        tensors = {WEIGHT: holder}
        if updates:
            state = self._optimizer.state[holder]
            for kind in self._kinds:
                if state.get(kind) is None:
                    state[kind] = torch.zeros_like(holder)
                tensors[kind] = state[kind]
        return {kind: tensor.detach().view(-1)[offset : offset + length] for kind, tensor in tensors.items()}

    def apply_loaded(self, updates: int) -> None:
        """Make the engine use shards that were written to. Collective.

        The weights of the forward pass are set from the fp32 ones, and Adam's bias correction from the updates.

        Args:
            updates: the optimizer steps that moved the weights.
        """
        if isinstance(self._optimizer, torch.optim.AdamW):
            for state in self._optimizer.state.values():
                state["step"] = torch.tensor(float(updates), device=state["exp_avg"].device)
        if not updates:
            self._optimizer.state.clear()
        wrapped = self._wrapped
        if self._stage == 3:
            wrapped.checkpoint_event_prologue()
            for group in range(len(wrapped.fp32_partitioned_groups_flat)):
                wrapped._reassign_or_swap_out_partitioned_parameters(group)
            wrapped.checkpoint_event_epilogue()
        elif self._stage:
            wrapped.update_lp_params()
        else:
            masters = self.masters()
            for parameter in self._module.parameters():
                if id(parameter) in masters:
                    parameter.data.copy_(masters[id(parameter)].data)

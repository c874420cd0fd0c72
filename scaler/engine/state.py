"""What a rank holds of weights and optimizer state, at every ZeRO stage: what a checkpoint writes and fills again."""

from __future__ import annotations

from typing import Any

import torch

from scaler.checkpoint.format import FROZEN, WEIGHT, ParameterShard


class ShardedState:
    """The state of one DeepSpeed engine on this rank.

    Args:
        module: the wrapped model.
        optimizer: torch's, that DeepSpeed was given.
        wrapped: DeepSpeed's own around it.
        stage: of ZeRO.
        bf16: the forward pass computes in it.
        kinds: of state that the optimizer keeps for each weight, by its own names.
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

    def shards(self, updates: int) -> list[ParameterShard]:
        """The stretches of parameters and optimizer state that this rank holds, as views: reading and writing alike.

        Args:
            updates: optimizer steps that moved the weights; before the first there is no optimizer state.
        """
        rank = torch.distributed.get_rank()
        masters = self.masters()
        shards = []
        for long_name, parameter in self._module.named_parameters():
            name = long_name.removeprefix("model.")
            if self._stage == 3:
                length = parameter.ds_tensor.ds_numel  # a rank's share, padding included
                start, whole = rank * length, int(parameter.ds_numel)
                length = max(0, min(length, whole - start))
                if parameter.requires_grad:
                    zero = parameter._z3_optimizer
                    group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                    tensors = self._state(zero.fp32_partitioned_groups_flat[group], offset, length, updates)
                else:
                    tensors = {FROZEN: parameter.ds_tensor.data[:length]}
                shards.append(ParameterShard(name, min(start, whole), whole, tensors))
            elif not parameter.requires_grad:
                tensors = {FROZEN: parameter.data.view(-1)}
                shards.append(ParameterShard(name, 0, parameter.numel(), tensors, everywhere=True))
            elif self._stage == 0:
                tensors = self._state(masters.get(id(parameter), parameter), 0, parameter.numel(), updates)
                shards.append(ParameterShard(name, 0, parameter.numel(), tensors, everywhere=True))
            elif (held := parameter._hp_mapping) is not None:
                (flat,) = self._optimizer.param_groups[held.param_group_index]["params"]
                where, start = held.hp_fragment_address, held.lp_fragment_address.start
                tensors = self._state(flat, where.start, where.numel, updates)
                shards.append(ParameterShard(name, start, parameter.numel(), tensors))
            else:
                empty = {WEIGHT: torch.empty(0)}
                shards.append(ParameterShard(name, 0, parameter.numel(), empty))
        return shards

    def masters(self) -> dict[int, torch.Tensor]:
        """The fp32 copies, by `id` of their parameter, that DeepSpeed's wrapper holds at stage 0 in bf16; else none."""
        if self._stage or not self._bf16:
            return {}
        pairs = zip(self._wrapped.fp16_groups, self._wrapped.fp32_groups, strict=True)
        return {id(half): master for group in pairs for half, master in zip(*group, strict=True)}

    def _state(self, holder: torch.Tensor, offset: int, length: int, updates: int) -> dict[str, torch.Tensor]:
        # made here when the optimizer has none yet; its own lazy one would be the same, at step 0
        tensors = {WEIGHT: holder}
        if updates:
            state = self._optimizer.state[holder]
            for kind in self._kinds:
                if state.get(kind) is None:
                    state[kind] = torch.zeros_like(holder)
                tensors[kind] = state[kind]
        return {kind: tensor.detach().view(-1)[offset : offset + length] for kind, tensor in tensors.items()}

    def apply_loaded(self, updates: int) -> None:
        """Go on from shards that were written to, after so many updates; every rank must call it.

        The weights of the forward pass follow the fp32 ones, and Adam's bias correction the number of updates.
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

"""ZeRO's partitioned state as whole tensors, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from modeling_foundry.training.checkpoints.stored_optimizer import (
    MASTER,
    StoredState,
    plain_options,
    restored_options,
)


class _ZeroState:
    """DeepSpeed ZeRO 1 and 2: through its public functions that gather and scatter the state of one parameter."""

    def __init__(self, engine: Any) -> None:
        self.zero = engine.optimizer
        self.base = engine.optimizer.optimizer
        self.names = {id(parameter): name for name, parameter in engine.module.named_parameters()}

    def _named_groups(self) -> list[list[tuple[str, nn.Parameter]]]:
        return [[(self.names[id(p)], p) for p in group] for group in self.zero.bit16_groups]

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        self._link()
        for index, group in enumerate(self._named_groups()):
            state = self._flat_state(index)
            kinds = sorted(kind for kind, value in state.items() if _is_moment(value))
            for name, parameter in group:
                yield f"{MASTER}.{name}", safe_get_full_fp32_param(parameter)
                if kinds:
                    yield f"step.{name}", torch.as_tensor(state["step"]).float()
                for kind in kinds:
                    yield f"{kind}.{name}", safe_get_full_optimizer_state(parameter, kind)

    def groups(self) -> list[dict[str, Any]]:
        named = self._named_groups()
        return [
            plain_options(group) | {"params": [name for name, _ in named[index]]}
            for index, group in enumerate(self.base.param_groups)
        ]

    def load(self, stored: StoredState) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        named = self._named_groups()
        stored.check_names([[name for name, _ in group] for group in named])
        if stored.has_moments():
            self._create_state()
            self._link()
        for index, group in enumerate(named):
            state = self._flat_state(index)
            kinds = [kind for kind, value in state.items() if _is_moment(value)]
            for name, parameter in group:
                for kind in kinds:
                    safe_set_full_optimizer_state(parameter, stored.tensor(kind, name), kind)
                if f"{MASTER}.{name}" in stored:
                    safe_set_full_fp32_param(parameter, stored.tensor(MASTER, name))
            if kinds:
                step = stored.tensor("step", group[0][0])
                state["step"] = step.to(state["step"]) if isinstance(state["step"], Tensor) else int(step)
            options = self.base.param_groups[index]
            options.update(restored_options(options, stored.options(index)))

    def _flat_state(self, index: int) -> dict[str, Any]:
        return self.base.state[self.zero.single_partition_of_fp32_groups[index]]

    def _link(self) -> None:
        """Tell each parameter its place in the moments; DeepSpeed itself does so for its first group only."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        for group, flat in zip(
            self.zero.bit16_groups, self.zero.single_partition_of_fp32_groups, strict=True
        ):
            moments = {k: v for k, v in self.base.state[flat].items() if _is_moment(v)}
            if moments:  # none before the first applied update
                lazy_init_hp_params_optimizer_state(group, flat, {flat: moments})

    def _create_state(self) -> None:
        """One step of learning rate zero on zero gradients: the moments must exist before they can be set."""
        rates = [group["lr"] for group in self.base.param_groups]
        for group in self.base.param_groups:
            group["lr"] = 0.0
        for flat in self.zero.single_partition_of_fp32_groups:
            flat.grad = torch.zeros_like(flat)
        self.base.step()
        for flat in self.zero.single_partition_of_fp32_groups:
            flat.grad = None
        for group, rate in zip(self.base.param_groups, rates, strict=True):
            group["lr"] = rate


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0

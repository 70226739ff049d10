"""The optimizer's state as named, whole tensors in safetensors: the same files for every back end.

A parameter's moments are stored under its name, whole, whether one process held them or FSDP or ZeRO shared
them out.  So a run goes on with another number of ranks, or another back end, without a conversion.  Where a
back end trains in bf16 and keeps fp32 weights beside it (ZeRO), these are stored too, as ``master``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ...files import write_atomically
from ...settings import FoundryError
from .deepspeed_optimizer import _ZeroState
from .stored_optimizer import (
    INDEX_NAME,
    MASTER,
    StoredState,
    named_parameters,
    plain_options,
    restored_options,
)

SHARD_BYTES = 4 * 2**30
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_optimizer(folder: Path, model: nn.Module, optimizer: Any, is_main: bool) -> None:
    """Write ``optimizer-*.safetensors`` and ``optimizer.json``; every rank calls it, the first one writes.

    Args:
        model: as Trainer wrapped it (DDP, DeepSpeed's engine, FSDP) or plain.
        optimizer: the torch optimizer, or DeepSpeed's around it.
    """
    source = _ZeroState(model) if is_zero(model) else _TorchState(model, optimizer)
    files: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    num_shards = size = 0

    def flush() -> None:
        nonlocal shard, size, num_shards
        if shard and is_main:
            num_shards += 1
            name = f"optimizer-{num_shards:05}.safetensors"
            save_file(shard, folder / name)
            files.update(dict.fromkeys(shard, name))
        shard, size = {}, 0

    for name, tensor in source.tensors():
        if size and size + tensor.nbytes > SHARD_BYTES:
            flush()
        size += tensor.nbytes
        if is_main:
            shard[name] = tensor.detach().to("cpu", copy=True).contiguous()
    flush()
    if is_main:
        index = {"groups": source.groups(), "tensors": files}
        write_atomically(folder / INDEX_NAME, json.dumps(index, indent=1) + "\n")


def load_optimizer(folder: Path, model: nn.Module, optimizer: Any) -> None:
    """Put the stored state back, on every rank its part.

    Raises:
        FoundryError: a file or a tensor is missing, or the parameters are not those of the stored run.
    """
    stored = StoredState(folder)
    target = _ZeroState(model) if is_zero(model) else _TorchState(model, optimizer)
    target.load(stored)


def is_zero(model: nn.Module) -> bool:
    """Whether this is DeepSpeed's engine with a ZeRO optimizer."""
    return type(model).__name__ == "DeepSpeedEngine" and model.zero_optimization_stage() > 0


class _TorchState:
    """One process, DDP and FSDP: torch.distributed.checkpoint knows names and gathers shards."""

    def __init__(self, model: nn.Module, optimizer: Any) -> None:
        self.model, self.optimizer = model, getattr(optimizer, "optimizer", optimizer)
        self._groups: list[dict[str, Any]] = []

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        if not self.optimizer.state:
            # torch would begin the state with a step on zero gradients, and the run would go on one step ahead.
            groups = zip(self.optimizer.param_groups, self._named_groups(), strict=True)
            self._groups = [group | {"params": names} for group, names in groups]
            return
        whole: Any = get_optimizer_state_dict(self.model, self.optimizer, options=WHOLE)
        self._groups = whole.get("param_groups", [])
        for name, state in sorted(whole.get("state", {}).items()):
            for kind, value in sorted(state.items()):
                yield f"{kind}.{name}", torch.as_tensor(value)

    def groups(self) -> list[dict[str, Any]]:
        return [plain_options(group) | {"params": group["params"]} for group in self._groups]

    def _named_groups(self) -> list[list[str]]:
        names = {id(parameter): name for name, parameter in named_parameters(self.model)}
        return [[names[id(p)] for p in group["params"]] for group in self.optimizer.param_groups]

    def load(self, stored: StoredState) -> None:
        named = self._named_groups()
        stored.check_names(named)
        if not stored.has_moments():
            for index, group in enumerate(self.optimizer.param_groups):
                group.update(restored_options(group, stored.options(index)))
            return self._load_master(stored)
        state: dict[str, Any] = {}
        for name in (name for group in named for name in group):
            kinds = [kind for kind in stored.kinds_of(name) if kind != MASTER]
            state[name] = {kind: stored.tensor(kind, name) for kind in kinds}
        groups = [
            restored_options(group, stored.options(index)) | {"params": named[index]}
            for index, group in enumerate(self.optimizer.param_groups)
        ]
        set_optimizer_state_dict(
            self.model, self.optimizer, {"state": state, "param_groups": groups},
            options=StateDictOptions(full_state_dict=True),
        )  # fmt: skip
        self._load_master(stored)

    @torch.no_grad()
    def _load_master(self, stored: StoredState) -> None:
        """fp32 weights that ZeRO kept beside bf16 ones, where this back end trains in fp32."""
        for name, parameter in named_parameters(self.model):
            if f"{MASTER}.{name}" in stored and parameter.dtype == torch.float32:
                if hasattr(parameter, "device_mesh"):
                    raise FoundryError(
                        f"{stored.folder}: written under ZeRO; go on with ZeRO, DDP or one process, not FSDP"
                    )
                parameter.copy_(stored.tensor(MASTER, name))

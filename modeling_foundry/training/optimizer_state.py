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
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from ..files import write_atomically
from ..settings import FoundryError

INDEX_NAME = "optimizer.json"
SHARD_BYTES = 4 * 2**30
MASTER = "master"
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


class StoredState:
    """What :func:`save_optimizer` wrote, read tensor by tensor."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / INDEX_NAME
        try:
            content = json.loads(path.read_text())
            self.groups: list[dict[str, Any]] = content["groups"]
            self.files: dict[str, str] = content["tensors"]
        except FileNotFoundError as error:
            raise FoundryError(
                f"{path}: missing, so the optimizer cannot go on where it was; restore the checkpoint, or "
                "start again with --overwrite=true"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise FoundryError(f"{path}: not an index of optimizer state; restore the checkpoint") from error
        self._kinds: dict[str, list[str]] = {}
        for kind, parameter in map(split_name, self.files):
            self._kinds.setdefault(parameter, []).append(kind)

    def __contains__(self, name: str) -> bool:
        return name in self.files

    def kinds_of(self, parameter: str) -> list[str]:
        """The kinds of state a parameter has: exp_avg, exp_avg_sq, step ..."""
        return self._kinds.get(parameter, [])

    def has_moments(self) -> bool:
        """False where no update had been applied yet: an optimizer begins its state with its first one."""
        return any(kind != MASTER for kinds in self._kinds.values() for kind in kinds)

    def tensor(self, kind: str, parameter: str) -> Tensor:
        name = f"{kind}.{parameter}"
        if name not in self.files:
            raise FoundryError(
                f"{self.folder / INDEX_NAME}: no {kind} of {parameter}; restore the checkpoint"
            )
        path = self.folder / self.files[name]
        try:
            with safe_open(path, framework="pt") as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise FoundryError(f"{path}: cannot read {name} ({error}); restore the checkpoint") from error

    def check_names(self, groups: list[list[str]]) -> None:
        """Raise FoundryError unless the parameter groups hold the same names."""
        stored = [group["params"] for group in self.groups]
        if [sorted(names) for names in stored] != [sorted(names) for names in groups]:
            different = sorted(set().union(*stored) ^ set().union(*groups)) or ["their grouping"]
            raise FoundryError(
                f"{self.folder / INDEX_NAME}: state of other parameters than this model's ({different[0]}); "
                "go on with the settings of the run, or start again with --overwrite=true"
            )

    def options(self, group: int) -> dict[str, Any]:
        """Learning rate, betas and the like of one parameter group, lists where torch has tuples."""
        return {key: value for key, value in self.groups[group].items() if key != "params"}


def split_name(name: str) -> tuple[str, str]:
    """``exp_avg.model.norm.weight`` to ``exp_avg`` and ``model.norm.weight``."""
    kind, _, parameter = name.partition(".")
    return kind, parameter


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters under the names they have in a checkpoint, without DDP's or torch.compile's prefixes."""
    for name, parameter in model.named_parameters():
        yield name.replace("_orig_mod.", "").removeprefix("module."), parameter


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


def plain_options(group: dict[str, Any]) -> dict[str, Any]:
    """The entries of a parameter group that JSON can hold, without the parameters."""
    plain = (bool, int, float, str, tuple, list, type(None))
    numbers = {key: value.item() if isinstance(value, Tensor) else value for key, value in group.items()}
    return {key: value for key, value in numbers.items() if key != "params" and isinstance(value, plain)}


def restored_options(current: dict[str, Any], stored: dict[str, Any]) -> dict[str, Any]:
    """Stored options in the types the optimizer has: tuples again, tensors again."""
    restored: dict[str, Any] = {}
    for key, value in stored.items():
        if isinstance(current.get(key), tuple) and isinstance(value, list):
            value = tuple(value)
        if isinstance(current.get(key), Tensor):
            value = torch.as_tensor(value).to(current[key])
        restored[key] = value
    return restored

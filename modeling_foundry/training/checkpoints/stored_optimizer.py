"""How an optimizer's state is written: names, index and options."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from ...settings import FoundryError

INDEX_NAME = "optimizer.json"
MASTER = "master"


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

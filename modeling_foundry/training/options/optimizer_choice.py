"""Which of transformers' optimizers can be trained with here, and what they read of ``optim_args``.

An optimizer must leave the update to the end of the step, where the guard can still refuse it, and its state must come
back from a checkpoint as it was.
"""

from __future__ import annotations

from typing import Any

from ...settings import FoundryError

ADAM_KEYS = ("adam_beta1", "adam_beta2", "adam_epsilon")
# name -> what it reads of optim_args; weight_decay has a key of its own, which transformers' groups take instead
TRIED: dict[str, frozenset[str]] = {
    "adamw_torch": frozenset(),
    "adamw_torch_fused": frozenset(),
    "adafactor": frozenset(),
    "sgd": frozenset({"momentum", "dampening", "nesterov"}),
    "adagrad": frozenset({"lr_decay", "eps"}),
    "rmsprop": frozenset({"momentum", "alpha", "eps", "centered"}),
}
ADAM = ("adamw_torch", "adamw_torch_fused")
# part of the name -> why it is refused; the package whose state it keeps
UNFIT = {
    "layerwise": "applies its updates inside the backward pass, where none can be refused",
    "lomo": "applies its updates inside the backward pass, where none can be refused",
    "schedule_free": "is saved between its two sets of weights by Trainer",
    "adamw_torch_xla": "is for TPUs",
    "adamw_torch_npu": "is for NPUs",
    "anyprecision": "needs torchdistx, which is no longer developed",
}
PACKAGES = {
    "galore": "galore_torch", "apollo": "apollo_torch", "grokadamw": "grokadamw", "stable_adamw": "torch-optimi",
    "torch_4bit": "torchao", "torch_8bit": "torchao", "bnb": "bitsandbytes", "8bit": "bitsandbytes",
    "paged": "bitsandbytes", "ademamix": "bitsandbytes", "lion": "bitsandbytes", "32bit": "bitsandbytes",
}  # fmt: skip


def refuse_optimizer(arguments: Any) -> None:
    """Raise FoundryError for an optimizer that does not suit, or a key that the chosen one would pass over."""
    name = str(arguments.optim.value)
    if getattr(arguments, "optimizer", "adamw") == "muon":
        if name != "adamw_torch_fused":
            raise FoundryError(f"optim: {name} is passed over by optimizer: muon; leave one of them out")
    elif name not in TRIED:
        raise FoundryError(f"optim: {why_not(name)}; {', '.join(TRIED)} can be used")
    elif name not in ADAM:
        _refuse_adam_keys(arguments, name)
    if arguments.optim_target_modules is not None:
        raise FoundryError(
            "optim_target_modules: passed over by every optim that can be used here; leave it out"
        )
    _check_optim_args(arguments.optim_args, name)


def why_not(name: str) -> str:
    """Why an optimizer of transformers is refused."""
    for part, words in UNFIT.items():
        if part in name:
            return f"{name} {words}"
    package = next(package for part, package in PACKAGES.items() if part in name)
    return f"{name} (of {package}) keeps state that no checkpoint here can hold"


def _refuse_adam_keys(arguments: Any, name: str) -> None:
    fields = type(arguments).__dataclass_fields__
    for key in ADAM_KEYS:
        if getattr(arguments, key) != fields[key].default:
            raise FoundryError(f"{key}: passed over by optim: {name}; leave it out")


def _check_optim_args(written: str | None, name: str) -> None:
    if not written:
        return
    known = TRIED.get(name, frozenset())
    if not known:
        raise FoundryError(f"optim_args: passed over by optim: {name}; leave it out")
    for part in written.replace(" ", "").split(","):
        key, equals, value = part.partition("=")
        if not equals or not value or key not in known:
            raise FoundryError(
                f"optim_args: expected key=value of {', '.join(sorted(known))} for optim: {name}, found {part!r}"
            )

"""Names that transformers and TRL take for an option and keep in their code only: a wrong one is found in its line.

``tests/training/test_options.py`` holds them against the installed versions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

PreferenceLoss = Literal[
    "sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired",
    "apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm",
]  # fmt: skip
Divergence = Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"]
TokensCounted = Literal["all", "non_padding", "no"]
CompileBackend = Literal["inductor", "cudagraphs", "aot_eager", "eager"]
CompileMode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]

HELD_OUT_METRICS = {
    "pretrain": frozenset({"loss"}),
    "sft": frozenset({"loss", "mean_token_accuracy", "entropy"}),
    "dpo": frozenset(
        {"loss", "mean_token_accuracy", "entropy", "rewards/accuracies"}
        | {f"{what}/{side}" for what in ("rewards", "logps", "logits") for side in ("chosen", "rejected")}
        | {"rewards/margins"}
    ),
}


@dataclass
class NamedOptions:
    """Arguments of transformers, mixed in before it, that it takes as any text and fails at later."""

    torch_compile_backend: CompileBackend | None = None
    torch_compile_mode: CompileMode | None = None

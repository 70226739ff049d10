"""Settings of pretraining: where the tokens come from, and transformers' arguments with a few keys more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from transformers import SchedulerType, TrainingArguments
from transformers.trainer_utils import SaveStrategy

from ..settings import setting
from ..training.log.profiling import ProfileKeys
from ..training.log.trackers import AUTO, MaskedArguments, choose_trackers
from ..training.options.checks import refuse_missing_gpus
from ..training.options.names import NamedOptions
from ..training.processes.deepspeed_build_locks import remove_stale_build_locks
from ..training.safety.update_guard import GuardKeys
from .preflight.preflight import PreflightKeys
from .token_budget import TokenCounts


@dataclass
class PretrainDataSettings:
    """Where the tokens come from."""

    data_dir: str | None = setting("folder written by prepare_data.py", None)
    mixture: dict[str, Any] | None = setting(
        "several such folders with weights: {runs/a/data: 0.7, runs/b/data: 0.3}", None
    )
    max_epochs: float = setting(
        "most repeats of a corpus in a mixture; more teaches little (Muennighoff 2023)", 4.0
    )
    text_file: str | None = setting("any plain-text file: tokenizer and shards are made from it first", None)
    text_file_vocab_size: int = setting("tokenizer size for text_file", 2048)
    sequence_length: int = setting("tokens of one training sequence", 2048)
    document_mask: bool = setting("documents in one sequence do not attend to each other", False)
    max_eval_sequences: int = setting("held-out sequences of the loss curve", 512)


@dataclass
class PretrainArguments(
    MaskedArguments, GuardKeys, PreflightKeys, ProfileKeys, TokenCounts, NamedOptions, TrainingArguments
):
    """transformers' TrainingArguments with pretraining's defaults and a few keys more."""

    optimizer: Literal["adamw", "muon"] = setting(
        "muon: matrices inside the layers by Muon, the rest by AdamW", "adamw"
    )
    muon_learning_rate: float = setting("of the Muon matrices", 0.02)
    compile_layers: bool = setting(
        "torch.compile each layer (starts five times faster than whole-model)", False
    )
    float8: bool = setting("fp8 matrix products by torchao; about 1.25 times faster on an H200", False)
    extend_run: str | None = setting(
        "finished run folder of a warmup_stable_decay schedule: go on from where it decayed", None
    )
    save_initial_model: bool = setting("keep the random start for evaluation", False, neutral=True)
    keep_checkpoints: int = setting("newest whole checkpoints to keep", 2, neutral=True)
    expected_processes: int | None = setting("refuse any other number of ranks", None, neutral=True)
    overwrite: bool = setting("replace a run of other settings in output_dir", False, neutral=True)
    # Defaults of pretraining, in place of fine-tuning's.
    max_steps: int = -1  # given in steps or in tokens
    adam_beta2: float = 0.95
    weight_decay: float = 0.1
    lr_scheduler_type: SchedulerType | str = "cosine_with_min_lr"
    lr_scheduler_kwargs: dict | str | None = None  # of cosine_with_min_lr: {min_lr_rate: 0.1}
    train_sampling_strategy: str = "sequential"  # the dataset itself is shuffled, by seed, epoch and index
    ddp_find_unused_parameters: bool | None = False
    accelerator_config: dict | str | None = None
    save_strategy: SaveStrategy | str = "steps"
    save_steps: float = 500
    report_to: str | list[str] | None = setting(
        "trackers: auto (trackio, local, where installed), none, or names", AUTO, neutral=True
    )

    def __post_init__(self) -> None:
        remove_stale_build_locks(self.deepspeed)
        self.report_to = choose_trackers(self.report_to)
        refuse_missing_gpus(self)
        if self.accelerator_config is None and self._pins_memory():
            # Pinned batches are copied while the step before still runs; a blocking copy would wait for its end.
            self.accelerator_config = {"non_blocking": True}
        if self.lr_scheduler_type == "cosine_with_min_lr" and self.lr_scheduler_kwargs is None:
            self.lr_scheduler_kwargs = {"min_lr_rate": 0.1}
        super().__post_init__()
        if self.eval_strategy == "no":  # never means at the start too: there may be nothing held out
            self.eval_on_start = False

    def _pins_memory(self) -> bool:
        return self.dataloader_pin_memory and not self.use_cpu and torch.cuda.is_available()

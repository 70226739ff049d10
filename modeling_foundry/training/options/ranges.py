"""Numbers that the libraries accept and then crash on, or train nonsense with: refused before anything is loaded."""

from __future__ import annotations

from typing import Any

from ...settings import FoundryError

INFINITY = float("inf")
# key -> lowest value, and the value it must stay below
RANGES = {
    "sequence_length": (2, INFINITY),
    "max_length": (1, INFINITY),
    "text_file_vocab_size": (300, INFINITY),
    "max_eval_sequences": (1, INFINITY),
    "max_train_samples": (1, INFINITY),
    "max_eval_samples": (1, INFINITY),
    "per_device_train_batch_size": (1, INFINITY),
    "per_device_eval_batch_size": (1, INFINITY),
    "gradient_accumulation_steps": (1, INFINITY),
    "global_batch_tokens": (1, INFINITY),
    "max_tokens": (1, INFINITY),
    "warmup_tokens": (0, INFINITY),
    "decay_tokens": (1, INFINITY),
    "z_loss_weight": (0, INFINITY),
    "eval_accumulation_steps": (1, INFINITY),
    "dataloader_num_workers": (0, INFINITY),
    "learning_rate": (0, INFINITY),
    "muon_learning_rate": (0, INFINITY),
    "weight_decay": (0, INFINITY),
    "max_grad_norm": (0, INFINITY),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
    "adam_epsilon": (1e-30, INFINITY),
    "save_steps": (1e-9, INFINITY),
    "eval_steps": (1e-9, INFINITY),
    "keep_checkpoints": (1, INFINITY),
    "expected_processes": (1, INFINITY),
    "lora_rank": (0, INFINITY),
    "lora_alpha": (1, INFINITY),
    "beta": (1e-30, INFINITY),
    "label_smoothing_factor": (0, 1),
    "label_smoothing": (0, 0.5),
    "discopop_tau": (1e-30, INFINITY),
    "ref_model_sync_steps": (1, INFINITY),
    "precompute_ref_batch_size": (1, INFINITY),
    "router_aux_loss_coef": (0, INFINITY),
    "neftune_noise_alpha": (0, INFINITY),
    "pad_to_multiple_of": (1, INFINITY),
    "torch_empty_cache_steps": (1, INFINITY),
    "dataset_num_proc": (1, INFINITY),
    "dataloader_prefetch_factor": (1, INFINITY),
    "logging_steps": (1e-9, INFINITY),
    "eval_delay": (0, INFINITY),
    "ddp_bucket_cap_mb": (1, INFINITY),
    "ddp_timeout": (1, INFINITY),
    "spike_window_steps": (8, INFINITY),
    "spike_deviations": (1e-9, INFINITY),
    "max_skipped_steps": (0, INFINITY),
    "max_rollbacks": (0, INFINITY),
    "rollback_steps": (1, INFINITY),
    "stall_timeout_seconds": (1, INFINITY),
    "profile_step": (1, INFINITY),
    "seed": (0, 2**32),
    "data_seed": (0, 2**32),
}


def check_ranges(*settings: Any) -> None:
    """Raise FoundryError for the first number outside its range; None is the library's default."""
    for name, (low, high) in RANGES.items():
        for value in [getattr(each, name) for each in settings if hasattr(each, name)]:
            if value is not None and not low <= value < high:
                below = f" and below {high:,}" if high < INFINITY else ""
                lowest = "more than 0" if 0 < low < 1 else f"at least {low}"
                raise FoundryError(f"{name}: expected {lowest}{below}, found {value}")


def check_length(arguments: Any, in_steps: bool) -> None:
    """Raise FoundryError where the length of a run is impossible or its key would be ignored.

    Args:
        in_steps: the run is counted in ``max_steps`` alone (pretraining).
    """
    if in_steps and arguments.num_train_epochs != 3.0:  # TrainingArguments' default
        raise FoundryError("num_train_epochs: pretraining counts steps and would ignore it; give max_steps")
    if in_steps and arguments.train_sampling_strategy != "sequential":
        raise FoundryError(
            "train_sampling_strategy: expected sequential, as the data set itself is shuffled (by seed), and "
            f"resume and replay count on its order; found {arguments.train_sampling_strategy!r}"
        )
    if arguments.max_steps < 1 and (in_steps or arguments.max_steps != -1):
        raise FoundryError(f"max_steps: expected at least 1, found {arguments.max_steps}")
    if arguments.num_train_epochs <= 0:
        raise FoundryError(f"num_train_epochs: expected more than 0, found {arguments.num_train_epochs}")

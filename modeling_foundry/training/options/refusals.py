"""Options of transformers and TRL that no run here can honour: each is one line before anything is loaded.

An option is in this table where a library would pass it over in silence, would compute something else than it says,
or would end in a traceback after the weights are loaded.  ``tests/training/test_options.py`` says of every option of
the installed versions whether it works, is refused here or changes nothing that is computed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

PRETRAIN, SFT, DPO = "pretrain", "sft", "dpo"
ALIGNMENT = frozenset({SFT, DPO})
EVERY = ALIGNMENT | {PRETRAIN}

CHECKPOINTING_KEYS = {"use_reentrant", "preserve_rng_state", "early_stop", "every_n_layers", "offload"}
TOPOLOGY = (
    "leave it out; a file of accelerate_configs/ says which engine trains (accelerate launch --config_file)"
)
# Refused at any value but the default: key -> what would be right.
NEVER: dict[str, tuple[frozenset[str], str]] = {
    "resume_from_checkpoint": (
        EVERY,
        "leave it out; a run always goes on from the newest whole checkpoint in its output_dir",
    ),
    "auto_find_batch_size": (
        EVERY,
        "leave it out; after running out of memory it would train other batches than the settings say. Give a "
        "smaller per_device_train_batch_size",
    ),
    "logging_nan_inf_filter": (EVERY, "leave it out; it would log a mean in place of NaN"),
    "average_tokens_across_devices": (
        EVERY,
        "leave it true; else the mean is one of every rank's own mean, and a token counts for more on a rank that has "
        "fewer",
    ),
    "bf16_full_eval": (
        EVERY,
        "leave it out; Trainer passes it over while it trains, when all evaluation here is",
    ),
    "fp16_full_eval": (
        EVERY,
        "leave it out; Trainer passes it over while it trains, when all evaluation here is",
    ),
    "use_liger_kernel": (
        EVERY,
        "leave it out; it goes by model class and passes others over in silence. The loss here never holds all "
        "logits anyway",
    ),
    "liger_kernel_config": (EVERY, "leave it out; use_liger_kernel is refused"),
    "use_cache": (EVERY, "leave it out; training reads no cache, and packed rows must not have one"),
    "label_names": (EVERY, "leave it out; with any name but labels no held-out loss would be computed"),
    "save_total_limit": (EVERY, "leave it out; give keep_checkpoints, which counts whole checkpoints only"),
    "save_only_model": (EVERY, "leave it out; a run could not go on from a checkpoint without its optimizer"),
    "save_on_each_node": (EVERY, "leave it out; all nodes share one run folder, which rank 0 writes"),
    "enable_jit_checkpoint": (EVERY, "leave it out; SIGTERM and SIGUSR2 save a checkpoint without it"),
    "push_to_hub": (EVERY, "leave it out; recipes/publish.py uploads a model, when told to"),
    "restore_callback_states_from_checkpoint": (EVERY, "leave it out; a resumed run restores its own"),
    "eval_use_gather_object": (EVERY, "leave it out; losses are gathered as tensors"),
    "dataloader_in_order": (
        EVERY,
        "leave it true; batches in the order in which workers finish cannot be repeated or gone on from",
    ),
    "ddp_static_graph": (EVERY, "leave it out; a step here may skip the synchronisation of gradients"),
    "deepspeed": (EVERY, TOPOLOGY),
    "fsdp": (EVERY, TOPOLOGY),
    "fsdp_config": (EVERY, TOPOLOGY),
    "parallelism_config": (EVERY, "leave it out; only data parallelism is accounted for"),
    "do_predict": (EVERY, "leave it out; there is no test set here, recipes/evaluate.py evaluates"),
    "length_column_name": (EVERY, "leave it out; samples are not grouped by length"),
    "label_smoothing_factor": (
        frozenset({PRETRAIN, DPO}),
        "leave it out; in pretraining Trainer would not shift the labels, and a model would learn to copy its input; "
        "in DPO there are none (label_smoothing with loss_type robust or exo_pair is its own)",
    ),
    "data_seed": (frozenset({PRETRAIN}), "leave it out; seed alone says in which order samples are read"),
    "dataloader_drop_last": (
        frozenset({PRETRAIN}),
        "leave it out; every batch of training is whole, and of the held-out sequences none should be dropped",
    ),
    "ignore_data_skip": (
        ALIGNMENT,
        "leave it out; a resumed run would read the samples again that it has read",
    ),
    "model_init_kwargs": (
        ALIGNMENT,
        "leave it out; TRL passes it over, as the model is loaded here (attention_backend, lora_rank)",
    ),
    "trust_remote_code": (ALIGNMENT, "leave it out; no code is loaded from a checkpoint"),
    "dataset_text_field": (frozenset({SFT}), "leave it out; samples are conversations (messages)"),
    "dataset_kwargs": (frozenset({SFT}), "leave it out; samples are prepared here"),
    "padding_free": (frozenset({DPO}), "leave it out; TRL pads in DPO whatever it says"),
}


@dataclasses.dataclass(frozen=True)
class Refusal:
    """An option that is refused in some company only.

    Args:
        applies: given the arguments; whether they are refused.
        words: what would be right.
    """

    key: str
    stages: frozenset[str]
    applies: Callable[[Any], object]
    words: str


def is_changed(arguments: Any, name: str) -> bool:
    """Whether an argument is not at the default of its own class."""
    field = type(arguments).__dataclass_fields__[name]
    default = field.default
    if field.default_factory is not dataclasses.MISSING:
        default = field.default_factory()
    return bool(getattr(arguments, name) != default)


def _schedule(arguments: Any) -> str:
    return str(arguments.lr_scheduler_type.value)


def _is_on_cpu(arguments: Any) -> bool:
    return bool(arguments.device.type == "cpu")


def is_sharded(arguments: Any) -> bool:
    kind = str(getattr(arguments.distributed_state, "distributed_type", ""))
    return kind.endswith(("DEEPSPEED", "FSDP"))


def _evaluates(arguments: Any) -> bool:
    return bool(arguments.eval_strategy != "no")


def recomputes(arguments: Any) -> bool:
    """Whether activations are recomputed in the backward pass; transformers 5.17 has the older of two names only."""
    names = ("activation_checkpointing", "gradient_checkpointing")
    return any(getattr(arguments, name, False) for name in names)


def checkpointing_options(arguments: Any) -> Any:
    """How they are recomputed, under either name."""
    names = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs")
    return next((options for name in names if (options := getattr(arguments, name, None))), None)


def _unknown_checkpointing_keys(arguments: Any) -> set[str]:
    options = checkpointing_options(arguments)
    known = CHECKPOINTING_KEYS | ({"selective"} if hasattr(arguments, "packing") else set())
    return set(options) - known if isinstance(options, dict) else set()


def _changes_batches(arguments: Any) -> bool:
    """Whether accelerate would make up other batches, or count other steps, than the settings say."""
    config = arguments.accelerator_config
    accumulation = dict(config.gradient_accumulation_kwargs or {})
    return bool(
        config.split_batches
        or config.dispatch_batches
        or not config.even_batches
        or not config.use_seedable_sampler
        or accumulation.get("num_steps", 1) != 1  # Trainer itself puts a 1 there
        or accumulation.keys() - {"num_steps", "sync_each_batch"}
    )


COMMON = (
    # Precision and memory
    Refusal(
        "fp16",
        EVERY,
        lambda a: a.fp16 and _is_on_cpu(a),
        "needs a GPU; leave it out on a CPU, which would train in float32",
    ),
    Refusal(
        "activation_offloading",
        ALIGNMENT,
        lambda a: a.activation_offloading and _is_on_cpu(a),
        "needs a GPU; leave it out on a CPU",
    ),
    Refusal(
        "activation_checkpointing_kwargs",
        EVERY,
        lambda a: checkpointing_options(a) and not recomputes(a),
        "passed over without activation_checkpointing: true",
    ),
    Refusal(
        "activation_checkpointing_kwargs",
        EVERY,
        _unknown_checkpointing_keys,
        f"expected only keys of {', '.join(sorted(CHECKPOINTING_KEYS))}",
    ),
    # Optimizer and schedule
    Refusal(
        "warmup_steps",
        EVERY,
        lambda a: a.warmup_steps and _schedule(a) in ("constant", "reduce_lr_on_plateau", "greedy"),
        "passed over by this lr_scheduler_type; give constant_with_warmup or another that warms up",
    ),
    Refusal(
        "lr_scheduler_kwargs",
        EVERY,
        lambda a: a.lr_scheduler_kwargs and _schedule(a) in ("constant", "constant_with_warmup"),
        "passed over by this lr_scheduler_type; leave it out",
    ),
    # Evaluation and the best model
    Refusal(
        "load_best_model_at_end",
        EVERY,
        lambda a: a.load_best_model_at_end and not _evaluates(a),
        "needs a held-out loss; give eval_strategy",
    ),
    Refusal(
        "load_best_model_at_end",
        EVERY,
        lambda a: a.load_best_model_at_end and is_sharded(a),
        "not under FSDP or DeepSpeed, whose own checkpoints Trainer would look for; choose a checkpoint by its "
        "eval_loss in log.jsonl",
    ),
    Refusal(
        "save_strategy",
        EVERY,
        lambda a: a.save_strategy == "best" and not (_evaluates(a) and a.metric_for_best_model),
        "best needs eval_strategy and metric_for_best_model: loss",
    ),
    Refusal("do_eval", EVERY, lambda a: a.do_eval and not _evaluates(a), "passed over; give eval_strategy"),
    Refusal(
        "eval_on_start",
        ALIGNMENT,
        lambda a: a.eval_on_start and not _evaluates(a),
        "passed over without eval_strategy; give steps or epoch",
    ),
    Refusal(
        "debug",
        EVERY,
        lambda a: "tpu_metrics_debug" in a.debug,
        "expected underflow_overflow; there is no TPU",
    ),
    # Data
    Refusal(
        "accelerator_config",
        EVERY,
        _changes_batches,
        "expected only non_blocking, and sync_each_batch in gradient_accumulation_kwargs; others would make up other "
        "batches than the settings say",
    ),
    Refusal(
        "dataloader_persistent_workers",
        EVERY,
        lambda a: a.dataloader_persistent_workers and not a.dataloader_num_workers,
        "needs dataloader_num_workers of at least 1",
    ),
    Refusal(
        "dataloader_multiprocessing_context",
        EVERY,
        lambda a: a.dataloader_multiprocessing_context and not a.dataloader_num_workers,
        "needs dataloader_num_workers of at least 1",
    ),
    Refusal(
        "train_sampling_strategy",
        ALIGNMENT,
        lambda a: a.train_sampling_strategy not in ("random", "sequential"),
        "expected random or sequential; the order of others cannot be gone on from in a resumed run",
    ),
    Refusal(
        "include_num_input_tokens_seen",
        ALIGNMENT,
        lambda a: a.include_num_input_tokens_seen == "no",
        "expected all or non_padding; the run log counts by it",
    ),
)

"""Every private name of a library that this package overrides, reads or writes, and why no public one would do.

A private name can move in any release.  ``tests/test_private_names.py`` looks each of them up in the libraries that
are installed and says which version lacks it; a name that is used and does not stand here fails that test too.
"""

from __future__ import annotations

from dataclasses import dataclass

READ_IN = {
    "transformers": "5.23", "accelerate": "1.15", "trl": "1.16", "lm_eval": "0.4.13", "deepspeed": "0.19.8",
    "torch": "2.13", "python": "3.11",
}  # fmt: skip


@dataclass(frozen=True)
class PrivateName:
    """One name.

    Args:
        owner: dotted path of the class or module that has it.
        is_set_on_instances: an attribute that instances get in a method, so that the class does not show it.
    """

    library: str
    owner: str
    name: str
    reason: str
    is_set_on_instances: bool = False


TRAINER = "transformers.Trainer"
CONFIG = "transformers.PreTrainedConfig"
ZERO_1_AND_2 = "deepspeed.runtime.zero.stage_1_and_2.DeepSpeedZeroOptimizer"
BF16 = "deepspeed.runtime.bf16_optimizer.BF16_Optimizer"
PRIVATE_NAMES = (
    PrivateName(
        "transformers", TRAINER, "_get_grad_norm",
        "the only place where the norm of a step is known and its update is still to come",
    ),
    PrivateName(
        "transformers", TRAINER, "_prepare_for_training",
        "no callback comes after model and optimizer are wrapped and before the evaluation at the start",
    ),
    PrivateName(
        "transformers", TRAINER, "_run_epoch",
        "Trainer looks for the end behind a step: resumed at the last one it would take another",
    ),
    PrivateName(
        "transformers", TRAINER, "_load_from_checkpoint",
        "it goes on without weights that are missing, and takes a pickle for want of safetensors",
    ),
    PrivateName("transformers", TRAINER, "_load_rng_state", "it reads a pickle"),
    PrivateName(
        "transformers", TRAINER, "_save_checkpoint",
        "weights are looked at before they are saved, and a full disk is one line",
    ),
    PrivateName("transformers", TRAINER, "_save", "it pickles the arguments, a token among them"),
    PrivateName(
        "transformers", TRAINER, "_tr_loss", "the sum that the next log line is a mean of: taken back with a refused "
        "update, and kept in a checkpoint that lies between two lines", is_set_on_instances=True,
    ),
    PrivateName(
        "transformers", TRAINER, "_globalstep_last_logged", "from which step on the sum counts",
        is_set_on_instances=True,
    ),
    PrivateName(
        "transformers", TRAINER, "_initial_global_step", "a refused update is no step of the mean loss at the end",
        is_set_on_instances=True,
    ),
    PrivateName(
        "transformers", TRAINER, "_prepare_inputs",
        "a held-out batch on the device, before it is known which of its rows were repeated to fill it",
    ),
    PrivateName(
        "trl", "trl.SFTTrainer", "_metrics", "TRL has no hook for a figure, and its mean of batches has no weights",
        is_set_on_instances=True,
    ),
    PrivateName(
        "transformers", "transformers.PreTrainedModel", "_from_config",
        "the public from_config of an Auto class takes no FoundryConfig that is not registered yet",
    ),
    PrivateName(
        "transformers", CONFIG, "_attn_implementation", "which attention was chosen; there is no public reader",
    ),
    PrivateName(
        "transformers", "transformers.PreTrainedModel", "_tp_size", "what a tensor-parallel load sets",
        is_set_on_instances=True,
    ),
    PrivateName(
        "accelerate", "accelerate.optimizer.AcceleratedOptimizer", "_is_overflow",
        "Trainer asks it before it steps the scheduler; it is set for fp16 alone", is_set_on_instances=True,
    ),
    PrivateName(
        "accelerate", "accelerate.state.AcceleratorState", "_reset_state",
        "DeepSpeed is set up a second time after a rollback; Trainer does the same between trials of a sweep",
    ),
    PrivateName(
        "deepspeed", ZERO_1_AND_2, "has_overflow", "not private by its name, but nobody's to replace: its answer is "
        "where ZeRO lets an update be refused, on all ranks, with every state kept",
    ),
    PrivateName(
        "deepspeed", ZERO_1_AND_2, "check_grad_overflow", "off by default in fp32, and a switch in bf16",
        is_set_on_instances=True,
    ),
    PrivateName(
        "deepspeed", ZERO_1_AND_2, "averaged_gradients", "the gradients of which a rank's norm is taken",
        is_set_on_instances=True,
    ),
    PrivateName(
        "deepspeed", BF16, "_global_grad_norm", "a refused update reports an infinite norm", is_set_on_instances=True,
    ),
    PrivateName("deepspeed", BF16, "clear_hp_grads", "drops the gradients of a refused update"),
    PrivateName("deepspeed", BF16, "clear_lp_grads", "drops the gradients of a refused update"),
    PrivateName(
        "lm_eval", "lm_eval.models.huggingface.HFLM", "_encode_pair",
        "without a template lm-eval's own way between question and answer, on which its tasks rely",
    ),
    PrivateName(
        "lm_eval", "lm_eval.models.huggingface.HFLM", "_loglikelihood_tokens",
        "abstract in lm-eval for models that encode in their own way; HFLM's scores in its batches",
    ),
    PrivateName("torch", "torch", "_scaled_mm", "the fp8 matrix product; torchao calls the same"),
    PrivateName(
        "torch", "torch.distributed.tensor.DTensor", "_local_tensor",
        "whether this rank's part of a weight is finite, without gathering the whole",
    ),
    PrivateName("python", "sys", "_current_frames", "where each thread stands, for the report of a rank that hangs"),
    PrivateName(
        "python", "atexit", "_run_exitfuncs",
        "a process that must not take Python down still runs what atexit knows",
    ),
    PrivateName("python", "os", "_exit", "ends such a process, and a forked worker, with its exit code"),
    PrivateName(
        "python", "importlib.machinery.ModuleSpec", "_initializing",
        "whether a module is being loaded for the first time: the Auto classes are registered after that",
        is_set_on_instances=True,
    ),
)  # fmt: skip

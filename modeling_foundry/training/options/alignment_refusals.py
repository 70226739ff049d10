"""Options of TRL's SFT and DPO that are refused in some company only; see :mod:`.refusals`."""

from __future__ import annotations

from .refusals import DPO, SFT, Refusal, checkpointing_options, is_changed, is_sharded

SMOOTHED_LOSSES = {"robust", "exo_pair", "aot", "aot_unpaired"}
DIFFERENCE_LOSSES = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
SFT_AND_DPO = (
    # SFT
    Refusal(
        "label_smoothing_factor",
        frozenset({SFT}),
        lambda a: a.label_smoothing_factor and a.loss_type != "nll",
        "passed over by this loss_type; give nll",
    ),
    Refusal(
        "max_length",
        frozenset({SFT}),
        lambda a: a.packing and a.max_length is None,
        "packing needs it; give the length of a packed row",
    ),
    Refusal(
        "packing_strategy",
        frozenset({SFT}),
        lambda a: is_changed(a, "packing_strategy") and not a.packing,
        "passed over without packing: true",
    ),
    Refusal(
        "eval_packing",
        frozenset({SFT}),
        lambda a: a.eval_packing and not a.packing,
        "without packing held-out samples in one row would see each other; leave it out",
    ),
    Refusal(
        "padding_free",
        frozenset({SFT}),
        lambda a: a.padding_free and not a.packing and a.max_length is not None,
        "nothing would be cut at max_length; give packing: true, or max_length: null",
    ),
    Refusal(
        "completion_only_loss",
        frozenset({SFT}),
        lambda a: a.completion_only_loss,
        "samples are conversations, in which assistant_only_loss says what is learned; leave it out",
    ),
    # DPO
    Refusal(
        "activation_checkpointing_kwargs",
        frozenset({DPO}),
        lambda a: {"every_n_layers", "offload"} & set(checkpointing_options(a) or ()),
        "every_n_layers and offload fail where TRL switches checkpointing off for the reference; leave them out",
    ),
    Refusal(
        "loss_type",
        frozenset({DPO}),
        lambda a: "exo_pair" in a.loss_type and not a.label_smoothing,
        "exo_pair needs label_smoothing above 0; its paper takes 1e-3",
    ),
    Refusal(
        "label_smoothing",
        frozenset({DPO}),
        lambda a: a.label_smoothing and not SMOOTHED_LOSSES & set(a.loss_type),
        f"passed over by this loss_type; {', '.join(sorted(SMOOTHED_LOSSES))} read it",
    ),
    Refusal(
        "use_weighting",
        frozenset({DPO}),
        lambda a: a.use_weighting and {"aot", "aot_unpaired"} & set(a.loss_type),
        "not with aot or aot_unpaired, which sort the samples",
    ),
    Refusal(
        "f_divergence_type",
        frozenset({DPO}),
        lambda a: a.f_divergence_type != "reverse_kl" and not set(a.loss_type) <= DIFFERENCE_LOSSES,
        f"works with loss_type {', '.join(sorted(DIFFERENCE_LOSSES))} only",
    ),
    Refusal(
        "f_alpha_divergence_coef",
        frozenset({DPO}),
        lambda a: is_changed(a, "f_alpha_divergence_coef") and a.f_divergence_type != "alpha_divergence",
        "passed over without f_divergence_type: alpha_divergence",
    ),
    Refusal(
        "discopop_tau",
        frozenset({DPO}),
        lambda a: is_changed(a, "discopop_tau") and "discopop" not in a.loss_type,
        "passed over without loss_type: discopop",
    ),
    Refusal(
        "ld_alpha",
        frozenset({DPO}),
        lambda a: a.ld_alpha is not None and not 0 <= a.ld_alpha <= 1,
        "expected a number from 0 to 1",
    ),
    Refusal(
        "ref_model_mixup_alpha",
        frozenset({DPO}),
        lambda a: not 0 <= a.ref_model_mixup_alpha <= 1,
        "expected a number from 0 to 1",
    ),
    Refusal(
        "sync_ref_model",
        frozenset({DPO}),
        lambda a: a.sync_ref_model and a.precompute_ref_log_probs,
        "the log-probabilities of a moving reference cannot be computed beforehand; leave out precompute_ref_log_probs",
    ),
    Refusal(
        "sync_ref_model",
        frozenset({DPO}),
        lambda a: a.sync_ref_model and is_sharded(a),
        "not under FSDP or DeepSpeed: the moved reference is not in their checkpoints; use DDP",
    ),
    Refusal(
        "ref_model_mixup_alpha",
        frozenset({DPO}),
        lambda a: is_changed(a, "ref_model_mixup_alpha") and not a.sync_ref_model,
        "passed over without sync_ref_model: true",
    ),
    Refusal(
        "ref_model_sync_steps",
        frozenset({DPO}),
        lambda a: is_changed(a, "ref_model_sync_steps") and not a.sync_ref_model,
        "passed over without sync_ref_model: true",
    ),
    Refusal(
        "precompute_ref_batch_size",
        frozenset({DPO}),
        lambda a: a.precompute_ref_batch_size and not a.precompute_ref_log_probs,
        "passed over without precompute_ref_log_probs: true",
    ),
)

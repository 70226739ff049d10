"""Short runs of SFT and DPO with one option changed each, for what their losses are on one rank and on two.

As a script (under a launcher): ``alignment_runs.py CHECKPOINT SAMPLES OUTPUT`` trains every case and writes what each
logged as JSON.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import set_seed

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.pretraining.settings import PretrainArguments
from modeling_foundry.training.plan import plan_of
from modeling_foundry.training.safety.update_guard import UpdateGuard
from tests.training.tiny_training import SEQUENCE_LENGTH, VOCABULARY, tiny_trainer

NUM_PAIRS = 9  # of four a step: one is left for the last, and a second rank has none of its own there
SFT = {
    "padded": {},
    "dft": {"loss_type": "dft"},
    "every_token": {"assistant_only_loss": False},
    "keep_end": {"truncation_mode": "keep_end", "max_length": 24, "assistant_only_loss": False},
    "packed": {"packing": True, "max_length": 48},
    "wrapped": {"packing": True, "packing_strategy": "wrapped", "max_length": 32},
    "split": {"packing": True, "packing_strategy": "bfd_split", "max_length": 24},
    "padding_free": {"padding_free": True, "max_length": None},
    "smoothed": {"label_smoothing_factor": 0.1},
    "lora": {"lora_rank": 2},
}
DPO = {
    **{name: {"loss_type": [name]} for name in (
        "sigmoid", "hinge", "ipo", "nca_pair", "robust", "bco_pair", "sppo_hard", "apo_zero", "apo_down", "discopop",
        "sigmoid_norm", "sft",
    )},
    "exo_pair": {"loss_type": ["exo_pair"], "label_smoothing": 0.001},
    "quickstart": {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "three": {"loss_type": ["sft", "ipo", "sigmoid"], "loss_weights": [0.2, 0.3, 1.5]},
    "ld_alpha": {"loss_type": ["sigmoid", "sft"], "ld_alpha": 0.3},
    "forward_kl": {"f_divergence_type": "forward_kl"},
    "weighted": {"use_weighting": True},
    "precomputed": {"loss_type": ["sigmoid", "sft"], "precompute_ref_log_probs": True},
    "lora": {"loss_type": ["sigmoid", "sft"], "lora_rank": 2},
}  # fmt: skip
CASES = [(stage, name) for stage, cases in (("sft", SFT), ("dpo", DPO)) for name in cases]
KINDS = {"sft": "sft", "dpo": "preference"}


def changes_of(stage, name):
    return {"sft": SFT, "dpo": DPO}[stage][name]


def trainer_of(stage, checkpoint, samples, output_dir, num_samples=NUM_PAIRS, num_held_out=7, **changed):
    """A trainer as the recipe makes it, without a run folder."""
    given = {
        "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4, "max_length": 64, "use_cpu": True,
        "bf16": False, "logging_steps": 1, "report_to": "none", "save_strategy": "no", "eval_strategy": "epoch",
        "num_train_epochs": 1, "lr_scheduler_type": "constant", "learning_rate": 0.05, "optim": "sgd",
        "gradient_checkpointing": False, "disable_tqdm": True, "max_grad_norm": 0.0,
    } | changed  # fmt: skip
    settings = alignment.AlignmentSettings(
        model=str(checkpoint), train_file=str(samples / f"{stage}.jsonl"), lora_rank=given.pop("lora_rank", 0)
    )
    kind = alignment.SFTArguments if stage == "sft" else alignment.DPOArguments
    plan = plan_of(kind(str(output_dir), **given))
    arguments = plan.arguments
    alignment.check_loss_options(arguments)
    set_seed(0)
    inputs = {"train_file": alignment.hash_of_samples(settings.train_file)}
    files = alignment.check_samples(settings, inputs, KINDS[stage])
    rows, _ = alignment.both_sides(files, settings, 0)
    tokenizer = alignment.tokenizer_to_train(settings, arguments)
    rest = {"peft_config": alignment.lora(settings), "processing_class": tokenizer, "args": arguments}
    rest["train_dataset"] = rows.select(range(num_samples))
    rest["eval_dataset"] = rows.select(range(20, 20 + num_held_out)) if num_held_out else None
    if stage == "dpo" and not settings.lora_rank:
        rest["ref_model"] = alignment.load_base(settings, plan)
    make = alignment.FoundrySFTTrainer if stage == "sft" else alignment.FoundryDPOTrainer
    trainer = make(alignment.load_base(settings, plan), **rest)
    trainer.guard_updates(
        UpdateGuard(arguments, output_dir, None, arguments.world_size, arguments.train_batch_size)
    )
    return trainer


def history(trainer):
    """What was logged, step by step, without times; the held-out line last."""
    trainer.train()
    untold = ("epoch", "step", "num_tokens", "num_input_tokens_seen", "total_flos")
    lines = [line for line in trainer.state.log_history if "loss" in line or "eval_loss" in line]
    return [
        {
            name: value
            for name, value in line.items()
            if not name.removeprefix("eval_").startswith(
                ("train_", "runtime", "samples_per", "steps_per", *untold)
            )
        }
        for line in lines
    ]


def pretraining_held_out(output_dir, batch):
    """Pretraining's loss on seven sequences, of which ever more labels do not count."""
    arguments = PretrainArguments(
        str(output_dir), max_steps=1, use_cpu=True, report_to="none", per_device_eval_batch_size=batch
    )
    trainer = tiny_trainer(arguments)
    ids = torch.randint(0, VOCABULARY, (7, SEQUENCE_LENGTH), generator=torch.Generator().manual_seed(2))
    counts = torch.arange(SEQUENCE_LENGTH) >= 2 * torch.arange(7)[:, None]
    labels = torch.where(counts, ids, -100)
    rows = [{"input_ids": row, "labels": label} for row, label in zip(ids, labels, strict=True)]
    return trainer.evaluate(rows)["eval_loss"]


def main(checkpoint, samples, output):
    """Every case on the ranks there are, two samples a rank."""
    told = {"pretrain": pretraining_held_out(Path(output).parent, batch=2)}
    for stage, name in CASES:
        trainer = trainer_of(
            stage, checkpoint, Path(samples), Path(output).parent, per_device_train_batch_size=2,
            per_device_eval_batch_size=2, **changes_of(stage, name),
        )  # fmt: skip
        told[f"{stage} {name}"] = history(trainer)
    if trainer.is_world_process_zero():
        Path(output).write_text(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])

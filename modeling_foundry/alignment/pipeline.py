"""Supervised fine-tuning and direct preference optimization with TRL's own trainers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from transformers import PreTrainedTokenizerBase, Trainer
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from ..files import model_hash
from ..model.configuration_foundry import attention_implementation
from ..saved_model import load_tokenizer, load_tokenizer_to_train, require_checkpoint
from ..settings import FoundryError, setting
from ..terminal import console
from ..training.arguments import AttentionBackend, refuse_backend_without_gpu
from ..training.log.trackers import AUTO, MaskedArguments, choose_trackers, keep_trackers_local
from ..training.options.checks import refuse_missing_gpus, refuse_options, refuse_passed_over
from ..training.options.names import Divergence, NamedOptions, PreferenceLoss, TokensCounted
from ..training.options.ranges import check_length, check_ranges
from ..training.plan import RunPlan, check_schedule, plan_of
from ..training.precision import load_for_training, merged
from ..training.processes.deepspeed_build_locks import remove_stale_build_locks
from ..training.processes.run_lock import folder_held
from ..training.run_folder import discard_run
from ..training.safety.update_guard import GuardKeys, UpdateGuard
from ..training.session import TrainingSession
from ..training.trainer import FoundryTrainer
from .dropout import silence_attention_dropout
from .learned_rows import drop_unlearned_rows
from .left_out_samples import leave_out_samples
from .losses import DPOLoss, SFTLoss, check_loss_options
from .model_limits import check_model_limits, check_rows_fit, check_there_are_steps
from .samples import (
    SampleFile,
    check_samples,
    hash_of_samples,
    lint_on_main,
    load_samples,
    template_refusals_named,
)

END_OF_TURN = "<|im_end|>"
# TRL, and the recipes for it, say activation checkpointing by transformers' older name.
warnings.filterwarnings("ignore", "`(is_)?gradient_checkpointing` is deprecated", FutureWarning)


@dataclass
class AlignmentSettings:
    """Keys that SFT and DPO share beside TRL's own."""

    model: str = field(metadata={"help": "checkpoint folder to start from"})
    train_file: str = field(metadata={"help": "JSON lines: messages (SFT) or prompt, chosen, rejected (DPO)"})
    eval_file: str | None = field(default=None, metadata={"help": "held-out JSON lines"})
    max_train_samples: int | None = field(default=None, metadata={"help": "use the first N after shuffling"})
    max_eval_samples: int | None = field(default=None, metadata={"help": "use the first N after shuffling"})
    keep_checkpoints: int = setting("newest whole checkpoints to keep", 2, neutral=True)
    expected_processes: int | None = setting("refuse any other number of ranks", None, neutral=True)
    overwrite: bool = setting("replace a run of other settings in output_dir", False, neutral=True)
    attention_backend: AttentionBackend = field(
        default="auto", metadata={"help": "attention kernel, as in pretraining"}
    )
    lora_rank: int = field(
        default=0, metadata={"help": "rank of a LoRA adapter on every linear layer; 0 is full"}
    )
    lora_alpha: int = field(default=16, metadata={"help": "scale of the adapter"})


@dataclass
class AlignmentArguments(MaskedArguments, GuardKeys, NamedOptions):
    """Mixed in before TRL's SFTConfig or DPOConfig: what both have otherwise here."""

    include_num_input_tokens_seen: TokensCounted | bool = "non_padding"
    report_to: str | list[str] | None = AUTO
    ddp_find_unused_parameters: bool | None = False

    def __post_init__(self) -> None:
        refuse_missing_gpus(self)
        remove_stale_build_locks(self.deepspeed)  # type: ignore[attr-defined]
        self.report_to = choose_trackers(self.report_to)
        super().__post_init__()  # type: ignore[misc]


@dataclass
class SFTArguments(AlignmentArguments, SFTConfig):
    """TRL's SFTConfig; only the assistant's turns are learned, their end included."""

    assistant_only_loss: bool = True


@dataclass
class DPOArguments(AlignmentArguments, DPOConfig):
    """TRL's DPOConfig."""

    loss_type: list[PreferenceLoss] = field(  # type: ignore[assignment]  # TRL takes any text, and fails later
        default_factory=lambda: ["sigmoid"], metadata={"help": "one or several, summed with loss_weights"}
    )
    f_divergence_type: Divergence = "reverse_kl"


class FoundrySFTTrainer(FoundryTrainer, SFTLoss, SFTTrainer):
    """TRL's SFTTrainer with guarded updates, our checkpoints and a loss that is the same on any ranks."""


class FoundryDPOTrainer(FoundryTrainer, DPOLoss, DPOTrainer):
    """TRL's DPOTrainer with guarded updates, our checkpoints and a loss that is the same on any ranks."""


def sft(settings: AlignmentSettings, arguments: SFTArguments) -> Path:
    """Fine-tune on conversations; returns the folder of the final model.

    Raises:
        FoundryError: no model or data where the settings say, or labels that never teach the stop.
    """
    with folder_held(arguments):
        session, plan = open_session("sft", settings, arguments)
        if plan is None:
            return session.model_folder
        arguments = plan.arguments
        tokenizer = tokenizer_to_train(settings, arguments)
        files = check_samples(settings, session.inputs, "sft")
        lint_on_main(files, tokenizer, arguments, "sft")
        train, held_out = both_sides(files, settings, arguments.seed)
        model = load_base(settings, plan)
        with template_refusals_named(files):
            trainer = FoundrySFTTrainer(
                model=model, args=arguments, train_dataset=train, eval_dataset=held_out, peft_config=lora(settings),
                processing_class=load_tokenizer(settings.model),  # TRL gives it the template itself, and its tokens
            )  # fmt: skip
        paths = {"train_dataset": settings.train_file, "eval_dataset": settings.eval_file}
        for line in leave_out_samples(trainer, files, [train, held_out]) + drop_unlearned_rows(
            trainer, paths
        ):
            say_on_main(arguments, f"sft: {line}")
        assert_stop_is_learned(trainer, tokenizer)
        run(session, trainer, settings, plan)
        return session.model_folder


def dpo(settings: AlignmentSettings, arguments: DPOArguments) -> Path:
    """Prefer chosen over rejected answers; returns the folder of the final model.

    Raises:
        FoundryError: no model or data where the settings say.
    """
    with folder_held(arguments):
        session, plan = open_session("dpo", settings, arguments)
        if plan is None:
            return session.model_folder
        arguments = plan.arguments
        tokenizer = tokenizer_to_train(settings, arguments)
        files = check_samples(settings, session.inputs, "preference")
        lint_on_main(files, tokenizer, arguments, "dpo")
        train, held_out = both_sides(files, settings, arguments.seed)
        model = load_base(settings, plan)
        # The reference is the same checkpoint, loaded here: TRL would look it up by name.
        reference = None if settings.lora_rank else load_base(settings, plan)
        for each in (model, reference):
            if each is not None and arguments.disable_dropout:
                silence_attention_dropout(each)
        with template_refusals_named(files):
            trainer = FoundryDPOTrainer(
                model=model, ref_model=reference, args=arguments, train_dataset=train, eval_dataset=held_out,
                processing_class=tokenizer, peft_config=lora(settings),
            )  # fmt: skip
        for line in leave_out_samples(trainer, files, [train, held_out]):
            say_on_main(arguments, f"dpo: {line}")
        run(session, trainer, settings, plan)
        return session.model_folder


def open_session(
    stage: str, settings: AlignmentSettings, arguments: Any
) -> tuple[TrainingSession, RunPlan | None]:
    """The run folder of a stage and its plan; None where it is complete for these settings and inputs."""
    check_ranges(settings, arguments)
    check_length(arguments, in_steps=False)
    refuse_options(stage, arguments)
    refuse_passed_over(settings, arguments)
    check_loss_options(arguments)
    if settings.eval_file is None and arguments.eval_strategy != "no":
        raise FoundryError(
            f"eval_file: missing; eval_strategy: {arguments.eval_strategy.value} needs held-out samples"
        )
    check_schedule(plan_of(arguments))
    require_checkpoint(Path(settings.model))
    limits = check_model_limits(settings.model, arguments)
    plan = plan_of(arguments, limits, dict.fromkeys(limits, "the model's positions"))
    arguments = plan.arguments
    keep_trackers_local(arguments)
    inputs = {"model": model_hash(settings.model)}
    for name in ("train_file", "eval_file"):  # not by their own names, which may be the same in two folders
        if (path := getattr(settings, name)) is not None:
            inputs[name] = hash_of_samples(path)
    session = TrainingSession(
        Path(arguments.output_dir), {"alignment": settings, "training": arguments}, inputs, stage
    )
    with arguments.main_process_first(local=False, desc="run folder"):
        if settings.overwrite and arguments.process_index == 0:
            discard_run(session.output_dir)
        complete = session.is_complete()
    if complete:
        console.print(f"{stage}: complete already, {session.model_folder} (nothing to do)")
    return session, None if complete else plan


def tokenizer_to_train(settings: AlignmentSettings, arguments: Any) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer, with the chat template that the run is going to train with.

    Raises:
        FoundryError: none, or one without the token that ends a turn.
    """
    tokenizer = load_tokenizer_to_train(settings.model, getattr(arguments, "chat_template_path", None))
    if tokenizer.chat_template is None:
        raise FoundryError(
            f"{settings.model}: no chat template; put a ChatML one with {{% generation %}} there as "
            "chat_template.jinja (prepare_data.py's tokenizers have one)"
        )
    if END_OF_TURN not in tokenizer.get_vocab():
        raise FoundryError(
            f"{settings.model}: its tokenizer has no token {END_OF_TURN}, which ends a turn; give a base that has"
        )
    return tokenizer


def load_base(settings: AlignmentSettings, plan: RunPlan) -> Any:
    """The checkpoint through the Auto classes; a Foundry one needs no remote code."""
    refuse_backend_without_gpu(settings.attention_backend, plan.arguments.device.type)
    attention = attention_implementation(settings.attention_backend)
    is_frozen = settings.lora_rank > 0
    return load_for_training(settings.model, is_frozen, plan.precision, attn_implementation=attention)


def both_sides(
    files: list[SampleFile], settings: AlignmentSettings, seed: int
) -> tuple[Dataset, Dataset | None]:
    """Samples to train on, and held-out ones where there are any."""
    train = load_samples(files[0], settings.max_train_samples, seed)
    return train, load_samples(files[1], settings.max_eval_samples, seed) if files[1:] else None


def lora(settings: AlignmentSettings) -> LoraConfig | None:
    if settings.lora_rank == 0:
        return None
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def assert_stop_is_learned(trainer: SFTTrainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Some batch must train ``<|im_end|>``: a mask that leaves it out never teaches a model to stop.

    Raises:
        FoundryError: no label of any sample is the end-of-turn token.
    """
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    samples, size = trainer.train_dataset, 8
    starts = range(0, len(samples), size)
    batches = ([samples[i] for i in range(start, min(start + size, len(samples)))] for start in starts)
    if not any(bool((trainer.data_collator(batch)["labels"] == stop).any()) for batch in batches):
        raise FoundryError(
            f"sft: {END_OF_TURN} is in no label; the chat template must close "
            "{% generation %} after it, and max_length must not cut every answer"
        )


def say_on_main(arguments: Any, line: str) -> None:
    if arguments.process_index == 0:
        console.print(line)


def run(
    session: TrainingSession, trainer: FoundryTrainer, settings: AlignmentSettings, plan: RunPlan
) -> None:
    """Train from the newest whole checkpoint, which is looked for last: a start that is refused changes nothing."""
    check_rows_fit(settings.model, trainer)
    check_there_are_steps(trainer, settings.train_file)
    checkpoint = session.resume_point(plan.arguments.process_index == 0)
    trainer.args = arguments = plan.arguments_from(checkpoint)
    trainer.guard_updates(UpdateGuard(arguments, session.output_dir, None, plan.num_ranks, plan.micro_batch))
    session.train(
        trainer, plan, checkpoint, settings.keep_checkpoints, settings.expected_processes, finish_chat_model
    )


def finish_chat_model(trainer: Trainer) -> None:
    """Merge an adapter; let generation stop at the end of a turn as well as at the end of text."""
    if hasattr(trainer.model, "merge_and_unload"):
        trainer.model = merged(trainer)
    tokenizer = trainer.processing_class
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    stops = [stop] if tokenizer.eos_token_id == stop else [stop, tokenizer.eos_token_id]
    trainer.model.generation_config.eos_token_id = stops

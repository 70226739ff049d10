"""Pretraining: packed tokens, transformers' Trainer on Accelerate, chunked cross-entropy."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase, TrainingArguments, set_seed

from .. import FoundryForCausalLM
from ..data.preparation.pipeline import prepare
from ..data.preparation.settings import DataSettings
from ..data.sequences.mixture import MixedDataset
from ..data.sequences.sample_order import OrderedSamples, write_order
from ..data.sequences.training_data import TrainingData, open_mixture, open_training_data
from ..files import settle
from ..model.float8 import convert_to_float8
from ..settings import FoundryError
from ..terminal import console
from ..training.arguments import refuse_backend_without_gpu
from ..training.checkpoints.checkpoints import read_seal
from ..training.log.profiling import StepProfile
from ..training.log.trackers import keep_trackers_local
from ..training.losses.held_out_loss import HeldOutTokens
from ..training.options.checks import refuse_options
from ..training.options.ranges import check_length, check_ranges
from ..training.plan import RunPlan
from ..training.processes.run_lock import folder_held
from ..training.run_folder import discard_run
from ..training.safety.loss_spikes import SpikeFoundError
from ..training.safety.update_guard import UpdateGuard
from ..training.session import TrainingSession, restore_generation_cache
from ..training.trainer import FoundryTrainer
from ..training.watch import start_watched
from .batch import accumulation_to_follow, follow_words, order_of
from .extension import extend
from .mixture_account import MixtureAccount
from .model_settings import ModelSettings, build_model, foundry_config
from .muon import MuonFactory
from .preflight.checks import check_folder, out_of_memory_advice
from .preflight.start import before_first_step
from .rollback import roll_back
from .settings import PretrainArguments, PretrainDataSettings
from .token_budget import RUN_SO_FAR, resolve_plan


class PretrainTrainer(FoundryTrainer, HeldOutTokens):
    """Reads ahead; its evaluation never materialises logits either."""

    reads_ahead = True

    def prediction_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[Any, Any, Any]:
        if prediction_loss_only:
            inputs = {**inputs, "skip_logits": True}
        return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)


def pretrain(model_settings: ModelSettings, data: PretrainDataSettings, arguments: PretrainArguments) -> Path:
    """Train a model from scratch; go on where an interrupted run was; do nothing when it is complete.

    Returns:
        Folder of the final checkpoint, loadable with AutoModelForCausalLM (after ``preflight_only`` none was
        written).

    Raises:
        FoundryError: settings, data or launch do not fit together.
    """
    check_ranges(model_settings, data, arguments)
    refuse_options("pretrain", arguments)
    plan = resolve_plan(arguments, data.sequence_length, accumulation_to_follow(arguments))
    arguments = plan.arguments
    if plan.origins.get("accumulation") == RUN_SO_FAR and arguments.process_index == 0:
        console.print(f"pretrain: {follow_words(plan)}")
    check_length(arguments, in_steps=True)
    check_folder(arguments.output_dir)
    refuse_backend_without_gpu(model_settings.attention_backend, arguments.device.type)
    keep_trackers_local(arguments)
    with folder_held(arguments):
        session, prepared, is_complete = open_run(model_settings, data, plan)
        if is_complete:
            console.print(f"pretrain: complete already, {session.model_folder} (nothing to do)")
            return session.model_folder
        while True:
            try:
                train_once(session, prepared, model_settings, data, plan)
                return session.model_folder
            except SpikeFoundError as error:
                spike = error.without_frames()  # they hold the model
            roll_back(spike, plan)


def open_run(
    model_settings: ModelSettings, data: PretrainDataSettings, plan: RunPlan
) -> tuple[TrainingSession, TrainingData, bool]:
    """The run folder, the data it reads, and whether this very run is finished.

    A longer run begins here with a copy of another's checkpoint.
    """
    arguments = plan.arguments
    # The first of all ranks, not of each node's: the data may be made now, on a disk that all nodes share.
    with arguments.main_process_first(local=False, desc="data preparation"):
        if arguments.overwrite and arguments.process_index == 0:
            discard_run(Path(arguments.output_dir))
        prepared = training_data(data, arguments)
    settings = {"model": model_settings, "data": data, "training": arguments}
    session = TrainingSession(
        Path(arguments.output_dir), settings, {"data": prepared.fingerprint}, "pretrain"
    )
    with arguments.main_process_first(local=False, desc="run folder"):
        is_complete = session.is_complete()  # or refused, before anything is copied into another run's folder
        if arguments.extend_run is not None and arguments.process_index == 0:
            extend(session, plan)
    return session, prepared, is_complete


def train_once(
    session: TrainingSession,
    prepared: TrainingData,
    model_settings: ModelSettings,
    data: PretrainDataSettings,
    plan: RunPlan,
) -> None:
    """Build everything and train to the end, from the newest whole checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer_folder)
    arguments = plan.arguments
    set_seed(arguments.seed)
    model = new_model(model_settings, data, tokenizer, arguments.device)
    checkpoint = session.resume_point(arguments.process_index == 0)
    trainer = pretrain_trainer(model, tokenizer, prepared, data, plan, checkpoint)
    with start_watched(arguments):
        forecast = before_first_step(trainer, prepared, model_settings, plan)
    if arguments.preflight_only:
        return
    if trainer.is_world_process_zero():
        if arguments.save_initial_model:
            save_initial(model, tokenizer, session)
        write_order(session.output_dir, trainer.train_dataset.order)
    session.train(
        trainer, plan, checkpoint, arguments.keep_checkpoints, arguments.expected_processes,
        out_of_memory_advice=out_of_memory_advice(forecast),
    )  # fmt: skip


def training_data(data: PretrainDataSettings, arguments: TrainingArguments) -> TrainingData:
    """The tokens of the run, verified; made inside its own folder when the recipe names a ``text_file``."""
    given = [name for name in ("data_dir", "mixture", "text_file") if getattr(data, name) is not None]
    if len(given) != 1:
        raise FoundryError(
            f"data: give exactly one of data_dir, mixture and text_file, found {given or 'none'}"
        )
    if data.mixture is not None:
        return open_mixture(data.mixture, data.max_epochs)
    if data.data_dir is not None:
        return open_training_data(data.data_dir)
    folder = Path(arguments.output_dir) / "data"
    if arguments.process_index == 0:
        prepare(
            DataSettings(
                str(folder), text_file=data.text_file, vocab_size=data.text_file_vocab_size,
                overwrite=arguments.overwrite,
            )
        )  # fmt: skip
    return open_training_data(folder)


def new_model(
    settings: ModelSettings,
    data: PretrainDataSettings,
    tokenizer: PreTrainedTokenizerBase,
    device: torch.device | str = "cpu",
) -> FoundryForCausalLM:
    """The model of a recipe, sized for its tokenizer, with the tokenizer's special ids in its config."""
    token_ids = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = foundry_config(settings, data.sequence_length, len(tokenizer), token_ids)
    return build_model(config, settings, device)


def pretrain_trainer(
    model: FoundryForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    prepared: TrainingData,
    data: PretrainDataSettings,
    plan: RunPlan,
    checkpoint: Path | None = None,
) -> PretrainTrainer:
    """Trainer over the packed shards of a prepared folder, in an order that depends on the seed alone.

    A run that goes on from a checkpoint seeks to its next sample; Trainer would walk over all it has read.
    """
    steps_taken = read_seal(checkpoint)["global_step"] if checkpoint else 0
    arguments, order = plan.arguments_from(checkpoint), order_of(plan)
    num_samples = order.num_samples(arguments.max_steps)
    train = prepared.train_dataset(data.sequence_length, num_samples, arguments.seed, data.document_mask)
    held_out = None
    if arguments.eval_strategy != "no":
        held_out = prepared.held_out_dataset(
            data.sequence_length, data.max_eval_sequences, data.document_mask
        )
    if arguments.float8:
        convert_to_float8(model, data.sequence_length)
    if arguments.compile_layers:
        for layer in model.model.layers:
            layer.compile()
    trainer = PretrainTrainer(
        model=model,
        args=arguments,
        train_dataset=OrderedSamples(train, order, first_step=steps_taken + 1),
        eval_dataset=held_out,
        processing_class=tokenizer,
        optimizer_cls_and_kwargs=muon_factory(arguments),
    )
    if arguments.profile_step is not None:
        trainer.add_callback(StepProfile(arguments.profile_step, arguments.output_dir))
    if isinstance(train, MixedDataset):
        trainer.add_callback(MixtureAccount(train, order))
    trainer.guard_updates(
        UpdateGuard(arguments, arguments.output_dir, order, arguments.world_size, arguments.train_batch_size)
    )
    return trainer


def muon_factory(arguments: PretrainArguments) -> tuple[type, dict[str, Any]] | None:
    """None leaves the optimizer to Trainer (AdamW, weight decay on matrices)."""
    if arguments.optimizer == "adamw":
        return None
    if arguments.distributed_state is not None and "DEEPSPEED" in str(
        arguments.distributed_state.distributed_type
    ):
        raise FoundryError("optimizer: muon needs whole matrices; ZeRO shards them, use adamw")
    return MuonFactory, {
        "lr": arguments.learning_rate,
        "muon_lr": arguments.muon_learning_rate,
        "weight_decay": arguments.weight_decay,
        "betas": (arguments.adam_beta1, arguments.adam_beta2),
        "eps": arguments.adam_epsilon,
    }


def save_initial(
    model: FoundryForCausalLM, tokenizer: PreTrainedTokenizerBase, session: TrainingSession
) -> None:
    """The random start beside the trained model, so that evaluation can show what learning changed."""
    folder = session.output_dir / "initial_model"
    if folder.exists():
        return
    temporary = folder.with_name(".initial_model.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    restore_generation_cache(model)
    model.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    settle(temporary)
    temporary.rename(folder)

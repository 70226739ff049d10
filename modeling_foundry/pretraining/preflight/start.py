"""The last look before a run begins: its banner, then its preflight."""

from __future__ import annotations

import time
from typing import Any

from transformers import Trainer

from ...data.inspection.pictures import coloured_documents
from ...data.sequences.mixture import HeldOutMixture, MixedDataset
from ...data.sequences.training_data import TrainingData
from ...terminal import console
from ...training.plan import RunPlan
from ...training.precision import precision_in_force
from ...training.processes.launch import assert_launched_as_asked, engine_of, launch_words
from ..model_settings import ModelSettings
from .banner import banner_rows, print_rows
from .checks import Finding
from .forecast import RunForecast, forecast_run, hardware_here, sharding_of
from .preflight import preflight

SAMPLE_TOKENS = 128


def before_first_step(
    trainer: Trainer, prepared: TrainingData, settings: ModelSettings, plan: RunPlan
) -> RunForecast:
    """Say what the run is and check that it can be had; every rank calls it.

    Returns:
        What the planner expects of it.

    Raises:
        PreflightError: with every check that failed.
    """
    arguments, model, is_main = trainer.args, trainer.model, trainer.is_world_process_zero()
    hardware = hardware_here(arguments.device, arguments.world_size)
    sharding = sharding_of(trainer.accelerator.state)
    train: Any = trainer.train_dataset.dataset
    length = model.config.max_position_embeddings
    forecast = forecast_run(model.config, arguments, length, hardware, sharding, model.dtype)
    if is_main:
        rows = banner_rows(model, forecast, plan, model.config._attn_implementation, train.num_corpus_tokens)
        rows += [("data", part.accounting()) for part in (train, trainer.eval_dataset) if _is_mixed(part)]
        print_rows(f"pretrain {arguments.output_dir}", rows)
    start = time.perf_counter()
    findings = preflight(trainer, prepared, settings, forecast, lambda: check_launch(trainer, plan))
    if is_main:
        print_findings(findings, time.perf_counter() - start, arguments.preflight_only)
        if arguments.preflight_only:
            print_sample(trainer)
    return forecast


def check_launch(trainer: Trainer, plan: RunPlan) -> str:
    """What accelerate set up, in words, or FoundryError where it is not what was asked for."""
    state, arguments = trainer.accelerator.state, trainer.args
    assert_launched_as_asked(state, plan.precision, arguments.expected_processes)
    return launch_words(state, precision_in_force(trainer.model, arguments, engine_of(state)))


def print_findings(findings: list[Finding], seconds: float, is_all_shown: bool) -> None:
    """One line when all is well; every finding when the preflight is all that was asked for."""
    passed = sum(each.verdict == "passed" for each in findings)
    shown = [each for each in findings if is_all_shown or each.verdict != "passed"]
    rows = [
        (each.check, each.words if each.verdict == "passed" else f"{each.verdict}: {each.words}")
        for each in shown
    ]
    print_rows(f"preflight: {passed} of {len(findings)} checks passed in {seconds:.1f} s", rows)


def print_sample(trainer: Trainer) -> None:
    """The head of the run's first sequence, as the model reads it."""
    ids = trainer.train_dataset[0]["input_ids"][:SAMPLE_TOKENS].tolist()
    tokenizer: Any = trainer.processing_class
    console.print(f"the first {len(ids)} tokens of the run, a colour a document:", style="bold")
    console.print(coloured_documents(ids, tokenizer.eos_token_id, tokenizer), style="default")


def _is_mixed(dataset: Any) -> bool:
    return isinstance(dataset, MixedDataset | HeldOutMixture)

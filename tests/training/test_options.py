"""Every option that a recipe lets through to the libraries works here, is refused in a line, or computes nothing."""

import dataclasses
import json
import re
import shutil
import typing
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments
from transformers.trainer_pt_utils import LabelSmoother
from transformers.training_args import OptimizerNames
from trl import DPOConfig, SFTConfig

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.pretraining.pipeline import PretrainArguments
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.checkpoints.parts import LossScale
from modeling_foundry.training.log.log_file import read_log
from modeling_foundry.training.options import names as option_names
from modeling_foundry.training.options.alignment_refusals import SFT_AND_DPO
from modeling_foundry.training.options.checks import refuse_missing_gpus, refuse_options
from modeling_foundry.training.options.optimizer_choice import TRIED, why_not
from modeling_foundry.training.options.refusals import COMMON, NEVER
from tests.training import small_run
from tests.training.option_table import (
    DPO,
    EVERY,
    NEEDS_MORE,
    NEUTRAL,
    NEUTRAL_IN,
    PRETRAIN,
    REFUSED,
    SFT,
    TRAINER,
    TRAINER_OF_ROWS,
    TRIALS,
    TRIED_BY,
)

KINDS = {PRETRAIN: PretrainArguments, SFT: alignment.SFTArguments, DPO: alignment.DPOArguments}
LIBRARIES = {PRETRAIN: TrainingArguments, SFT: SFTConfig, DPO: DPOConfig}
COMMON_OPTIONS = {
    "use_cpu": True, "max_steps": 3, "logging_steps": 1, "report_to": "none", "save_strategy": "no",
    "per_device_train_batch_size": 4, "learning_rate": 1e-3, "lr_scheduler_type": "constant", "disable_tqdm": True,
}  # fmt: skip
ALIGNED = {"bf16": False, "gradient_checkpointing": False, "max_length": 64}


def arguments_of(stage, output_dir, **options):
    given = COMMON_OPTIONS | ({} if stage == PRETRAIN else ALIGNED) | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return KINDS[stage](**({"output_dir": str(output_dir)} | given))


@pytest.fixture
def run_stage(tiny_checkpoint, samples, small_data, tmp_path):
    """A run of three small steps; returns the weights it ends with."""

    def run(stage, name="run", lora_rank=0, model=None, **options):
        if stage == PRETRAIN:
            small_run.train(tmp_path / name, small_data, **(COMMON_OPTIONS | options))
        else:
            arguments = arguments_of(stage, tmp_path / name, **options)
            file = str(samples / f"{stage}.jsonl")
            held_out = file if arguments.eval_strategy != "no" else None
            settings = alignment.AlignmentSettings(
                model=str(model or tiny_checkpoint), train_file=file, eval_file=held_out, lora_rank=lora_rank
            )
            getattr(alignment, stage)(settings, arguments)
        return load_file(tmp_path / name / "model" / "model.safetensors")

    return run


BASES: dict = {}


@pytest.fixture
def base(run_stage):
    """The weights of a stage without any option, trained once."""
    return lambda stage: BASES.setdefault(stage, None) or BASES.__setitem__(
        stage, run_stage(stage, "base")
    ) or BASES[stage]  # fmt: skip


def are_equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def trials():
    for stages, options, differs in TRIALS:
        for stage in stages:
            yield pytest.param(stage, options, differs, id=f"{stage}-{'-'.join(options)}")


@pytest.mark.parametrize(("stage", "options", "differs"), trials())
def test_a_run_with_an_option(stage, options, differs, base, run_stage):
    trained = run_stage(stage, **options)
    assert all(weight.isfinite().all() for weight in trained.values())
    if differs is not None:
        assert are_equal(trained, base(stage)) != differs


@pytest.mark.parametrize("stage", EVERY)
def test_a_run_with_options_that_compute_nothing(stage, base, run_stage):
    """All of them at once: the weights are those of the run without, bit for bit."""
    options = {name: value for name, value in (NEUTRAL | NEUTRAL_IN[stage]).items() if name != "output_dir"}
    assert are_equal(run_stage(stage, **options), base(stage))


@pytest.mark.parametrize(
    ("stage", "options", "line"),
    [
        pytest.param(stage, options, line, id=f"{stage}-{'-'.join(options)}-{number}")
        for number, (stages, options, line) in enumerate(REFUSED)
        for stage in stages
    ],
)
def test_an_option_is_refused_in_one_line(stage, options, line, tmp_path):
    with pytest.raises(FoundryError, match=f"^{line}") as error:
        refuse_options(stage, arguments_of(stage, tmp_path, **options))
    assert "\n" not in str(error.value)


def keys_of(table, stage):
    """Those of the rows for a stage; what is Trainer's own is tried in one stage for all."""
    shared = () if table is REFUSED else ((TRAINER, TRAINER_OF_ROWS) if stage != PRETRAIN else (TRAINER,))
    return {key for stages, options, *_ in table if stage in stages or stages in shared for key in options}


@pytest.mark.parametrize("stage", EVERY)
def test_every_option_of_the_installed_versions_is_in_the_table(stage):
    """One that a new version brings is in none of the three classes and fails here, by its name."""
    works = keys_of(TRIALS, stage) | {key for key, (stages, _) in TRIED_BY.items() if stage in stages}
    neutral = NEUTRAL.keys() | NEUTRAL_IN[stage].keys()
    refused = {key for key, (stages, _) in NEVER.items() if stage in stages}
    refused |= {"optim_target_modules"}
    options = {field.name for field in dataclasses.fields(LIBRARIES[stage]) if field.init}
    assert sorted(options - works - neutral - refused) == [], "say what becomes of these options"
    assert sorted(neutral & (works - {"accelerator_config"})) == [], "neutral, and changes what is computed?"
    known = {field.name for kind in KINDS.values() for field in dataclasses.fields(kind)}
    assert sorted((works | neutral | refused) - known) == [], "options that no version has"


@pytest.mark.parametrize("stage", EVERY)
def test_every_row_of_the_table_of_refusals_is_met(stage, tmp_path):
    met = [arguments_of(stage, tmp_path, **options) for stages, options, _ in REFUSED if stage in stages]
    for key, (stages, _) in NEVER.items():
        if stage in stages and key not in NEEDS_MORE:
            assert key in keys_of(REFUSED, stage), key
    for row in (*COMMON, *SFT_AND_DPO):
        if stage in row.stages and "DeepSpeed" not in row.words:
            assert any(row.applies(arguments) for arguments in met), (row.key, row.words)


def test_a_test_that_is_named_exists():
    for key, (_, name) in TRIED_BY.items():
        file, _, function = name.partition("::")
        (path,) = Path(__file__).parents[1].glob(f"*/{file}")
        assert f"def {function}" in path.read_text(), (key, name)


def test_names_are_those_of_the_libraries():
    """Names that TRL keeps in its code only: what it says itself where it meets an unknown one."""
    source = Path(
        typing.cast(str, __import__("trl.trainer.dpo_trainer").trainer.dpo_trainer.__file__)
    ).read_text()
    in_code = set(re.findall(r'loss_type == "(\w+)"', source))
    assert set(typing.get_args(option_names.PreferenceLoss)) == in_code
    divergences = set(re.findall(r'f_divergence_type == "(\w+)"', source))
    assert set(typing.get_args(option_names.Divergence)) == divergences
    assert set(typing.get_args(option_names.CompileBackend)) <= set(torch._dynamo.list_backends(None))
    modes = set(torch._inductor.list_mode_options()) - {"lite"}
    assert set(typing.get_args(option_names.CompileMode)) <= modes | {"default"}


@pytest.mark.parametrize("name", [each.value for each in OptimizerNames])
def test_every_optimizer_is_tried_or_refused_with_its_reason(name, tmp_path):
    if name in TRIED:
        return refuse_options(PRETRAIN, arguments_of(PRETRAIN, tmp_path, optim=name))
    with pytest.raises(FoundryError, match=re.escape(f"optim: {why_not(name)}; adamw_torch,")):
        refuse_options(PRETRAIN, arguments_of(PRETRAIN, tmp_path, optim=name))


@pytest.mark.parametrize(
    ("options", "kind", "expected"),
    [
        ({}, "AdamW", {"betas": (0.9, 0.95), "eps": 1e-8, "lr": 1e-3, "weight_decay": 0.1, "fused": True}),
        (
            {"optim": "adamw_torch", "adam_beta1": 0.8, "adam_beta2": 0.7, "adam_epsilon": 0.1},
            "AdamW",
            {"betas": (0.8, 0.7), "eps": 0.1},
        ),
        ({"optimizer": "muon", "adam_epsilon": 0.1}, "MuonAdamW", {"eps": 0.1}),
        ({"optim": "adafactor"}, "Adafactor", {"relative_step": False}),
        (
            {"optim": "sgd", "optim_args": "momentum=0.5, nesterov=true"},
            "SGD",
            {"momentum": 0.5, "nesterov": True},
        ),
        ({"optim": "adagrad", "optim_args": "lr_decay=0.5"}, "Adagrad", {"lr_decay": 0.5}),
        (
            {"optim": "rmsprop", "optim_args": "alpha=0.5,centered=true"},
            "RMSprop",
            {"alpha": 0.5, "centered": True},
        ),
    ],
)
def test_an_optimizer_is_the_one_of_its_name(options, kind, expected, build_trainer):
    trainer = build_trainer(**(COMMON_OPTIONS | options))
    optimizer = trainer.create_optimizer()
    assert type(optimizer).__name__ == kind
    group = optimizer.param_groups[0]
    assert {name: group[name] for name in expected} == expected


@pytest.mark.parametrize("name", [*TRIED, "muon"])
def test_an_optimizer_goes_on_where_it_was(name, small_data, tmp_path):
    """Resumed in the middle, it ends with the weights of the run that was not interrupted."""
    options = {"optimizer": "muon"} if name == "muon" else {"optim": name}
    if name == "sgd":
        options["optim_args"] = "momentum=0.9"
    small_run.train(tmp_path / "whole", small_data, **options)
    again = small_run.cut(tmp_path / "whole", tmp_path / "again")
    small_run.train(again, small_data, **options)
    ends = [load_file(tmp_path / each / "model/model.safetensors") for each in ("whole", "again")]
    assert are_equal(*ends)


def test_labels_are_smoothed_as_transformers_does_it(
    run_stage, tmp_path, tiny_checkpoint, samples, monkeypatch
):
    """The loss of the first step is the smoother's on logits and labels that are one apart."""
    seen = []
    step = alignment.FoundrySFTTrainer.compute_loss

    def watched(self, model, inputs, *args, **kwargs):
        if not seen:
            with torch.no_grad():
                rows = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
                logits = model(**rows).logits
            seen.append(LabelSmoother(0.1)({"logits": logits}, inputs["labels"], shift_labels=True).item())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(alignment.FoundrySFTTrainer, "compute_loss", watched)
    run_stage(SFT, label_smoothing_factor=0.1, max_steps=1)
    logged = [line["loss"] for line in read_log(tmp_path / "run") if line["event"] == "train"]
    assert logged[0] == pytest.approx(seen[0], rel=1e-5)


@pytest.mark.parametrize(("is_better", "best"), [(None, 3), (True, 1)])
def test_the_best_model_is_the_one_asked_for(is_better, best, run_stage, tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1}
    options |= {
        "metric_for_best_model": "loss",
        "load_best_model_at_end": True,
        "greater_is_better": is_better,
    }
    trained = run_stage(SFT, learning_rate=1e-2, lr_scheduler_type="linear", **options)
    losses = {x["step"]: x["eval_loss"] for x in read_log(tmp_path / "run") if x["event"] == "evaluation"}
    chosen = (max if is_better else min)(losses, key=losses.get)
    assert chosen == best
    at_best = tmp_path / "run" / f"checkpoint-{best}" / "model.safetensors"
    assert are_equal(trained, load_file(at_best))


def test_an_unknown_metric_is_refused_before_anything_is_loaded(run_stage):
    options = {"eval_strategy": "steps", "eval_steps": 1, "metric_for_best_model": "eval_accuracy"}
    with pytest.raises(
        FoundryError, match="metric_for_best_model: eval_accuracy is not computed; expected .*loss"
    ):
        run_stage(SFT, **options)


def test_a_moving_reference_goes_on_where_it_was(run_stage, tmp_path):
    options = {"sync_ref_model": True, "ref_model_sync_steps": 2, "max_steps": small_run.STEPS}
    options |= {"save_strategy": "steps", "save_steps": 2, "learning_rate": 1e-2}
    whole = run_stage(DPO, "whole", **options)
    small_run.cut(tmp_path / "whole", tmp_path / "again")
    assert are_equal(run_stage(DPO, "again", **options), whole)


def test_half_precision_has_its_scale_in_the_checkpoint(tmp_path):
    """fp16 needs a GPU, its scaler does not: a resumed run would begin again at 65,536."""

    def trainer(scale):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        return SimpleNamespace(accelerator=SimpleNamespace(scaler=scaler), is_world_process_zero=lambda: True)

    before, after = trainer(8.0), trainer(65536.0)
    with pytest.raises(FoundryError, match=r"loss_scale.json: nothing to go on from"):
        LossScale(after).load(tmp_path)
    LossScale(before).save(tmp_path)
    LossScale(after).load(tmp_path)
    assert after.accelerator.scaler.get_scale() == 8.0


def test_pretraining_counts_no_epochs(run_stage):
    with pytest.raises(FoundryError, match="num_train_epochs: pretraining counts steps"):
        run_stage(PRETRAIN, num_train_epochs=2.0)


def test_a_schedule_that_takes_no_such_option_is_refused(run_stage):
    for stage in EVERY:
        options = {"lr_scheduler_type": "cosine_with_min_lr", "lr_scheduler_kwargs": {"min_rate": 0.1}}
        with pytest.raises(FoundryError, match=r"lr_scheduler_kwargs: .* does not suit cosine_with_min_lr"):
            run_stage(stage, **options)


@pytest.mark.parametrize("rank", [0, 2])
def test_a_reference_that_moves_needs_one_of_its_own(rank, run_stage):
    if rank:
        with pytest.raises(FoundryError, match="sync_ref_model: not with lora_rank"):
            run_stage(DPO, sync_ref_model=True, lora_rank=rank)


def test_dropout_in_preferences_is_off_until_asked_for(run_stage, tiny_checkpoint, tmp_path):
    """TRL's own switch finds modules of dropout; in most models attention has a number in their place."""
    model = tmp_path / "dropout"
    shutil.copytree(tiny_checkpoint, model)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"attention_dropout": 0.5}))
    without = run_stage(DPO, "without")
    assert are_equal(run_stage(DPO, "off", model=model), without)
    assert not are_equal(run_stage(DPO, "on", model=model, disable_dropout=False), without)


def test_an_end_that_is_named_ends_generation(run_stage, tmp_path, tiny_checkpoint):
    run_stage(SFT, eos_token="<|im_start|>")
    made = json.loads((tmp_path / "run/model/generation_config.json").read_text())
    vocabulary = json.loads((tiny_checkpoint / "tokenizer.json").read_text())["added_tokens"]
    ids = {token["content"]: token["id"] for token in vocabulary}
    assert set(made["eos_token_id"]) == {ids["<|im_end|>"], ids["<|im_start|>"]}


def test_determinism_is_switched_on(build_trainer, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    try:
        build_trainer(full_determinism=True)
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        torch.use_deterministic_algorithms(False)


def test_a_gpu_is_named_where_one_is_needed(monkeypatch):
    """transformers says "your setup doesn't support bf16/gpu", without ranks or GPUs."""

    def given(**more):
        return SimpleNamespace(
            **({"use_cpu": False, "bf16": False, "fp16": False, "ddp_backend": None} | more)
        )

    refuse_missing_gpus(given(use_cpu=True, bf16=True), {})
    refuse_missing_gpus(given(), {})
    with pytest.raises(
        FoundryError, match=r"bf16: 8 processes were started on this machine, which has no GPU"
    ):
        refuse_missing_gpus(given(bf16=True), {"LOCAL_WORLD_SIZE": "8"})
    with pytest.raises(FoundryError, match=r"bf16: 1 process was started on this machine, which has no GPU"):
        refuse_missing_gpus(given(bf16=None), {})
    with pytest.raises(FoundryError, match=r"fp16: 1 process was started"):
        refuse_missing_gpus(given(fp16=True), {})
    with pytest.raises(
        FoundryError, match=r"launch: 2 processes were started .* has no GPU, where each would"
    ):
        refuse_missing_gpus(given(), {"LOCAL_WORLD_SIZE": "2"})
    refuse_missing_gpus(given(ddp_backend="gloo"), {"LOCAL_WORLD_SIZE": "2"})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(
        FoundryError, match=r"launch: 8 processes were started on this machine, which has 2 GPUs;"
    ):
        refuse_missing_gpus(given(), {"LOCAL_WORLD_SIZE": "8"})


def test_experts_are_balanced_as_asked(run_stage):
    with pytest.raises(FoundryError, match=r"router_aux_loss_coef: .* has no experts to balance"):
        run_stage(SFT, router_aux_loss_coef=0.1)


def test_the_older_name_of_checkpointing_is_read_where_there_is_no_other():
    """transformers 5.17 knows gradient_checkpointing alone."""
    from modeling_foundry.training.options.refusals import checkpointing_options, recomputes

    older = SimpleNamespace(
        gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    assert recomputes(older)
    assert checkpointing_options(older) == {"use_reentrant": False}
    off = SimpleNamespace(gradient_checkpointing=False, gradient_checkpointing_kwargs=None)
    assert not recomputes(off)
    assert checkpointing_options(off) is None

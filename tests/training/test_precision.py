"""What is trained is float32 however its folder was saved; what is frozen stays as it was; the start says which."""

import json
import shutil
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.training.precision import load_for_training, precision_in_force

SAVED = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


@pytest.fixture(scope="module")
def saved_in(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint's values, rounded to bfloat16, in a folder of any dtype."""

    @cache
    def copy(name):
        folder = tmp_path_factory.mktemp(name) / "model"
        shutil.copytree(tiny_checkpoint, folder)
        weights = load_file(folder / "model.safetensors")
        dtype = getattr(torch, name)
        rounded = {key: weight.to(torch.float16).bfloat16().to(dtype) for key, weight in weights.items()}
        save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
        config = json.loads((folder / "config.json").read_text()) | {"dtype": name}
        (folder / "config.json").write_text(json.dumps(config))
        return folder

    return copy


@pytest.fixture(scope="module")
def exact_run(saved_in, samples, tmp_path_factory):
    """The run from a float32 copy, once for each way to compute."""

    @cache
    def exact(stage, **changed):
        return run(stage, saved_in("float32"), samples, tmp_path_factory.mktemp("exact"), **changed)

    return exact


def run(stage, model, samples, output_dir, **changed):
    given = {
        "max_steps": 2, "per_device_train_batch_size": 4, "max_length": 64, "use_cpu": True, "bf16": False,
        "report_to": "none", "save_strategy": "no", "learning_rate": 1e-5, "gradient_checkpointing": False,
        "disable_tqdm": True,
    } | changed  # fmt: skip
    settings = alignment.AlignmentSettings(
        model=str(model), train_file=str(samples / f"{stage}.jsonl"), lora_rank=given.pop("lora_rank", 0)
    )
    kind = alignment.SFTArguments if stage == "sft" else alignment.DPOArguments
    folder = getattr(alignment, stage)(settings, kind(str(output_dir), **given))
    return load_file(folder / "model.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "name", "changed"),
    [
        ("dpo", "bfloat16", {}),
        ("dpo", "float16", {"bf16": True}),
        ("sft", "bfloat16", {"bf16": True}),
        ("sft", "float16", {}),
        ("sft", "float64", {}),
        ("dpo", "bfloat16", {"gradient_checkpointing": True}),
    ],
)
def test_as_many_weights_move_as_from_a_float32_copy(
    stage, name, changed, saved_in, exact_run, samples, tmp_path, capsys
):
    """Steps of 1e-5 are below what bfloat16 tells apart at most of these weights."""
    exact = exact_run(stage, **changed)
    ours = run(stage, saved_in(name), samples, tmp_path / "ours", **changed)
    assert {weight.dtype for weight in ours.values()} == {torch.float32}
    assert all(torch.equal(ours[key], exact[key]) for key in exact)
    before = load_file(saved_in("float32") / "model.safetensors")
    moved = sum(int((ours[key] != before[key]).sum()) for key in before)
    assert moved > 0.5 * sum(weight.numel() for weight in before.values())
    compute = "bfloat16" if changed.get("bf16") else "float32"
    assert f"; parameters float32, masters float32, compute {compute}\n" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "name", "changed", "base", "compute"),
    [
        ("sft", "bfloat16", {}, "bfloat16", "bfloat16"),
        ("dpo", "bfloat16", {"bf16": True, "gradient_checkpointing": True}, "bfloat16", "bfloat16"),
        ("dpo", "float16", {"bf16": True}, "float16", "bfloat16"),
        ("sft", "float16", {}, "float32", "float32"),
        ("sft", "float32", {"bf16": True}, "float32", "bfloat16"),
    ],
)
def test_a_frozen_base_keeps_its_type_and_the_adapter_is_float32(
    stage, name, changed, base, compute, saved_in, samples, tmp_path, capsys, monkeypatch
):
    held = {}
    finish = alignment.finish_chat_model

    def looked_at(trainer):
        held.update({p.requires_grad: p.dtype for p in trainer.model.parameters()})
        finish(trainer)

    monkeypatch.setattr(alignment, "finish_chat_model", looked_at)
    ours = run(stage, saved_in(name), samples, tmp_path / "run", lora_rank=2, **changed)
    assert held == {False: getattr(torch, base), True: torch.float32}
    words = f"parameters float32 on a frozen {base} base, masters float32, compute {compute}\n"
    assert words in capsys.readouterr().out
    # Merged in float32: in the base's own type a step this small would be rounded away.
    before = load_file(saved_in("float32") / "model.safetensors")
    changed_weights = {key for key in before if not torch.equal(before[key], ours[key])}
    assert {weight.dtype for weight in ours.values()} == {torch.float32}
    assert len(changed_weights) == 2 * 7


@pytest.mark.slow
def test_reference_and_policy_agree_before_the_first_step(saved_in, samples, tmp_path):
    from modeling_foundry.training.log.log_file import read_log

    run("dpo", saved_in("bfloat16"), samples, tmp_path / "run", bf16=True, logging_steps=1)
    first = next(line for line in read_log(tmp_path / "run") if "rewards/margins" in line)
    assert (first["rewards/chosen"], first["rewards/margins"]) == (0.0, 0.0)


def arguments(**changed):
    return SimpleNamespace(**{"bf16": False, "fp16": False, "tf32": None} | changed)


def model_in(dtype, frozen=None):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2, dtype=dtype), torch.nn.Linear(8, 8, dtype=frozen))
    model[1].requires_grad_(False)
    return model if frozen else model[:1]


@pytest.mark.parametrize(
    ("model", "asked", "engine", "words"),
    [
        ((torch.float32,), {}, "NO", "parameters float32, masters float32, compute float32"),
        ((torch.float32,), {"bf16": True}, "NO", "parameters float32, masters float32, compute bfloat16"),
        ((torch.float32,), {"fp16": True}, "MULTI_GPU", "parameters float32, masters float32, compute float16"),
        ((torch.bfloat16,), {}, "NO", "parameters bfloat16, no masters, compute bfloat16"),
        ((torch.bfloat16,), {"bf16": True}, "NO", "parameters bfloat16, no masters, compute bfloat16"),
        ((torch.float32,), {"bf16": True}, "DEEPSPEED", "parameters bfloat16, masters float32, compute bfloat16"),
        ((torch.float32,), {}, "DEEPSPEED", "parameters float32, masters float32, compute float32"),
        ((torch.bfloat16,), {"bf16": True}, "FSDP", "parameters float32, masters float32, compute bfloat16"),
        ((torch.bfloat16,), {}, "FSDP", "parameters bfloat16, no masters, compute bfloat16"),
        (
            (torch.float32,), {"tf32": True}, "NO",
            "parameters float32, masters float32, compute float32 with TF32 products",
        ),
        (
            (torch.float32,), {"bf16": True, "float8": True}, "NO",
            "parameters float32, masters float32, compute bfloat16 with fp8 products",
        ),
        (
            (torch.float32, torch.bfloat16), {}, "NO",
            "parameters float32 on a frozen bfloat16 base, masters float32, compute bfloat16",
        ),
        (
            (torch.float32, torch.float32), {"bf16": True}, "DEEPSPEED",
            "parameters bfloat16 on a frozen bfloat16 base, masters float32, compute bfloat16",
        ),
    ],
)  # fmt: skip
def test_dtypes_in_words(model, asked, engine, words):
    assert str(precision_in_force(model_in(*model), arguments(**asked), engine)) == words


@pytest.mark.parametrize(
    ("name", "is_frozen", "mixed", "held"),
    [
        ("bfloat16", False, "bf16", "float32"),
        ("float16", False, "fp16", "float32"),
        ("bfloat16", True, "no", "bfloat16"),
        ("float16", True, "fp16", "float16"),
        ("float16", True, "no", "float32"),
        ("float32", True, "bf16", "float32"),
    ],
)
def test_the_dtype_a_folder_is_held_in(name, is_frozen, mixed, held, saved_in):
    model = load_for_training(saved_in(name), is_frozen, mixed)
    assert {weight.dtype for weight in model.parameters()} == {getattr(torch, held)}

"""SFT and DPO, cut off and started again: bit for bit the run that was not, as in pretraining."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.run_record import write_run_record
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.checkpoints.checkpoints import read_seal, write_seal
from modeling_foundry.training.log.log_file import read_log
from tests.conftest import closed_files

STAGES = {
    "sft": (alignment.sft, alignment.SFTArguments),
    "dpo": (alignment.dpo, alignment.DPOArguments),
}


@pytest.fixture(scope="module")
def base(tiny_checkpoint, tmp_path_factory):
    """The tiny checkpoint with dropout, so that the random generators matter."""
    folder = tmp_path_factory.mktemp("base") / "model"
    AutoModelForCausalLM.from_pretrained(tiny_checkpoint, attention_dropout=0.1).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_checkpoint).save_pretrained(folder)
    return folder


@pytest.fixture
def align(base, samples):
    """Run a stage in this process: 8 steps an epoch, a checkpoint every two."""

    def run(stage, output_dir, **changed):
        train, arguments = STAGES[stage]
        given = {
            "output_dir": str(output_dir), "per_device_train_batch_size": 4, "max_length": 64, "use_cpu": True,
            "bf16": False, "logging_steps": 1, "report_to": "none", "seed": 3, "save_steps": 2,
            "num_train_epochs": 2, "lr_scheduler_type": "constant", "learning_rate": 1e-3,
        }  # fmt: skip
        settings = alignment.AlignmentSettings(
            model=str(base), train_file=str(samples / f"{stage}.jsonl"), keep_checkpoints=20
        )
        train(settings, arguments(**(given | changed)))
        return output_dir

    return run


def cut(run, target, step):
    """A copy of a finished run as a kill after the checkpoint of ``step`` would have left it."""
    shutil.copytree(run, target)
    for folder in target.glob("checkpoint-*"):
        if int(folder.name.split("-")[1]) > step:
            shutil.rmtree(folder)
    shutil.rmtree(target / "model")
    (target / "complete.json").unlink()
    return target


FIGURES = ("step", "loss", "num_tokens", "entropy", "mean_token_accuracy", "rewards/margins", "logps/chosen")


def trained(run):
    losses = [[line.get(name) for name in FIGURES] for line in read_log(run) if line.get("loss") is not None]
    return losses, json.loads((run / "complete.json").read_text())["steps"]


def same_weights(ours, theirs):
    ours, theirs = (load_file(run / "model/model.safetensors") for run in (ours, theirs))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "step", "changed"),
    [
        ("dpo", 4, {"max_steps": 6, "logging_steps": 3}),  # inside an epoch, and between two lines of the log
        ("sft", 8, {"max_steps": 10}),  # between two: a new data loader draws from the generators as well
        ("dpo", 8, {"save_strategy": "epoch"}),
        ("sft", 5, {"max_steps": 5}),  # the last step, inside an epoch: only the model is left to write
    ],
)
def test_cut_anywhere_it_ends_where_the_unbroken_run_ends(stage, step, changed, align, tmp_path):
    whole = align(stage, tmp_path / "whole", **changed)
    broken = align(stage, cut(whole, tmp_path / "broken", step), **changed)
    assert trained(broken) == trained(whole)
    assert not closed_files(broken)
    assert same_weights(broken, whole)


@pytest.mark.slow
def test_other_ranks_would_read_other_samples(align, tmp_path):
    """Skipping as many batches of another size; pretraining follows the numbers of the samples instead."""
    whole = align("sft", tmp_path / "whole", max_steps=2)
    assert not closed_files(whole)
    run = cut(whole, tmp_path / "run", 2)
    folder = run / "checkpoint-2"
    shutil.copy(folder / "random_state-00000.safetensors", folder / "random_state-00001.safetensors")
    write_seal(
        folder,
        {key: value for key, value in read_seal(folder).items() if key != "files"} | {"world_size": 2},
    )
    with pytest.raises(FoundryError, match=r"checkpoint-2: written by 2 rank\(s\)"):
        align("sft", run, max_steps=2)


def test_two_files_of_one_name_are_both_compared(base, samples, tmp_path):
    for name in ("train", "eval"):
        (tmp_path / name).mkdir()
        shutil.copy(samples / "sft.jsonl", tmp_path / name / "samples.jsonl")
    settings = alignment.AlignmentSettings(
        model=str(base),
        train_file=str(tmp_path / "train/samples.jsonl"),
        eval_file=str(tmp_path / "eval/samples.jsonl"),
    )
    arguments = alignment.SFTArguments(str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none")
    before = alignment.open_session("sft", settings, arguments)[0].inputs
    with open(settings.train_file, "a") as file:
        file.write((samples / "sft.jsonl").read_text().splitlines()[0] + "\n")
    assert alignment.open_session("sft", settings, arguments)[0].inputs != before


def test_samples_that_have_moved_are_the_same_samples(base, samples, tmp_path):
    def ask(train_file, eval_file, model=base):
        settings = alignment.AlignmentSettings(str(model), str(train_file), str(eval_file))
        arguments = alignment.SFTArguments(str(tmp_path / "run"), use_cpu=True, bf16=False, report_to="none")
        return alignment.open_session("sft", settings, arguments)[0]

    first = samples / "sft.jsonl"
    session = ask(first, first)
    write_run_record(session.output_dir, session.settings, inputs=session.inputs)
    for name in ("moved", "changed"):
        shutil.copy(first, tmp_path / f"{name}.jsonl")
    with open(tmp_path / "changed.jsonl", "a") as file:
        file.write(first.read_text().splitlines()[0] + "\n")
    ask(tmp_path / "moved.jsonl", tmp_path / "moved.jsonl")
    with pytest.raises(FoundryError, match="other settings .*eval_file.*eval_file"):
        ask(first, tmp_path / "changed.jsonl")
    with pytest.raises(FoundryError, match="other settings .*train_file.*train_file"):
        ask(tmp_path / "changed.jsonl", first)
    shutil.copytree(base, tmp_path / "model")  # the same weights; its chat template nobody has compared
    with pytest.raises(FoundryError, match=r"other settings \(model: "):
        ask(first, first, tmp_path / "model")

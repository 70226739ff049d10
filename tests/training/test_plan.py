"""Settings are resolved once: after that nobody in the package writes to Trainer's arguments."""

import sys

import pytest
from transformers import TrainingArguments

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.training import plan
from tests.training.small_run import cut, train

SMALL = {
    "use_cpu": True, "bf16": False, "gradient_checkpointing": False, "max_length": 64, "max_steps": 4,
    "save_steps": 2, "report_to": "none", "logging_steps": 1, "per_device_train_batch_size": 4,
}  # fmt: skip


@pytest.fixture
def read_only(monkeypatch):
    """Arguments that a plan has handed out refuse to be written to by code of ours; returns those handed out."""
    settled, write = [], TrainingArguments.__setattr__

    def guarded(self, name, value):
        writer = sys._getframe(1).f_globals["__name__"]
        if any(self is each for each in settled) and writer.startswith("modeling_foundry"):
            raise AssertionError(f"{writer} writes {name} after the arguments were resolved")
        write(self, name, value)

    def handed_out(function, arguments_of):
        def noted(*args, **kwargs):
            answer = function(*args, **kwargs)
            settled.append(arguments_of(answer))
            return answer

        return noted

    plan_of = handed_out(plan.plan_of, lambda each: each.arguments)
    for module in ("alignment.pipeline", "pretraining.token_budget"):
        monkeypatch.setattr(f"modeling_foundry.{module}.plan_of", plan_of)
    arguments_from = handed_out(plan.RunPlan.arguments_from, lambda each: each)
    monkeypatch.setattr(plan.RunPlan, "arguments_from", arguments_from)
    monkeypatch.setattr(TrainingArguments, "__setattr__", guarded, raising=False)
    return settled


def test_nobody_writes_pretrainings_arguments_at_the_start_nor_at_a_resume(small_data, tmp_path, read_only):
    train(tmp_path / "whole", small_data, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    resumed = cut(tmp_path / "whole", tmp_path / "cut")
    train(resumed, small_data, eval_strategy="steps", eval_steps=2, eval_on_start=True)
    assert len(read_only) == 4
    assert [each.eval_on_start for each in read_only[1::2]] == [True, False]


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_nobody_writes_alignments_arguments(stage, tiny_checkpoint, samples, tmp_path, read_only):
    kind = alignment.SFTArguments if stage == "sft" else alignment.DPOArguments
    settings = alignment.AlignmentSettings(
        model=str(tiny_checkpoint), train_file=str(samples / f"{stage}.jsonl")
    )
    getattr(alignment, stage)(settings, kind(str(tmp_path / "run"), **SMALL))
    assert len(read_only) == 3, "the schedule is tried, the plan is made, a checkpoint is looked for"
    assert (tmp_path / "run" / "complete.json").is_file()


def test_the_record_holds_the_plan(small_data, tmp_path):
    import json

    train(tmp_path, small_data)
    recorded = json.loads((tmp_path / "run.json").read_text())["plan"]
    assert recorded["micro_batch"] == 4
    assert (recorded["accumulation"], recorded["num_ranks"], recorded["max_steps"]) == (1, 1, 6)
    assert (recorded["schedule"], recorded["precision"]) == ("cosine_with_min_lr", "no")
    assert recorded["sequence_length"] == 32

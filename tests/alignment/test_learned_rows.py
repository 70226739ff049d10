"""Packed or cut rows without a token to learn are left out and counted; no step has a loss of 0."""

import json

import pytest
from datasets import Dataset

from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.alignment.learned_rows import _is_learned, drop_unlearned_rows
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.log.log_file import read_log


@pytest.fixture(scope="module")
def long_questions(samples, tmp_path_factory):
    """Every other question is longer than a row of 32 tokens."""
    path = tmp_path_factory.mktemp("long") / "sft.jsonl"
    rows = [json.loads(line) for line in (samples / "sft.jsonl").read_text().splitlines()]
    for row in rows[::2]:
        row["messages"][0]["content"] = "list of items " * 20
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(checkpoint, train_file, output_dir, eval_file=None, **changed):
    given = {
        "max_steps": 12, "per_device_train_batch_size": 1, "packing": True, "max_length": 32, "use_cpu": True,
        "bf16": False, "report_to": "none", "save_strategy": "no", "logging_steps": 1,
        "gradient_checkpointing": False, "disable_tqdm": True,
    } | changed  # fmt: skip
    settings = alignment.AlignmentSettings(
        model=str(checkpoint), train_file=str(train_file), eval_file=eval_file and str(eval_file)
    )
    alignment.sft(settings, alignment.SFTArguments(str(output_dir), **given))
    return read_log(output_dir)


@pytest.mark.parametrize("strategy", ["bfd", "bfd_split", "wrapped"])
def test_no_step_learns_nothing(strategy, tiny_checkpoint, long_questions, tmp_path, capsys):
    log = run(
        tiny_checkpoint, long_questions, tmp_path / "run", long_questions, packing_strategy=strategy,
        eval_strategy="steps", eval_steps=6, per_device_eval_batch_size=2,
    )  # fmt: skip
    losses = [line["loss"] for line in log if line.get("event") == "train"]
    assert len(losses) == 12
    assert min(losses) > 1
    assert all(line["eval_loss"] > 1 for line in log if line.get("event") == "evaluation")
    told = [line for line in capsys.readouterr().out.splitlines() if "hold no token to learn" in line]
    assert len(told) == 2, "one for each file"
    assert told[0].startswith(f"sft: {long_questions}: ")
    assert told[0].endswith("rows of max_length 32 hold no token to learn and are left out")


def test_a_file_that_teaches_nothing_is_refused(tiny_checkpoint, long_questions, tmp_path):
    path = tmp_path / "short.jsonl"
    path.write_text("".join(line + "\n" for line in long_questions.read_text().splitlines()[::2]))
    with pytest.raises(FoundryError, match=r"short\.jsonl: .*(max_length|cut|token)"):
        run(tiny_checkpoint, path, tmp_path / "run")
    with pytest.raises(FoundryError, match=r"short\.jsonl: .*(max_length|cut|token)"):
        run(tiny_checkpoint, long_questions, tmp_path / "run", path, eval_strategy="steps", eval_steps=6)


class Trainer:
    """As much of a trainer as is asked."""

    padding_free = False

    class args:  # noqa: N801
        max_length = 4

        @staticmethod
        def main_process_first(desc):
            from contextlib import nullcontext

            return nullcontext()

    eval_dataset = None


def test_rows_are_counted_by_file():
    Trainer.train_dataset = Dataset.from_dict({"labels": [[-100, 1], [2, -100], [-100, -100], [1, 1]]})
    trainer = Trainer()
    told = drop_unlearned_rows(trainer, {"train_dataset": "a.jsonl", "eval_dataset": None})
    assert told == ["a.jsonl: 2 of 4 rows of max_length 4 hold no token to learn and are left out"]
    assert trainer.train_dataset["labels"][:] == [[-100, 1], [1, 1]]


@pytest.mark.parametrize(
    ("labels", "lengths", "is_flat", "expected"),
    [
        ([-100, -100], None, False, False),
        ([5, -100], None, False, False),  # what nothing predicts
        ([-100, 5], None, False, True),
        ([-100, 5, 6, -100], [2, 2], True, True),
        ([-100, -100, 6, -100], [2, 2], True, False),  # the first of the second document
        ([-100, -100, 6, -100], [2, 2], False, True),
    ],
)
def test_a_token_that_nothing_predicts_is_not_learned(labels, lengths, is_flat, expected):
    row = {"labels": labels} | ({"seq_lengths": lengths} if lengths else {})
    assert _is_learned(row, is_flat) == expected

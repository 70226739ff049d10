"""SFT teaches the stop, DPO synchronises its ranks: what the earlier system did not do."""

import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file

from modeling_foundry.settings import FoundryError
from tests import warm_start
from tests.conftest import closed_files

CPU = [
    "--use_cpu=true",
    "--bf16=false",
    "--gradient_checkpointing=false",
    "--max_length=64",
    "--logging_steps=1",
]


def weights(output_dir):
    return load_file(output_dir / "model" / "model.safetensors")


def sft_trainer(tiny_checkpoint, samples, tmp_path, tokenizer=None):
    from trl import SFTTrainer

    from modeling_foundry.alignment import pipeline as alignment
    from modeling_foundry.training.plan import plan_of

    settings = alignment.AlignmentSettings(model=str(tiny_checkpoint), train_file=str(samples / "sft.jsonl"))
    arguments = alignment.SFTArguments(
        str(tmp_path), use_cpu=True, bf16=False, gradient_checkpointing=False, max_length=64, max_steps=1
    )
    files = alignment.check_samples(
        settings, {"train_file": alignment.hash_of_samples(settings.train_file)}, "sft"
    )
    train, _ = alignment.both_sides(files, settings, 0)
    return SFTTrainer(
        model=alignment.load_base(settings, plan_of(arguments)), args=arguments, train_dataset=train,
        processing_class=tokenizer or alignment.tokenizer_to_train(settings, arguments),
    )  # fmt: skip


def test_the_end_of_the_answer_is_inside_the_loss(tiny_checkpoint, samples, tmp_path):
    from modeling_foundry.alignment.pipeline import END_OF_TURN, assert_stop_is_learned

    trainer = sft_trainer(tiny_checkpoint, samples, tmp_path)
    tokenizer = trainer.processing_class
    stop = tokenizer.convert_tokens_to_ids(END_OF_TURN)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(32)])
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        learned = ids[labels != -100]
        assert torch.equal(learned, labels[labels != -100])
        assert (learned == stop).sum() == 1, "exactly the assistant's own end of turn"
        text = tokenizer.decode(learned)
        assert text.startswith(tuple("abcdefghijklmnopqrstuvwxyz")), text
        assert "def " not in text
        assert "user" not in text
        assert text.strip().endswith(END_OF_TURN)
    assert_stop_is_learned(trainer, tokenizer)


def test_a_mask_without_the_stop_is_refused(tiny_checkpoint, samples, tmp_path):
    from modeling_foundry.alignment.pipeline import assert_stop_is_learned

    trainer = sft_trainer(tiny_checkpoint, samples, tmp_path)
    stop = trainer.processing_class.convert_tokens_to_ids("<|im_end|>")
    collate = trainer.data_collator

    def without_stop(rows):
        batch = collate(rows)
        batch["labels"][batch["labels"] == stop] = -100
        return batch

    trainer.data_collator = without_stop
    with pytest.raises(FoundryError, match="is in no label"):
        assert_stop_is_learned(trainer, trainer.processing_class)


def unlinted(monkeypatch):
    """TRL renders the template in this process, without limits: it must not come to that."""
    for name in ("SFTTrainer", "DPOTrainer"):
        monkeypatch.setattr(
            f"modeling_foundry.alignment.pipeline.{name}",
            lambda **_: pytest.fail("rendered before the linter"),
        )


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_a_hostile_template_is_stopped_before_the_trainer_renders_it(
    stage, tiny_checkpoint, samples, tmp_path, monkeypatch
):
    from modeling_foundry.alignment import pipeline as alignment

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    (checkpoint / "chat_template.jinja").write_text("{{ cycler.__init__.__globals__.os.getcwd() }}")
    unlinted(monkeypatch)
    kind = alignment.SFTArguments if stage == "sft" else alignment.DPOArguments
    arguments = kind(str(tmp_path / "run"), use_cpu=True, bf16=False, max_length=64, max_steps=1)
    settings = alignment.AlignmentSettings(model=str(checkpoint), train_file=str(samples / f"{stage}.jsonl"))
    with pytest.raises(FoundryError, match=r"template within limits: line 1: SecurityError: "):
        getattr(alignment, stage)(settings, arguments)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"messages": [', r"rows.jsonl, line 33: not JSON: "),
        ('{"text": "other"}', r"rows.jsonl, line 33: missing key: messages; the row has text: a document"),
        ('{"messages": []}', r"rows.jsonl, line 33: empty text: messages has no messages"),
    ],
)
def test_a_bad_line_is_named_before_training(line, message, tiny_checkpoint, samples, tmp_path, monkeypatch):
    from modeling_foundry.alignment import pipeline as alignment

    unlinted(monkeypatch)
    (tmp_path / "rows.jsonl").write_text((samples / "sft.jsonl").read_text() + line + "\n")
    arguments = alignment.SFTArguments(str(tmp_path / "run"), use_cpu=True, bf16=False, max_steps=1)
    settings = alignment.AlignmentSettings(
        model=str(tiny_checkpoint), train_file=str(tmp_path / "rows.jsonl")
    )
    with pytest.raises(FoundryError, match=message):
        alignment.sft(settings, arguments)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_two_ranks_take_the_same_steps_as_one(stage, tiny_checkpoint, samples, tmp_path, launch):
    """Each rank sees half of the batch; only synchronised gradients give the weights of the whole batch."""
    common = [f"--model={tiny_checkpoint}", f"--train_file={samples / stage}.jsonl", "--max_steps=3", *CPU]
    common += ["--learning_rate=0.01", "--lr_scheduler_type=constant", "--save_strategy=no"]
    one, two = tmp_path / "one", tmp_path / "two"
    launch(stage, *common, f"--output_dir={one}", "--per_device_train_batch_size=8")
    launch(
        stage,
        *common,
        f"--output_dir={two}",
        "--per_device_train_batch_size=4",
        "--expected_processes=2",
        ranks=2,
    )
    start = load_file(tiny_checkpoint / "model.safetensors")
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, weight in first.items():
        moved = (weight - start[name]).abs().max()
        assert moved > 1e-3, f"{name} was not trained"
        # Adam divides by the gradient's size, so rounding shows more than in the loss.
        assert (weight - second[name]).abs().max() < 0.05 * moved, name


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["ddp", "zero1"])
def test_dpo_with_an_adapter_gives_a_plain_checkpoint(engine, tiny_checkpoint, samples, tmp_path, launch):
    """DeepSpeed keeps the names that the adapter gave to the weights."""
    from transformers import AutoModelForCausalLM

    out = tmp_path / "dpo"
    launch(
        "dpo", f"--model={tiny_checkpoint}", f"--train_file={samples}/dpo.jsonl", f"--output_dir={out}",
        "--max_steps=2", "--lora_rank=2", "--learning_rate=0.05", "--save_steps=1", *CPU,
    )  # fmt: skip
    assert not closed_files(out), "the adapter's checkpoint, too"
    merged = weights(out)
    start = load_file(tiny_checkpoint / "model.safetensors")
    assert merged.keys() == start.keys()
    assert any(not torch.equal(merged[name], start[name]) for name in start)
    assert AutoModelForCausalLM.from_pretrained(out / "model").generation_config.eos_token_id


def test_a_base_without_a_chat_template_says_where_to_put_one(tiny_checkpoint, samples, tmp_path):
    from modeling_foundry.alignment import pipeline as alignment

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(tiny_checkpoint, checkpoint)
    (checkpoint / "chat_template.jinja").unlink()
    settings = alignment.AlignmentSettings(str(checkpoint), str(samples / "sft.jsonl"))
    with pytest.raises(
        FoundryError, match=r"checkpoint: no chat template; put a ChatML .*chat_template\.jinja"
    ):
        alignment.tokenizer_to_train(settings, None)


def test_evaluation_without_held_out_samples_is_refused(tiny_checkpoint, samples, tmp_path):
    from modeling_foundry.alignment import pipeline as alignment

    settings = alignment.AlignmentSettings(str(tiny_checkpoint), str(samples / "sft.jsonl"))
    arguments = alignment.SFTArguments(
        str(tmp_path / "run"), use_cpu=True, bf16=False, max_steps=1, eval_strategy="steps", eval_steps=1
    )
    with pytest.raises(FoundryError, match="eval_file: missing; eval_strategy: steps needs"):
        alignment.sft(settings, arguments)


def test_a_recipe_of_today_warns_of_no_other_name():
    code = (
        "from modeling_foundry.alignment.pipeline import SFTArguments\n"
        "SFTArguments('x', use_cpu=True, bf16=False, report_to='none', gradient_checkpointing=False)\n"
    )
    done = warm_start.run([sys.executable, "-c", code])
    assert (done.returncode, "deprecated" in done.stderr) == (0, False), done.stderr

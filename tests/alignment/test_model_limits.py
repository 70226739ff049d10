"""Positions, rows and tokens of a checkpoint are checked before its weights are loaded."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import AutoConfig, GPT2Config, LlamaConfig

from modeling_foundry.alignment import model_limits
from modeling_foundry.alignment import pipeline as alignment
from modeling_foundry.alignment.model_limits import (
    check_model_limits,
    check_rows_fit,
    num_positions,
)
from modeling_foundry.settings import FoundryError
from tests.training.test_options import arguments_of


@pytest.fixture
def checkpoint(tiny_checkpoint, tmp_path):
    """A copy whose config.json can be changed; its weights are never read."""

    def make(**changes):
        folder = tmp_path / "checkpoint"
        shutil.copytree(tiny_checkpoint, folder, dirs_exist_ok=True)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
        return str(folder)

    return make


@pytest.mark.parametrize(
    ("config", "positions"),
    [
        (LlamaConfig(max_position_embeddings=64), 64),
        (GPT2Config(n_positions=32), 32),
        (
            LlamaConfig(
                max_position_embeddings=64,
                rope_parameters={"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4},
            ),
            256,
        ),
        (
            LlamaConfig(
                max_position_embeddings=256,
                rope_parameters={
                    "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 1e4,
                },
            ),
            256,
        ),
        (AutoConfig.for_model("bloom"), None),
    ],
)  # fmt: skip
def test_positions_are_those_the_model_was_made_for(config, positions):
    assert num_positions(config) == positions


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize("changes", [{}, {"position_encoding": "learned", "rope_parameters": None}])
def test_a_default_length_is_lowered_to_the_positions(stage, changes, checkpoint, tmp_path, capsys):
    arguments = arguments_of(stage, tmp_path, max_length=1024)  # the default
    limits = check_model_limits(checkpoint(max_position_embeddings=64, **changes), arguments)
    assert limits == {"max_length": 64}
    assert arguments.max_length == 1024, "the plan has the length, what was parsed stays"
    assert "max_length: 64, the positions of " in capsys.readouterr().out
    assert check_model_limits(checkpoint(max_position_embeddings=4096, **changes), arguments) == {}


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("changes", "more"),
    [({}, "rope_parameters in its config.json"), ({"position_encoding": "learned"}, "give at most 64$")],
)
def test_a_length_that_is_given_is_refused_beyond_the_positions(stage, changes, more, checkpoint, tmp_path):
    arguments = arguments_of(stage, tmp_path, max_length=65)
    if changes:
        changes = {**changes, "rope_parameters": None}
    with pytest.raises(FoundryError, match=f"^max_length: 65 is more than the 64 positions of .*{more}"):
        check_model_limits(checkpoint(max_position_embeddings=64, **changes), arguments)


def test_scaled_angles_are_asked_for_and_go_further(checkpoint, tmp_path):
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e6}
    arguments = arguments_of("sft", tmp_path, max_length=128)
    assert check_model_limits(checkpoint(max_position_embeddings=64, rope_parameters=rope), arguments) == {}


def test_padding_needs_positions_in_a_table_too(checkpoint, tmp_path):
    table = {"position_encoding": "learned", "rope_parameters": None, "max_position_embeddings": 64}
    arguments = arguments_of("sft", tmp_path, max_length=60, pad_to_multiple_of=48)
    with pytest.raises(
        FoundryError, match=r"^pad_to_multiple_of: 48 pads rows of 60 beyond the 64 positions"
    ):
        check_model_limits(checkpoint(**table), arguments)


@pytest.mark.parametrize(
    "row",
    [
        {"input_ids": [1] * 65},
        {"prompt_ids": [1] * 60, "chosen_ids": [1] * 5, "rejected_ids": [1] * 2},
    ],
)
def test_rows_that_nothing_cuts_need_positions_too(row):
    config = SimpleNamespace(get_text_config=lambda: LlamaConfig(max_position_embeddings=64))
    trainer = SimpleNamespace(
        model=SimpleNamespace(config=config), args=SimpleNamespace(max_length=None), train_dataset=[row],
        eval_dataset=None,
    )  # fmt: skip
    with pytest.raises(
        FoundryError, match="^max_length: null leaves a row of 65 tokens, more than the 64 pos"
    ):
        check_rows_fit("base", trainer)
    trainer.args.max_length = 64
    check_rows_fit("base", trainer)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"vocab_size": 100}, r"checkpoint: its tokenizer has ids up to \d+, its embedding 100 rows"),
        ({"eos_token_id": 384}, r"config.json: eos_token_id: 384 is no row of its embedding \(0 to 383\)"),
        ({"eos_token_id": [0, 400]}, r"config.json: eos_token_id: 400 is no row"),
        ({"pad_token_id": -1}, r"config.json: pad_token_id: -1 is no row"),
    ],
)
def test_ids_without_a_row_are_refused(changes, line, checkpoint, tmp_path):
    with pytest.raises(FoundryError, match=line):
        check_model_limits(checkpoint(model_type="llama", **changes), arguments_of("sft", tmp_path))


def test_a_configuration_that_refuses_itself_is_one_line(checkpoint, tmp_path):
    with pytest.raises(
        FoundryError, match=r"config.json: cannot be read .*eos_token_id=384 is outside"
    ) as error:
        check_model_limits(checkpoint(eos_token_id=384), arguments_of("sft", tmp_path))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("stage", "options", "line"),
    [
        ("sft", {"pad_token": "PAD"}, r"^pad_token: 'PAD' is no token of .*; it has <\|"),
        ("dpo", {"pad_token": "PAD"}, r"^pad_token: 'PAD' is no token of "),
        (
            "sft",
            {"eos_token": "<|imend|>"},
            r"^eos_token: '<\|imend\|>' is no token of .*; it has <\|im_end\|>",
        ),
    ],
)
def test_a_token_that_is_none_of_the_checkpoint(stage, options, line, checkpoint, tmp_path):
    with pytest.raises(FoundryError, match=line):
        check_model_limits(checkpoint(), arguments_of(stage, tmp_path, **options))


@pytest.mark.parametrize("stage", ["sft", "dpo"])
@pytest.mark.parametrize(
    ("content", "line"),
    [
        ('{"temperature": 0.6}', "`temperature`: `do_sample` is not set"),  # as Llama 2 was published
        ('{"top_p": 0.9, "do_sample": false}', "`top_p`: `do_sample` is not set"),
        ('{"num_beams": 1, "early_stopping": true}', "early_stopping"),
        ('{"max_new_tokens": 0}', "`max_new_tokens` must be greater than 0"),
        ("[]", "not a JSON object"),
        ('{"top_p": ', "not JSON"),
    ],
)
def test_generation_settings_that_could_not_be_saved(stage, content, line, checkpoint, tmp_path):
    """transformers reads them with a warning and refuses them after the last step, when the model is written."""
    folder = checkpoint()
    (Path(folder) / "generation_config.json").write_text(content)
    with pytest.raises(FoundryError, match=f"^{folder}/generation_config.json: .*{line}"):
        check_model_limits(folder, arguments_of(stage, tmp_path))


@pytest.mark.parametrize(
    "content", ['{"temperature": 0.6, "do_sample": true}', '{"eos_token_id": [0, 2]}', "{}"]
)
def test_generation_settings_that_can_be_saved(content, checkpoint, tmp_path):
    folder = checkpoint()
    (Path(folder) / "generation_config.json").write_text(content)
    check_model_limits(folder, arguments_of("sft", tmp_path))


@pytest.mark.parametrize("stage", ["sft", "dpo"])
def test_all_this_is_said_before_weights_are_loaded(stage, checkpoint, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(alignment, "load_for_training", lambda *_, **__: pytest.fail("loaded"))
    settings = alignment.AlignmentSettings(
        model=checkpoint(vocab_size=100), train_file=str(samples / f"{stage}.jsonl")
    )
    with pytest.raises(FoundryError, match="its embedding 100 rows"):
        getattr(alignment, stage)(settings, arguments_of(stage, tmp_path / "run"))


def test_a_batch_that_would_be_dropped_is_refused():
    trainer = SimpleNamespace(
        train_dataset=[0] * 5,
        args=SimpleNamespace(train_batch_size=4, world_size=2, dataloader_drop_last=True),
    )
    line = (
        r"^dataloader_drop_last: rows.jsonl gives 5 rows, less than one batch of 8, so none would be learned"
    )
    with pytest.raises(FoundryError, match=line):
        model_limits.check_there_are_steps(trainer, "rows.jsonl")
    trainer.args.dataloader_drop_last = False
    model_limits.check_there_are_steps(trainer, "rows.jsonl")

"""A finished warmup_stable_decay run made longer is the long run from the start, bit for bit."""

import json

import pytest
import torch
from safetensors.torch import load_file

from modeling_foundry.pretraining.model_settings import ModelSettings
from modeling_foundry.pretraining.pipeline import PretrainArguments, PretrainDataSettings, pretrain
from modeling_foundry.settings import FoundryError, parse
from modeling_foundry.training.log.log_file import read_log
from tests.conftest import closed_files
from tests.pretraining.test_pretraining import arguments

# A step is 4 x 32 = 128 tokens.
WSD = [
    "--lr_scheduler_type=warmup_stable_decay", "--lr_scheduler_kwargs={decay_type: 1-sqrt}", "--warmup_steps=0",
    "--warmup_tokens=256", "--decay_tokens=512", "--eval_strategy=no", "--keep_checkpoints=1", "--max_steps=-1",
    "--attention_dropout=0.1",
]  # fmt: skip


def train(data_dir, folder, *more):
    words = [
        word for word in arguments("", folder, *WSD) if not word.startswith(("--text_file", "--warmup_steps"))
    ]
    words += [f"--data_dir={data_dir}", "--warmup_steps=0", *more]
    pretrain(*parse(ModelSettings, PretrainDataSettings, PretrainArguments, argv=words))
    lines = [line for line in read_log(folder / "pretrain") if "loss" in line]
    return [(line["step"], line["loss"], line["learning_rate"]) for line in lines]


@pytest.mark.slow
def test_a_longer_run_from_a_finished_one_is_the_longer_run(small_data, tmp_path):
    """12 steps with the last 4 decaying; then 20 from its step 8, against 20 in one go."""
    short = train(small_data, tmp_path / "short", "--max_tokens=1536", "--save_steps=5")
    run = tmp_path / "short/pretrain"
    assert sorted(path.name for path in run.glob("checkpoint-*")) == ["checkpoint-12", "checkpoint-8"]
    next(run.glob("checkpoint-8/model.safetensors")).chmod(0o600)  # as a release before this one left it
    before = {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))}

    whole = train(small_data, tmp_path / "whole", "--max_tokens=2560", "--save_steps=50")
    longer = train(
        small_data, tmp_path / "longer", "--max_tokens=2560", "--save_steps=50", f"--extend_run={run}"
    )
    assert longer == whole
    assert not closed_files(tmp_path / "longer")
    assert longer[:8] == short[:8]
    assert [rate for *_, rate in longer[2:16]] == [0.02] * 14  # Muon's
    ours, theirs = (
        load_file(tmp_path / name / "pretrain/model/model.safetensors") for name in ("longer", "whole")
    )
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert {path: path.stat().st_mtime_ns for path in sorted(run.rglob("*"))} == before
    record = json.loads((tmp_path / "longer/pretrain/run.json").read_text())
    assert record["settings"]["training"]["extend_run"] == str(run)

    again = train(
        small_data, tmp_path / "longer", "--max_tokens=2560", "--save_steps=50", f"--extend_run={run}"
    )
    assert again == longer, "it is finished, and stays as it is"

    for more, message in (
        (["--max_tokens=2560", "--seed=5"], r"was trained with other settings \(seed: 1337 -> 5"),
        (["--max_tokens=900"], "holds no whole checkpoint up to step 4"),
    ):
        with pytest.raises(FoundryError, match=message):
            train(small_data, tmp_path / "refused", *more, "--save_steps=50", f"--extend_run={run}")


def test_what_is_no_such_run_is_refused(small_data, tmp_path):
    with pytest.raises(FoundryError, match="extend_run: .*nowhere holds no run of ours"):
        train(small_data, tmp_path, "--max_tokens=2560", f"--extend_run={tmp_path}/nowhere")

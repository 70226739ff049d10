"""replay shows what a step read: the very tokens, their documents and the loss the run logged."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.data.tokens.corpus import CorpusSplit, ShardEntry
from modeling_foundry.data.tokens.shards import write_shard
from modeling_foundry.pretraining.commands import ReplaySettings
from modeling_foundry.pretraining.replay import RunOnDisk, parts_of, replay
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.log.log_file import read_log
from tests.conftest import REPOSITORY, SOURCE_TEXT
from tests.training.test_update_guard import SIZES


@given(st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), min_size=1, max_size=4), st.data())
def test_the_parts_are_the_documents_of_the_tokens(tmp_path_factory, shards, data):
    """Document d of shard s holds the id 10 s + d + 1 alone, and the end of document, 0."""
    folder, entries = tmp_path_factory.mktemp("x"), []
    for number, lengths in enumerate(shards):
        documents = [[10 * number + place + 1] * length for place, length in enumerate(lengths)]
        header = write_shard(folder / f"{number}.ds", documents, 300, eos_token_id=0, tokenizer_sha256="x")
        entries.append(
            ShardEntry(f"{number}.ds", header.num_tokens, header.num_documents, header.tokens_sha256)
        )
    split = CorpusSplit(folder, "train", entries)
    start = data.draw(st.integers(0, split.num_tokens - 1))
    stop = data.draw(st.integers(start + 1, split.num_tokens))
    parts = list(parts_of(split, start, stop))
    read = np.concatenate([part.shard.read(part.start, part.stop) for part in parts])
    assert read.tolist() == split.read(start, stop).tolist()
    for part in parts:
        ids = set(part.shard.read(part.start, part.stop).tolist())
        assert ids <= {0, 10 * int(part.shard.path.stem) + part.document + 1}
        assert str(part.shard.path) in part.words()


@pytest.mark.slow
def test_the_losses_of_a_replayed_step_are_those_of_the_log(tmp_path, launch, capsys):
    text = tmp_path / "input.txt"
    text.write_text(SOURCE_TEXT)
    run = tmp_path / "run"
    launch(
        "pretrain", "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"), f"--text_file={text}",
        f"--output_dir={run}", "--per_device_train_batch_size=2", "--gradient_accumulation_steps=2",
        "--eval_strategy=no", "--logging_steps=1", "--save_steps=2", "--max_steps=3", *SIZES, ranks=2,
    )  # fmt: skip
    replay(ReplaySettings(str(run), step=3, checkpoint=str(run / "checkpoint-2"), max_characters=0))
    printed = capsys.readouterr().out
    assert "step 3: samples 16 to 23" in printed
    assert re.findall(r"^sample (\d+), ", printed, re.MULTILINE) == [str(index) for index in range(16, 24)]
    losses = [float(loss) for loss in re.findall(r"^sample \d+, loss ([\d.]+)$", printed, re.MULTILINE)]
    logged = {line["step"]: line["loss"] for line in read_log(run) if "loss" in line}
    assert np.mean(losses) == pytest.approx(logged[3], abs=1e-4)
    assert f"{run}/data/train.ds, document 0, tokens " in printed
    shown = printed.split("tokens ")[1].split("\n", 1)[1].split("\n  ")[0][:20]
    assert shown in text.read_text()

    with pytest.raises(FoundryError, match="step: .* has 3 steps, found 4"):
        replay(ReplaySettings(str(run), step=4))
    with pytest.raises(FoundryError, match="no model here"):
        replay(ReplaySettings(str(run), step=1, checkpoint=str(tmp_path)))
    record = json.loads((run / "run.json").read_text())
    record["inputs"]["data"] = "other"
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(FoundryError, match="the data has changed since the run"):
        replay(ReplaySettings(str(run), step=1))


def test_what_is_no_run_is_named(tmp_path):
    with pytest.raises(FoundryError, match=r"run\.json: missing; run_dir: expected a run folder"):
        RunOnDisk.open(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(FoundryError, match="not the record of a pretraining run"):
        RunOnDisk.open(tmp_path)
    with pytest.raises(FoundryError, match="step: expected at least 1, found 0"):
        ReplaySettings(str(tmp_path), step=0)

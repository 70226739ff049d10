"""A run folder that is not as the run left it: named and refused, or gone on from rightly, never silently."""

import json
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from modeling_foundry.data.sequences.sample_order import SampleOrder, write_order
from modeling_foundry.data.sequences.training_data import open_training_data
from modeling_foundry.pretraining.model_settings import ModelSettings
from modeling_foundry.pretraining.pipeline import (
    PretrainArguments,
    PretrainDataSettings,
    PretrainTrainer,
    pretrain,
)
from modeling_foundry.pretraining.replay import RunOnDisk
from modeling_foundry.settings import FoundryError
from modeling_foundry.training.checkpoints.checkpoints import newest_whole_checkpoint
from modeling_foundry.training.log.log_file import read_log
from tests.conftest import SOURCE_TEXT, closed_files
from tests.training.small_run import CUT, STEPS, cut, prepare_data, train

CHECKPOINT = f"checkpoint-{CUT}"


@pytest.fixture(scope="module")
def whole(small_data, tmp_path_factory):
    run = tmp_path_factory.mktemp("whole") / "run"
    train(run, small_data)
    return run


def test_everybody_may_read_what_a_run_leaves(whole):
    assert not closed_files(whole)


@pytest.fixture
def run(whole, tmp_path, small_data):
    """A copy of a run that was cut short."""
    return cut(whole, tmp_path / "run")


@pytest.fixture
def again(small_data):
    """Go on with a copy as the run itself would: output_dir is neutral."""
    return lambda folder, **changed: train(folder, small_data, **changed)


def edit(path, **changed):
    content = json.loads(path.read_text()) | changed
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))


def same_weights(ours, theirs):
    ours, theirs = (load_file(run / "model/model.safetensors") for run in (ours, theirs))
    return all(torch.equal(ours[name], theirs[name]) for name in theirs)


class Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["PAYLOAD_WAS_RUN"],)


@pytest.mark.slow
def test_no_pickle_of_any_known_name_is_read(run, whole, again, tmp_path, monkeypatch):
    """Trainer reads the random state of rng_state.pth wherever it finds one."""
    monkeypatch.setenv("PAYLOAD_WAS_RUN", str(tmp_path / "ran"))
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail(f"torch.load of {args[0]}"))
    names = (
        "rng_state.pth rng_state_0.pth optimizer.pt optimizer.bin scheduler.pt scaler.pt training_args.bin"
    )
    for name in (*names.split(), "pytorch_model.bin", "pytorch_model_fsdp.bin", "adapter_model.bin"):
        (run / CHECKPOINT / name).write_bytes(pickle.dumps(Payload()))
    again(run)
    assert not (tmp_path / "ran").exists()
    assert same_weights(run, whole)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"global_step": 3}, "is of step 3"),
        ({"global_step": ...}, "is of step None"),
        ({"world_size": ...}, "world_size None"),
        ({"world_size": 2}, "1 random states, but world_size 2"),
        ({"files": {}}, "holds config.json, which its manifest.json does not name"),
        ({"files": {"model.safetensors": 3}}, "has an unreadable manifest.json"),
        ({"files": {"model.safetensors": {}}}, "has an unreadable manifest.json"),
    ],
)
def test_a_seal_with_other_counters_is_not_believed(run, changed, words):
    edit(run / CHECKPOINT / "manifest.json", **changed)
    with pytest.raises(FoundryError, match=words):
        newest_whole_checkpoint(run)
    assert (run / CHECKPOINT).is_dir(), "the only one is left for whoever restores it"


def test_a_checkpoint_under_another_step_is_not_believed(run):
    (run / CHECKPOINT).rename(run / "checkpoint-5")
    with pytest.raises(FoundryError, match=f"checkpoint-5 is of step {CUT}"):
        newest_whole_checkpoint(run)


def test_weights_that_were_added_later_are_not_read(run):
    shutil.copy(
        run / CHECKPOINT / "optimizer-00001.safetensors", run / CHECKPOINT / "model-00001.safetensors"
    )
    with pytest.raises(FoundryError, match=r"holds model-00001\.safetensors"):
        newest_whole_checkpoint(run)


def test_other_data_under_a_checkpoint_is_refused_even_without_its_record(run, again, tmp_path):
    other = prepare_data(tmp_path / "other", SOURCE_TEXT[::-1])
    with pytest.raises(FoundryError, match="other settings .*data"):
        train(run, other)
    edit(run / "run.json", inputs={"data": open_training_data(other).fingerprint})
    record = json.loads((run / "run.json").read_text())
    record["settings"]["data"]["data_dir"] = str(other)
    (run / "run.json").write_text(json.dumps(record))
    with pytest.raises(FoundryError, match=f"{CHECKPOINT}: was trained on other inputs"):
        train(run, other)
    (run / "run.json").unlink()
    with pytest.raises(FoundryError, match=r"run\.json: missing"):
        again(run, learning_rate=1.0)


def test_data_that_has_moved_is_the_same_data(run, whole, again, small_data, tmp_path, monkeypatch):
    shutil.copytree(small_data, tmp_path / "mount/data")
    train(run, tmp_path / "mount/data")
    assert same_weights(run, whole)
    monkeypatch.chdir(tmp_path)
    train(run, Path("mount/data"))  # complete, and no other run
    with pytest.raises(FoundryError, match=r"other settings \(learning_rate: "):
        train(run, Path("mount/data"), learning_rate=1.0)


@pytest.mark.slow
def test_a_step_is_replayed_from_where_the_data_is_now(small_data, tmp_path):
    shutil.copytree(small_data, tmp_path / "before")
    train(tmp_path / "whole", tmp_path / "before")
    run = cut(tmp_path / "whole", tmp_path / "run")
    (tmp_path / "before").rename(tmp_path / "now")
    with pytest.raises(FoundryError, match="before: no prepared data here"):
        RunOnDisk.open(run)
    train(run, tmp_path / "now")
    assert list(RunOnDisk.open(run).data.train) == [str(tmp_path / "now")]


def test_a_text_that_has_moved_is_the_same_text(tmp_path):
    def start(text):
        model = ModelSettings(
            hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
            num_key_value_heads=1, head_dim=16, tie_word_embeddings=True,
        )  # fmt: skip
        data = PretrainDataSettings(text_file=str(text), text_file_vocab_size=320, sequence_length=32)
        arguments = PretrainArguments(str(tmp_path / "run"), max_steps=2, use_cpu=True, report_to="none")
        return pretrain(model, data, arguments)

    (tmp_path / "a.txt").write_text(SOURCE_TEXT)
    start(tmp_path / "a.txt")
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    shutil.rmtree(tmp_path / "run/model")
    (tmp_path / "run/complete.json").unlink()
    assert any(start(tmp_path / "b.txt").glob("*.safetensors"))
    (tmp_path / "c.txt").write_text(SOURCE_TEXT[::-1])
    with pytest.raises(FoundryError, match="text_file"):
        start(tmp_path / "c.txt")


def test_the_order_of_samples_must_be_the_checkpoints(run, again):
    (run / "sample_order.json").unlink()
    with pytest.raises(FoundryError, match=r"sample_order\.json: missing"):
        again(run)
    write_order(run, SampleOrder(4).without(2, 1))
    with pytest.raises(FoundryError, match=f"not the order of samples that {CHECKPOINT}"):
        again(run)
    (run / "sample_order.json").write_text('{"sequences_per_step": 0, "left_out": []}')
    with pytest.raises(FoundryError, match="not a sample order"):
        again(run)


@pytest.mark.parametrize("order", [{"a": 1}, [1], 3, {"sequences_per_step": 0, "left_out": []}, None])
def test_an_order_in_the_seal_that_is_none_is_named(run, again, order):
    edit(run / CHECKPOINT / "manifest.json", sample_order=order)
    with pytest.raises(FoundryError, match=rf"{CHECKPOINT}/manifest\.json: not a sample order"):
        again(run)


@pytest.mark.parametrize("name", ["run.json", "sample_order.json", "log.jsonl"])
def test_a_folder_in_place_of_a_file_is_named(run, again, name):
    (run / name).unlink()
    (run / name).mkdir()
    with pytest.raises(FoundryError, match=f"{name}: "):
        again(run)


def test_a_log_that_is_gone_is_told(run, again, caplog):
    (run / "log.jsonl").unlink()
    again(run)
    assert f"log.jsonl: its lines up to step {CUT} are gone; it begins anew there" in caplog.text


def test_a_run_with_samples_left_out_takes_no_step_too_many(run, again):
    """Killed between its last checkpoint and its end, it once trained a step more: its dataset is longer."""
    write_order(run, SampleOrder(4).without(CUT + 1, 1))
    again(run)
    (run / "complete.json").unlink()
    shutil.rmtree(run / "model")
    again(run)
    assert json.loads((run / "complete.json").read_text())["steps"] == STEPS
    assert not (run / f"checkpoint-{STEPS + 1}").exists()


def test_a_checkpoint_that_was_moved_and_linked_ends_no_run(run, again, whole, tmp_path):
    (run / CHECKPOINT).rename(tmp_path / "moved")
    (run / CHECKPOINT).symlink_to(tmp_path / "moved")
    again(run, keep_checkpoints=1)
    assert [path.name for path in run.glob("checkpoint-*")] == [f"checkpoint-{STEPS}"]
    assert (tmp_path / "moved/model.safetensors").is_file(), "only the link is removed"
    assert same_weights(run, whole)


@pytest.mark.slow
def test_tokens_are_counted_in_the_steps_of_the_run(small_data, tmp_path):
    """Half the micro-batch, as with half the ranks: the accumulation follows before max_tokens becomes steps."""
    train(tmp_path / "whole", small_data, max_tokens=STEPS * 128, max_steps=-1)
    run = cut(tmp_path / "whole", tmp_path / "run")
    train(run, small_data, max_tokens=STEPS * 128, max_steps=-1, per_device_train_batch_size=2)
    assert json.loads((run / "complete.json").read_text())["steps"] == STEPS
    with pytest.raises(FoundryError, match="gradient_accumulation_steps: 1 -> 2"):
        train(run, small_data, max_tokens=STEPS * 128, max_steps=-1, gradient_accumulation_steps=2)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [{}, {"global_batch_tokens": 128}])
def test_an_extension_reads_steps_of_the_size_that_the_run_had(batch, small_data, tmp_path):
    wsd = {"lr_scheduler_type": "warmup_stable_decay", "decay_tokens": 256, "max_steps": -1, **batch}
    train(tmp_path / "short", small_data, max_tokens=768, **wsd)
    train(
        tmp_path / "longer", small_data, max_tokens=1280, per_device_train_batch_size=2,
        extend_run=str(tmp_path / "short"), **wsd,
    )  # fmt: skip
    assert json.loads((tmp_path / "longer/complete.json").read_text())["steps"] == 10


def test_a_finished_run_without_its_model_is_not_called_complete(whole, again, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    shutil.rmtree(run / "model")
    with pytest.raises(FoundryError, match="run/model: no model here, though complete.json"):
        again(run)
    (run / "complete.json").unlink()
    again(run)
    assert same_weights(run, whole)


def test_intervals_given_at_a_restart_hold(run, again):
    """Trainer would keep those that stand in the checkpoint."""
    again(run, save_steps=1, logging_steps=2, keep_checkpoints=9)
    assert (run / f"checkpoint-{STEPS - 1}").is_dir()
    assert [line["step"] for line in read_log(run) if "loss" in line] == [1, 2, 3, 4, 6]


def test_a_token_given_at_one_start_only_is_no_other_setting(run, again, whole):
    again(run, hub_token="hf_canary0123456789abcdefghijklmnop")
    assert same_weights(run, whole)


def test_the_best_checkpoint_is_kept_where_the_run_ends_with_it(small_data, tmp_path, monkeypatch):
    """Trainer would end with the last one where the best was removed, with no more than a warning."""
    best = iter((1.0, 2.0, 3.0))
    evaluate = PretrainTrainer.evaluation_loop

    def judged(self, *args, **kwargs):
        output = evaluate(self, *args, **kwargs)
        output.metrics["eval_loss"] = next(best)
        return output

    monkeypatch.setattr(PretrainTrainer, "evaluation_loop", judged)
    run = tmp_path / "run"
    train(
        run, small_data, load_best_model_at_end=True, eval_strategy="steps", eval_steps=2, keep_checkpoints=1
    )
    ours, best = (load_file(run / name / "model.safetensors") for name in ("model", "checkpoint-2"))
    assert all(torch.equal(ours[name], best[name]) for name in best)


def test_a_line_over_steps_before_and_behind_a_checkpoint_is_the_unbroken_runs(small_data, tmp_path):
    """The checkpoint of a signal lies anywhere between two lines."""
    given = {"logging_steps": 5, "z_loss_weight": 1e-3, "max_grad_norm": 0.5}
    train(tmp_path / "whole", small_data, **given)
    run = cut(tmp_path / "whole", tmp_path / "run")
    train(run, small_data, **given)
    names = (
        "step",
        "loss",
        "z_loss",
        "num_steps",
        "grad_norm_mean",
        "grad_norm_max",
        "clipped_share",
        "tokens",
    )
    ours, theirs = (
        [{name: line[name] for name in names} for line in read_log(folder) if "loss" in line]
        for folder in (run, tmp_path / "whole")
    )
    assert [line["step"] for line in theirs] == [5]
    assert ours == theirs


@pytest.mark.parametrize("content", ["[]", "3", "{}", '{"settings": null, "inputs": {}}', '{"settings": {}}'])
def test_a_record_that_is_none_is_named(run, again, content):
    (run / "run.json").write_text(content)
    with pytest.raises(FoundryError, match=r"run\.json: cannot be read, .* or no record of a run"):
        again(run)


@pytest.mark.parametrize("field", ["tokens", "training_seconds"])
def test_a_line_of_the_log_with_words_for_a_number_is_told_and_left_out(run, whole, again, field, caplog):
    with open(run / "log.jsonl", "a") as log:
        log.write(json.dumps({"event": "train", "step": 2, "loss": 1.0, field: "many"}) + "\n{}\n")
    again(run)
    assert "not a line of a run log, left out" in caplog.text
    assert same_weights(run, whole)

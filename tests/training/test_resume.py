"""Nothing lost: a run cut in two ends where an unbroken one ends, on every back end and number of ranks."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.checkpoints.checkpoints import (
    DurableCheckpoints,
    newest_whole_checkpoint,
    read_seal,
    write_seal,
)
from modeling_foundry.training.checkpoints.stored_optimizer import StoredState
from modeling_foundry.training.log.log_file import read_log
from tests import warm_start
from tests.conftest import REPOSITORY, SOURCE_TEXT

SECRET = "hf_canary0123456789abcdefghijklmnop"
STEPS, CUT = 6, 3
ENGINES = ("ddp", "zero1")  # FSDP2: test_sharding.py
PICKLE_MAGIC = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")


def settings(folder: Path, *more: str) -> list[str]:
    return [
        "--config", str(REPOSITORY / "recipes/shakespeare/pretrain.yaml"), f"--data_dir={folder.parent}/data",
        f"--output_dir={folder}", "--logging_steps=1", "--hidden_size=32", "--intermediate_size=64",
        "--num_hidden_layers=2", "--num_attention_heads=2", "--num_key_value_heads=1", "--head_dim=16",
        "--sequence_length=32", "--optimizer=adamw", f"--max_steps={STEPS}", f"--save_steps={CUT}",
        "--eval_strategy=no", "--seed=5", f"--hub_token={SECRET}", *more,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """engine -> run folder of a whole run on two ranks, with dropout; made when first asked for."""
    from modeling_foundry.data.preparation.pipeline import prepare
    from modeling_foundry.data.preparation.settings import DataSettings
    from tests.training.conftest import launch_command, launch_environment

    parent = tmp_path_factory.mktemp("unbroken")
    text = parent / "input.txt"
    text.write_text(SOURCE_TEXT)
    prepare(DataSettings(str(parent / "data"), text_file=str(text), vocab_size=320))
    done: dict[str, Path] = {}

    def run(engine: str, dropout: float = 0.1) -> Path:
        if engine == "zero1":
            pytest.importorskip("deepspeed", reason="DeepSpeed is not installed")
        name = f"{engine}{dropout}"
        if name not in done:
            words = settings(
                parent / name, "--per_device_train_batch_size=2", f"--attention_dropout={dropout}"
            )
            command = launch_command(REPOSITORY / "recipes/pretrain.py", *words, ranks=2, engine=engine)
            environment = launch_environment(HF_TOKEN=SECRET, WANDB_API_KEY=SECRET)
            finished = warm_start.run(command, cwd=REPOSITORY, env=environment)
            assert finished.returncode == 0, finished.stderr[-3000:]
            done[name] = parent / name
        return done[name]

    return run


def cut(whole: Path, folder: Path) -> Path:
    """A copy of a run as it was just after its first checkpoint."""
    target = whole.parent / folder.name
    shutil.copytree(whole, target)
    for name in (f"checkpoint-{STEPS}", "model"):
        shutil.rmtree(target / name)
    (target / "complete.json").unlink()
    return target


def state_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint: weights, optimizer, random generators."""
    return {
        f"{path.name}:{name}": tensor
        for path in sorted(checkpoint.glob("*.safetensors"))
        for name, tensor in load_file(path).items()
    }


def losses(run: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in read_log(run) if line.get("loss") is not None]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
def test_interrupted_and_resumed_is_uninterrupted_bit_for_bit(unbroken, engine, tmp_path, launch):
    """Two ranks, dropout on: losses, weights, moments, random generators and schedule."""
    whole = unbroken(engine)
    broken = cut(whole, tmp_path)
    words = settings(broken, "--per_device_train_batch_size=2", "--attention_dropout=0.1")
    resumed = launch("pretrain", *words, ranks=2, engine=engine)
    assert f"going on from checkpoint-{CUT}" in resumed.stdout
    assert losses(broken) == losses(whole)
    ours, theirs = (state_of(run / f"checkpoint-{STEPS}") for run in (broken, whole))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name], theirs[name])] == []
    assert {name.split(":")[0] for name in ours} == {
        "model.safetensors",
        "optimizer-00001.safetensors",
        "random_state-00000.safetensors",
        "random_state-00001.safetensors",
    }
    for name in ("scheduler.json", "optimizer.json"):
        ours, theirs = (
            json.loads((run / f"checkpoint-{STEPS}" / name).read_text()) for run in (broken, whole)
        )
        assert ours == theirs
    model, reference = (load_file(run / "model/model.safetensors") for run in (broken, whole))
    assert all(torch.equal(model[name], reference[name]) for name in reference)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("engine", "then", "ranks"),
    [("ddp", "ddp", 1), ("ddp", "ddp", 4), ("zero1", "zero1", 1), ("zero1", "zero1", 4), ("zero1", "ddp", 1)],
)
def test_other_ranks_read_the_same_samples(unbroken, engine, then, ranks, tmp_path, launch):
    """From two ranks to one and to four, and from ZeRO to DDP: the same steps, but for rounding."""
    whole = unbroken(engine, dropout=0.0)
    broken = cut(whole, tmp_path)
    micro_batch = 2 if ranks == 1 else 1
    words = settings(broken, f"--per_device_train_batch_size={micro_batch}", "--attention_dropout=0.0")
    resumed = launch("pretrain", *words, ranks=ranks, engine=then)
    assert f"going on from checkpoint-{CUT}" in resumed.stdout
    assert ("gradient_accumulation_steps is 2" in resumed.stdout) == (ranks == 1)
    assert [step for step, _ in losses(broken)] == list(range(1, STEPS + 1))
    for (_, ours), (_, theirs) in zip(losses(broken), losses(whole), strict=True):
        assert ours == pytest.approx(theirs, abs=2e-4)
    tokens = [[line["tokens"] for line in read_log(run) if "tokens" in line] for run in (broken, whole)]
    assert tokens[0] == tokens[1]
    orders = [read_seal(run / f"checkpoint-{STEPS}")["sample_order"] for run in (broken, whole)]
    assert orders[0] == orders[1] == {"sequences_per_step": 4, "left_out": []}
    assert read_seal(broken / f"checkpoint-{STEPS}")["world_size"] == ranks


@pytest.mark.slow
def test_ranks_that_cannot_share_a_step_are_told_what_fits(unbroken, tmp_path, launch):
    broken = cut(unbroken("ddp"), tmp_path)
    words = settings(broken, "--per_device_train_batch_size=3", "--attention_dropout=0.1")
    refused = launch("pretrain", *words, check=False)
    assert "per_device_train_batch_size" in refused.stderr
    assert (broken / f"checkpoint-{CUT}").is_dir()


@pytest.mark.slow
def test_a_run_writes_no_pickle_and_no_secret(unbroken):
    """HF_TOKEN, WANDB_API_KEY and --hub_token were given to the run; no byte of them is in any of its files."""
    for path in (path for path in unbroken("ddp").rglob("*") if path.is_file()):
        content = path.read_bytes()
        assert SECRET.encode() not in content, path
        assert not content.startswith(PICKLE_MAGIC), path
        assert path.suffix not in {".bin", ".pt", ".pth", ".pkl"}, path


@pytest.mark.slow
def test_every_checkpoint_loads_with_auto_classes(unbroken):
    for step in (CUT, STEPS):
        folder = unbroken("ddp") / f"checkpoint-{step}"
        model, loading = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
        assert not any(loading.values())
        assert model(input_ids=torch.tensor([[1, 2, 3]])).logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["removed", "altered"])
@pytest.mark.parametrize(
    "name",
    ["optimizer-00001.safetensors", "optimizer.json", "scheduler.json", "random_state-00001.safetensors",
     "model.safetensors", "trainer_state.json", "update_guard.json"],
)  # fmt: skip
def test_a_damaged_file_is_named_and_nothing_starts_afresh(unbroken, name, damage, tmp_path):
    """With an older whole checkpoint that one is taken; with none left the run does not begin."""
    broken = tmp_path / "run"
    shutil.copytree(unbroken("ddp"), broken)
    path = broken / f"checkpoint-{STEPS}" / name
    if damage == "removed":
        path.unlink()
    else:
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))
    shutil.copytree(broken, tmp_path / "alone")
    assert newest_whole_checkpoint(broken).name == f"checkpoint-{CUT}"
    assert (broken / f"torn-checkpoint-{STEPS}").is_dir()
    shutil.rmtree(tmp_path / "alone" / f"checkpoint-{CUT}")
    with pytest.raises(FoundryError, match=name):
        newest_whole_checkpoint(tmp_path / "alone")
    assert (tmp_path / "alone" / f"checkpoint-{STEPS}").is_dir()


def test_a_checkpoint_without_optimizer_state_is_refused_by_name(tmp_path):
    """As written with ``save_only_model``, or by an earlier release."""
    with pytest.raises(FoundryError, match=r"optimizer\.json: missing"):
        StoredState(tmp_path)
    (tmp_path / "optimizer.json").write_text("{}")
    with pytest.raises(FoundryError, match="not an index"):
        StoredState(tmp_path)


def test_a_full_disk_costs_no_earlier_checkpoint(tmp_path):
    """The older checkpoint goes only when the newer one is sealed."""
    from transformers import TrainerControl, TrainerState, TrainingArguments

    def disk_is_full(folder: Path) -> None:
        raise OSError(28, "No space left on device", str(folder / "optimizer-00001.safetensors"))

    for step in (1, 2):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(b"x")
    write_seal(tmp_path / "checkpoint-1", {"version": 2, "global_step": 1, "world_size": 1})
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    state = TrainerState(global_step=2, is_world_process_zero=True)
    with pytest.raises(OSError, match="No space left"):
        DurableCheckpoints(1, [SimpleNamespace(save=disk_is_full)]).on_save(
            arguments, state, TrainerControl()
        )
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-1"
    assert (tmp_path / "torn-checkpoint-2").is_dir()

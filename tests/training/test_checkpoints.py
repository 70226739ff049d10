"""A checkpoint is whole or it is not used."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.checkpoints.checkpoints import (
    DurableCheckpoints,
    fault,
    newest_whole_checkpoint,
    sealed_checkpoints,
    write_seal,
)

FILES = {"model.safetensors": b"weights" * 100, "optimizer.pt": b"state" * 50, "trainer_state.json": b"{}"}


def make_checkpoint(output_dir, step, sealed=True):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    if sealed:
        write_seal(folder, {"global_step": step, "world_size": 1})
    return folder


def test_the_newest_whole_one_is_taken_by_number_not_by_name(tmp_path):
    for step in (90, 100, 1000):
        make_checkpoint(tmp_path, step)
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-1000"
    assert [path.name for path in sealed_checkpoints(tmp_path)] == [
        "checkpoint-1000",
        "checkpoint-100",
        "checkpoint-90",
    ]


def test_no_checkpoint_is_a_fresh_start(tmp_path):
    assert newest_whole_checkpoint(tmp_path) is None
    assert newest_whole_checkpoint(tmp_path / "absent") is None


@pytest.mark.parametrize("name", sorted(FILES))
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_one_is_set_aside_and_named(tmp_path, caplog, name, damage):
    make_checkpoint(tmp_path, 1)
    file = make_checkpoint(tmp_path, 2) / name
    content = bytearray(file.read_bytes())
    if damage == "missing":
        file.unlink()
    elif damage == "truncated":
        file.write_bytes(content[:-1])
    else:
        content[0] ^= 1
        file.write_bytes(content)
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-1"
    assert (tmp_path / "torn-checkpoint-2").is_dir()
    assert name in caplog.text


def test_a_save_that_was_cut_short_is_not_used(tmp_path, caplog):
    make_checkpoint(tmp_path, 5)
    make_checkpoint(tmp_path, 10, sealed=False)
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-5"
    assert "has no manifest.json" in caplog.text
    make_checkpoint(tmp_path, 10, sealed=False)  # and again: the name is taken
    assert newest_whole_checkpoint(tmp_path).name == "checkpoint-5"
    assert (tmp_path / "torn-checkpoint-10-2").is_dir()


@given(st.binary(max_size=200))
def test_any_seal_is_a_verdict_never_a_crash(tmp_path_factory, content):
    folder = make_checkpoint(tmp_path_factory.mktemp("x"), 1)
    (folder / "manifest.json").write_bytes(content)
    assert fault(folder) is not None


class State:
    is_world_process_zero = True

    def __init__(self, step):
        self.global_step = step


class Arguments:
    world_size, load_best_model_at_end = 1, False

    def __init__(self, output_dir):
        self.output_dir = str(output_dir)


def test_older_ones_go_only_after_the_new_one_is_sealed(tmp_path):
    callback = DurableCheckpoints(keep=2)
    for step in (1, 2, 3):
        make_checkpoint(tmp_path, step, sealed=False)
        callback.on_save(Arguments(tmp_path), State(step), None)
    assert [path.name for path in sealed_checkpoints(tmp_path)] == ["checkpoint-3", "checkpoint-2"]
    seal = json.loads((tmp_path / "checkpoint-3" / "manifest.json").read_text())
    assert seal["global_step"] == 3
    assert set(seal["files"]) == set(FILES)
    with pytest.raises(FoundryError, match="keep_checkpoints"):
        DurableCheckpoints(keep=0)

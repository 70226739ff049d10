"""What killed starts leave goes at the next start, in one line; what somebody else put there stays."""

import os
import shutil

import pytest

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.checkpoints.checkpoints import (
    newest_whole_checkpoint,
    remove_checkpoint,
    write_seal,
)
from modeling_foundry.training.checkpoints.cleanup import remove_left_overs, torn_checkpoints
from tests.training.small_run import CUT, cut, train


def make_checkpoint(output_dir, step, sealed=True):
    folder = output_dir / f"checkpoint-{step}"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    if sealed:
        write_seal(folder, {"version": 2, "global_step": step, "world_size": 1})
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_run_killed_again_and_again_keeps_one_torn_checkpoint(tmp_path):
    whole = make_checkpoint(tmp_path, 2)
    for number in range(1, 6):
        (make_checkpoint(tmp_path, 4, sealed=False) / "optimizer-00001.safetensors").write_bytes(
            b"x" * number
        )
        assert newest_whole_checkpoint(tmp_path) == whole
        said = remove_left_overs(tmp_path, whole)
        assert len(torn_checkpoints(tmp_path)) == 1
        (torn,) = torn_checkpoints(tmp_path)
        assert (torn / "optimizer-00001.safetensors").stat().st_size == number, "the newest one stays"
        assert bool(said) == (number > 1)
    assert said.startswith("removed what killed starts had left (torn-checkpoint-4")
    assert said.endswith(" stays for a look")
    assert f"; {7 + 4:,} bytes)" in said


def test_what_retention_had_removed_by_half_goes(tmp_path, monkeypatch):
    for step in (2, 4, 6):
        make_checkpoint(tmp_path, step)
    monkeypatch.setattr(shutil, "rmtree", lambda folder: None)  # killed after the seal
    remove_checkpoint(tmp_path / "checkpoint-2")
    monkeypatch.undo()
    assert remove_left_overs(tmp_path, None) == "", "nothing newer is known to be whole"
    assert "checkpoint-2;" in remove_left_overs(tmp_path, tmp_path / "checkpoint-6")
    assert names(tmp_path) == ["checkpoint-4", "checkpoint-6"]


def test_unfinished_files_go_and_those_of_others_stay(tmp_path):
    ours = [".run.json.ys_ype0d.tmp", ".complete.json.01234567.tmp", ".model.tmp", ".checkpoint-8.tmp"]
    theirs = ["notes.tmp", ".notes.tmp", ".run.json.tmp", "log.jsonl", "checkpoint-4", "torn-notes"]
    for name in ours + theirs:
        if "." in name.removesuffix(".tmp")[1:]:
            (tmp_path / name).touch()
        else:
            (tmp_path / name).mkdir()
            (tmp_path / name / "file").write_bytes(b"12345")
    said = remove_left_overs(tmp_path, None)
    assert "and 1 more; 10 bytes)" in said
    assert names(tmp_path) == sorted(theirs)
    assert remove_left_overs(tmp_path, None) == ""


def test_of_a_linked_checkpoint_only_the_link_goes(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    (tmp_path / "run").mkdir()
    shutil.move(make_checkpoint(tmp_path, 2), elsewhere)
    (tmp_path / "run/torn-checkpoint-2").symlink_to(elsewhere)
    os.utime(elsewhere, (0, 0))
    shutil.move(make_checkpoint(tmp_path, 4), tmp_path / "run/torn-checkpoint-4")
    assert "; 0 bytes); torn-checkpoint-4 stays" in remove_left_overs(tmp_path / "run", None)
    assert names(tmp_path / "run") == ["torn-checkpoint-4"]
    assert (elsewhere / "model.safetensors").is_file()


def test_what_cannot_be_removed_is_named_and_ends_nothing(tmp_path, monkeypatch, caplog):
    def denied(path):
        raise PermissionError(13, "Permission denied", str(path))

    (tmp_path / ".model.tmp").mkdir()
    monkeypatch.setattr(shutil, "rmtree", denied)
    assert remove_left_overs(tmp_path, None) == ""
    assert ".model.tmp: a left-over that cannot be removed (Permission denied)" in caplog.text


@pytest.fixture(scope="module")
def run(small_data, tmp_path_factory):
    parent = tmp_path_factory.mktemp("left")
    train(parent / "whole", small_data)
    run = cut(parent / "whole", parent / "run")
    for step in (CUT + 1, CUT + 2):
        (run / f"torn-checkpoint-{step}").mkdir()
        os.utime(run / f"torn-checkpoint-{step}", (step, step))
    (run / ".model.tmp").mkdir()
    return run


@pytest.mark.slow
def test_a_start_says_in_one_line_what_it_removed(run, small_data, capsys):
    before = names(run)
    with pytest.raises(FoundryError, match="other settings"):
        train(run, small_data, learning_rate=1.0)
    assert names(run) == sorted({*before, "run.lock"}), "who is refused removes nothing"
    train(run, small_data)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "killed starts" in line]
    assert line == (
        f"pretrain: removed what killed starts had left (torn-checkpoint-{CUT + 1}, .model.tmp; 0 bytes); "
        f"torn-checkpoint-{CUT + 2} stays for a look"
    )
    assert [path.name for path in run.glob("torn-*")] == [f"torn-checkpoint-{CUT + 2}"]

"""A lock that a killed build left goes before DeepSpeed would wait for it; one that is held stays."""

import os
import subprocess
import sys

import pytest

from modeling_foundry.alignment.pipeline import DPOArguments, SFTArguments
from modeling_foundry.pretraining.pipeline import PretrainArguments
from modeling_foundry.training.processes import deepspeed_build_locks as build_locks
from modeling_foundry.training.processes.deepspeed_build_locks import remove_stale_build_locks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells who has a file open")
HOLD = "import os, sys; os.open(sys.argv[1], os.O_CREAT | os.O_EXCL); print(flush=True); input()"


@pytest.fixture
def lock(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setattr(build_locks, "SECONDS_BETWEEN_LOOKS", 0.01)
    path = tmp_path / "deepspeed_shm_comm/lock"
    path.parent.mkdir()
    return path


@pytest.fixture
def holder(lock):
    """A live process that builds, as far as anybody can see."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process
        process.kill()


def test_the_lock_of_a_killed_build_is_removed_and_said(lock, holder, capsys):
    remove_stale_build_locks()
    assert lock.exists(), "a live process has it open"
    assert capsys.readouterr().err == ""
    holder.kill()
    holder.wait()
    remove_stale_build_locks()
    assert not lock.exists()
    said = capsys.readouterr().err.splitlines()
    assert said == [f"{lock}: removed; the process that was building there was killed"]


def test_where_torch_builds_without_being_told(lock, tmp_path, monkeypatch):
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    left = tmp_path / "torch_extensions/py311_cpu/deepspeed_shm_comm/lock"
    left.parent.mkdir(parents=True)
    left.touch()
    remove_stale_build_locks()
    assert not left.exists()


def test_without_deepspeed_nothing_is_touched(lock, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "false")
    lock.touch()
    remove_stale_build_locks()
    assert lock.exists()
    remove_stale_build_locks({"zero_optimization": {"stage": 1}})
    assert not lock.exists()


def test_a_lock_that_is_made_anew_meanwhile_is_left(lock, monkeypatch):
    """Another rank found the stale one first and builds by now."""
    lock.touch()

    def others_turn(seconds):
        (lock.parent / "other").touch()  # so that the number of the old file is not given again
        os.replace(lock.parent / "other", lock)

    monkeypatch.setattr(build_locks.time, "sleep", others_turn)
    remove_stale_build_locks()
    assert lock.exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_another_machine_may_hold_is_named_and_left(lock, monkeypatch, capsys, rank):
    monkeypatch.setattr(build_locks, "_is_shared", lambda path: True)
    monkeypatch.setenv("LOCAL_RANK", str(rank))
    lock.touch()
    remove_stale_build_locks()
    assert lock.exists()
    said = capsys.readouterr().err
    assert said == (
        "" if rank else f"{lock}: nobody on this machine builds; remove it if no other machine does\n"
    )


def test_which_file_systems_other_machines_see(lock, tmp_path, monkeypatch):
    device = lock.parent.stat().st_dev
    (tmp_path / "self").mkdir()
    monkeypatch.setattr(build_locks, "PROCESSES", tmp_path)
    for kind, is_shared in (("ext4", False), ("nfs4", True), ("fuse.sshfs", True), ("overlay", False)):
        line = f"22 27 {os.major(device)}:{os.minor(device)} / / rw,relatime shared:1 - {kind} source rw\n"
        (tmp_path / "self/mountinfo").write_text("21 27 0:999 / /proc rw - nfs proc rw\n" + line)
        assert build_locks._is_shared(lock.parent) == is_shared


@pytest.mark.parametrize("kind", [PretrainArguments, SFTArguments, DPOArguments])
def test_every_recipe_looks_before_the_ranks_meet(kind, lock, tmp_path, monkeypatch):
    """TrainingArguments sets up the ranks, and DeepSpeed with them."""
    lock.touch()
    module = sys.modules[kind.__module__]

    def looked(deepspeed):
        raise InterruptedError

    monkeypatch.setattr(module, "remove_stale_build_locks", looked)
    with pytest.raises(InterruptedError):
        kind(output_dir=str(tmp_path / "run"), use_cpu=True)

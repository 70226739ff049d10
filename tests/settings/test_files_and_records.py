"""Whole files or none; a run record without secrets."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass

import pytest

from modeling_foundry.files import read_lines, settle, sha256_of_file, write_atomically
from modeling_foundry.run_record import git_commit, plain_settings, write_run_record


def test_write_is_whole_or_absent(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    write_atomically(path, "first")
    write_atomically(path, b"second")
    assert path.read_text() == "second"
    assert os.listdir(path.parent) == ["file.txt"]


def test_a_write_that_fails_keeps_the_old_content(tmp_path):
    """A full disk, played by a file size limit in a child process."""
    path = tmp_path / "file.txt"
    path.write_text("old")
    code = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000));"
        "from modeling_foundry.files import write_atomically;"
        f"write_atomically({str(path)!r}, b'x' * 100_000)"
    )
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert child.returncode != 0
    assert "File too large" in child.stderr
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize(("mask", "file_mode", "folder_mode"), [
    (0o022, 0o644, 0o755), (0o002, 0o664, 0o775), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700),
])  # fmt: skip
def test_modes_are_the_umasks(tmp_path, mask, file_mode, folder_mode):
    """safetensors writes through a temporary file, which it leaves to its owner alone; mkdtemp does that too."""
    import torch
    from safetensors.torch import save_file

    folder = tmp_path / "made"
    before = os.umask(mask)
    try:
        folder.mkdir(mode=0o700)
        (folder / "part").mkdir(mode=0o700)
        save_file({"a": torch.ones(1)}, folder / "part" / "model.safetensors")
        os.symlink("/nowhere", folder / "link")
        (folder / "run.sh").touch(mode=0o600)
        assert settle(folder) == [folder / "part" / "model.safetensors", folder / "run.sh"]
        write_atomically(folder / "whole.json", "{}")
        assert os.umask(mask) == mask, "reading it has not changed it"
    finally:
        os.umask(before)
    files = ["part/model.safetensors", "run.sh", "whole.json"]
    assert {(folder / name).stat().st_mode & 0o777 for name in files} == {file_mode}
    assert {path.stat().st_mode & 0o777 for path in (folder, folder / "part")} == {folder_mode}


def test_a_folder_shared_by_its_group_stays_so(tmp_path):
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o2700)
    settle(folder)
    assert folder.stat().st_mode & 0o7000 == 0o2000


def test_the_umask_is_known_where_the_system_does_not_show_it(tmp_path, monkeypatch):
    from modeling_foundry import files

    class Absent:
        def __init__(self, *names):
            raise OSError

    wanted = files._umask()
    monkeypatch.setattr(files, "Path", Absent)
    assert files._umask() == wanted


def test_only_line_feeds_and_carriage_returns_end_a_line(tmp_path):
    (tmp_path / "lines").write_bytes("a\u2028b\u2029c\u0085\x0c\r\n\nlast".encode())
    assert read_lines(tmp_path / "lines") == ["a\u2028b\u2029c\u0085\x0c", "", "last"]
    (tmp_path / "empty").touch()
    assert read_lines(tmp_path / "empty") == []


def test_sha256(tmp_path):
    (tmp_path / "empty").write_bytes(b"")
    assert sha256_of_file(tmp_path / "empty").startswith("e3b0c44298fc1c14")


@dataclass
class Arguments:
    hub_token: str = "hf_canary"
    eos_token: str = "<|im_end|>"
    max_tokens: int = 7


def test_record_masks_secrets_and_keeps_settings(tmp_path):
    write_run_record(
        tmp_path, {"training": Arguments(), "extra": {"api_key": "canary"}}, inputs={"data": "abc"}
    )
    text = (tmp_path / "run.json").read_text()
    assert "canary" not in text
    record = json.loads(text)
    assert record["settings"]["training"] == {"hub_token": "***", "eos_token": "<|im_end|>", "max_tokens": 7}
    assert record["inputs"] == {"data": "abc"}
    assert record["versions"]["python"].startswith("3.")


def test_plain_settings_is_json_ready():
    from transformers import TrainingArguments

    plain = plain_settings(TrainingArguments("x", use_cpu=True, report_to="none"))
    assert json.loads(json.dumps(plain))["output_dir"] == "x"


def test_commit_outside_git_is_none(tmp_path):
    assert git_commit(tmp_path) is None


@pytest.mark.parametrize("dirty", [False, True])
def test_commit_says_when_files_differ(tmp_path, dirty):
    def git(*words):
        identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True, capture_output=True)

    git("init")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-m", "a")
    if dirty:
        (tmp_path / "a").write_text("2")
    commit = git_commit(tmp_path)
    assert len(commit.removesuffix("-dirty")) == 40
    assert commit.endswith("-dirty") is dirty


def test_a_credential_on_the_command_line_is_not_recorded(tmp_path, monkeypatch):
    words = ["recipes/pretrain.py", "--hub_token=hf_canary", "--hub_token", "hf_canary", "--max_steps", "4"]
    monkeypatch.setattr(sys, "argv", [*words, "--include_num_input_tokens_seen=all"])
    record = json.loads(write_run_record(tmp_path, {}).read_text())
    assert record["command"] == [
        "pretrain.py", "--hub_token=***", "--hub_token", "***", "--max_steps", "4",
        "--include_num_input_tokens_seen=all",
    ]  # fmt: skip


HUB_TOKEN, LOGIN = "hf_canary0123456789abcdefghijklmnop", "canary0123456789abcdef"
ADDRESS = f"https://me:{LOGIN}@host.example/repo?write_token={LOGIN}&name=a"


def test_a_credential_inside_a_value_is_not_recorded(tmp_path, monkeypatch):
    """A login inside a URL, a token of the environment under a harmless key: settings and command line alike."""
    monkeypatch.setenv("WANDB_API_KEY", LOGIN)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", f"--project={HUB_TOKEN}", "--trackio_space_id", ADDRESS])
    settings = {"training": {"project": HUB_TOKEN, "space": ADDRESS, "names": [f"run of {LOGIN}"]}}
    text = write_run_record(tmp_path, settings).read_text()
    assert "canary" not in text
    record = json.loads(text)
    assert record["settings"]["training"] == {
        "project": "***", "space": "https://***@host.example/repo?write_token=***&name=a", "names": ["run of ***"]
    }  # fmt: skip
    monkeypatch.delenv("WANDB_API_KEY")
    assert "canary" not in write_run_record(tmp_path, {"space": ADDRESS, "project": HUB_TOKEN}).read_text()


@pytest.mark.parametrize(
    "words", ["https://host.example/a@b?tokens=3", "hf_hub/tiny", "runs/a?b", "me@host:data", "key=value&a=b"]
)
def test_what_is_no_credential_is_recorded_as_it_is(words):
    assert plain_settings({"where": words}) == {"where": words}

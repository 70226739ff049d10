"""A rank ends when its launcher dies without a word, and a run without a launcher does not end with its shell."""

import os
import signal
import subprocess
import sys
import time

import pytest

from modeling_foundry import launcher as launcher_module
from modeling_foundry.launcher import is_adopted, is_launched
from tests.waits import process_lives, wait_for

# Starts the rank below, says its process id, and lives on until it is killed.
LAUNCHER = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdout=subprocess.PIPE, text=True)
print(child.pid, child.stdout.readline(), flush=True)
time.sleep(10_000)
"""
RANK = """
import signal, sys, time
from modeling_foundry import settings
def main():
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("SIGTERM"))
    print("training", flush=True)
    time.sleep(10_000)
settings.run(main)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGUSR2])
@pytest.mark.parametrize("is_under_launcher", [True, False])
def test_a_rank_does_not_outlive_its_launcher(number, is_under_launcher):
    environment = {key: value for key, value in os.environ.items() if not key.startswith("TORCHELASTIC")}
    if is_under_launcher:
        environment["TORCHELASTIC_RUN_ID"] = "none"
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, RANK], stdout=subprocess.PIPE, text=True, env=environment
    )
    rank = int(launcher.stdout.readline().split()[0])
    try:
        launcher.send_signal(number)
        launcher.wait()
        if is_under_launcher:
            wait_for(lambda: not process_lives(rank))
        else:
            time.sleep(2)
            assert process_lives(rank)
    finally:
        if process_lives(rank):
            os.kill(rank, signal.SIGKILL)


def test_who_is_a_launcher():
    mine = os.getpid()
    assert is_launched(mine, {"TORCHELASTIC_RUN_ID": "none"})
    assert not is_launched(mine, {})
    assert not is_launched(2**22 + 1, {"ACCELERATE_MIXED_PRECISION": "no"}), "a dead one has no name"
    launcher = subprocess.Popen(
        [sys.executable, "-c", "input()", "accelerate", "launch"], stdin=subprocess.PIPE
    )
    try:
        wait_for(lambda: is_launched(launcher.pid, {"ACCELERATE_MIXED_PRECISION": "no"}), launcher)
        assert not is_launched(launcher.pid, {}), "a shell script of that name"
    finally:
        launcher.kill()
        launcher.wait()


@pytest.mark.parametrize(
    ("parent", "command", "adopted"),
    [
        (1, "/sbin/init", True),
        (77, "/usr/lib/systemd/systemd\0--user", True),
        (1, "python\0/opt/bin/torchrun\0-m\0recipes.pretrain", False),  # a container's first process
        (1, "python\0start.py\0recipes/pretrain.py", False),
        (77, "bash\0wrapper.sh", False),
    ],
)
def test_a_rank_whose_launcher_died_before_it_looked_is_adopted(parent, command, adopted, monkeypatch):
    monkeypatch.setattr(launcher_module, "_command_line", lambda pid: command)
    monkeypatch.setattr(sys, "argv", ["recipes/pretrain.py"])
    assert is_adopted(parent) == adopted


def test_a_rank_that_comes_too_late_ends_at_once(tmp_path):
    """Its launcher ends before the rank has loaded our code."""
    script = tmp_path / "rank.py"
    begin = tmp_path / "begin"
    script.write_text(f"import os, time\nwhile not os.path.exists({str(begin)!r}): time.sleep(0.01)\n{RANK}")
    launcher = (
        "import subprocess, sys\n"
        "print(subprocess.Popen([sys.executable, sys.argv[1]], stdout=subprocess.DEVNULL).pid)"
    )
    answer = subprocess.run(
        [sys.executable, "-c", launcher, str(script)], stdout=subprocess.PIPE, text=True,
        env={**os.environ, "TORCHELASTIC_RUN_ID": "none"},
    )  # fmt: skip
    rank = int(answer.stdout)
    assert process_lives(rank)
    begin.touch()
    try:
        wait_for(lambda: not process_lives(rank))
    finally:
        if process_lives(rank):
            os.kill(rank, signal.SIGKILL)

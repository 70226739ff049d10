"""Two starts in one folder: the second is refused, and the first one's death lets go."""

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from modeling_foundry.settings import FoundryError
from modeling_foundry.training.processes import run_lock
from modeling_foundry.training.processes.run_lock import folder_held
from modeling_foundry.training.run_folder import discard_run

HOLD = """
import sys, time
from types import SimpleNamespace
from modeling_foundry.training.processes.run_lock import folder_held
with folder_held(SimpleNamespace(output_dir=sys.argv[1], process_index=0)):
    print("held", flush=True)
    time.sleep(100)
"""


def arguments(folder, rank=0):
    return SimpleNamespace(output_dir=str(folder), process_index=rank)


def test_a_second_start_is_refused_until_the_first_has_died(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "SECONDS_TO_WAIT", 0.3)
    run = tmp_path / "run"
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(run)], stdout=subprocess.PIPE, text=True)
    try:
        assert first.stdout.readline() == "held\n"
        (run / "checkpoint-8").mkdir()  # what it is writing
        with (
            pytest.raises(FoundryError, match=f"is in use by pid {first.pid} on "),
            folder_held(arguments(run)),
        ):
            pytest.fail("two hold it")
        with folder_held(arguments(run, rank=1)):
            pass  # the other ranks of a run go where rank 0 goes
    finally:
        first.kill()
        first.wait()
    with folder_held(arguments(run)):
        (run / "run.json").write_text("{}")
        discard_run(run)
        assert [path.name for path in run.iterdir()] == ["run.lock"], "a folder is replaced under the lock"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").touch()
    with (
        pytest.raises(FoundryError, match="output_dir: .*cannot be written to"),
        folder_held(arguments(tmp_path / "file/run")),
    ):
        pass


def test_a_run_that_is_just_ending_is_waited_for(tmp_path, capsys):
    """Its launcher was killed, it saves its step, and the same command comes at once."""
    first = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "held\n"
    ending = threading.Timer(1.0, first.kill)
    ending.start()
    with folder_held(arguments(tmp_path)):
        assert first.wait() == -9
    ending.join()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{tmp_path} is in use by pid {first.pid} on ")
    assert line.endswith("; waiting up to 60 s for its end")

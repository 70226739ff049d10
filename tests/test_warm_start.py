"""A warm process is one: its own folder, environment, output, signals and exit code, alone and under a launcher."""

import os
import signal
import subprocess
import sys

import pytest

from tests import warm_start
from tests.conftest import REPOSITORY
from tests.waits import wait_for

LAUNCH = [
    sys.executable, "-m", "accelerate.commands.launch", "--main_process_port=0",
    f"--config_file={REPOSITORY}/accelerate_configs/cpu_ddp.yaml",
]  # fmt: skip


@pytest.fixture
def script(tmp_path):
    def write(text):
        path = tmp_path / "script.py"
        path.write_text(text)
        return str(path)

    return write


def test_it_is_a_process_of_its_own(script, tmp_path):
    path = script(
        "import atexit, os, sys, neighbour\n"
        "atexit.register(print, 'at the end')\n"
        "print(os.getcwd(), os.environ['A'], 'B' in os.environ, sys.argv[1:], __name__, os.getpid())\n"
        "print('said', file=sys.stderr)\n"
        "sys.exit(75)\n"
    )
    (tmp_path / "neighbour.py").write_text("")
    (tmp_path / "here").mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "B"} | {"A": "1"}
    done = warm_start.run([sys.executable, path, "x", "y z"], cwd=tmp_path / "here", env=environment)
    assert done.returncode == 75
    first, last = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/here 1 False ['x', 'y z'] __main__ ")
    assert first.split()[-1] != str(os.getpid())
    assert (last, done.stderr) == ("at the end", "said\n")


@pytest.mark.parametrize(
    ("code", "returncode", "said"),
    [
        ("raise ValueError('so')", 1, "ValueError: so"),
        ("import sys; sys.exit('no')", 1, "no"),
        ("import os; os._exit(7)", 7, ""),
        ("import os; os.abort()", -6, ""),
        ("import multiprocessing as m; assert m.get_start_method(allow_none=True) is None", 0, ""),
        ("import sys; assert sys.argv == ['-c', 'w']", 0, ""),
    ],
)
def test_it_ends_as_any_other(code, returncode, said):
    done = warm_start.run([sys.executable, "-c", code, "w"])
    assert done.returncode == returncode, done.stderr
    assert (done.stderr.splitlines() or [""])[-1] == said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL, signal.SIGUSR2])
def test_a_signal_ends_it(number, script, tmp_path):
    path = script("import pathlib, sys, time; pathlib.Path(sys.argv[1]).touch(); time.sleep(10_000)")
    child = warm_start.Popen([sys.executable, path, str(tmp_path / "began")])
    wait_for((tmp_path / "began").exists, child)
    child.send_signal(number)
    assert child.wait() == -number


@pytest.mark.slow
def test_ranks_of_a_launcher_are_forks_of_it(script):
    """With torchrun's variables and their own exit codes, which the launcher names; it is the parent of each."""
    path = script(
        "import os, sys, torch.distributed as dist\n"
        "from accelerate import PartialState\n"
        "state = PartialState(cpu=True)\n"
        "dist.barrier()\n"
        "print(f'{os.getppid()} {os.environ[\"RANK\"]} {state.num_processes}\\n', end='', flush=True)\n"
        "dist.barrier()\n"
        "dist.destroy_process_group()\n"
        "os._exit(65 if state.process_index else 0)\n"
    )
    done = warm_start.run([*LAUNCH, path])
    rows = sorted(line.split() for line in done.stdout.splitlines())
    assert [row[1:] for row in rows] == [["0", "2"], ["1", "2"]], done.stderr
    assert rows[0][0] == rows[1][0]
    assert done.returncode == 1
    assert "exitcode  : 65" in done.stderr


def test_what_is_no_python_command_starts_cold(tmp_path):
    with warm_start.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:
        assert child.communicate("word") == ("word", None)
    assert warm_start.run([sys.executable, "--version"]).stdout.startswith("Python 3")

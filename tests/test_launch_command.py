"""``python -m modeling_foundry.launch`` says what the ranks said, once, and ends with their exit code."""

import re
import signal
import sys
from types import SimpleNamespace

import pytest
from torch.distributed import TCPStore
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from modeling_foundry import launch
from modeling_foundry.launcher import is_first_to_say
from tests import warm_start
from tests.conftest import REPOSITORY

RANK = "from modeling_foundry import settings\ndef main():\n    {}\nsettings.run(main)\n"
BAD_INPUT = "raise settings.FoundryError('model: not here')"


@pytest.fixture
def script(tmp_path):
    def write(line):
        path = tmp_path / "rank.py"
        path.write_text(RANK.format(line))
        return str(path)

    return write


CPU = ["--config_file", str(REPOSITORY / "accelerate_configs/cpu.yaml")]


def test_one_process_ends_with_its_code_and_no_traceback(script, capfd):
    assert launch.main([*CPU, script(BAD_INPUT)]) == 2
    assert capfd.readouterr().err == "error: model: not here\n"
    assert launch.main([*CPU, "--quiet", script("return 75")]) == 75
    assert launch.main([*CPU, script("return 0")]) == 0


def test_a_process_that_was_killed_is_named(script, capfd):
    assert launch.main([*CPU, script("import os; os.kill(os.getpid(), 9)")]) == 137
    assert capfd.readouterr().err == "error: launch: the process was ended by SIGKILL\n"


@pytest.mark.slow
def test_four_ranks_say_one_line(script):
    done = warm_start.run(
        [
            sys.executable, "-m", "modeling_foundry.launch", "--config_file",
            str(REPOSITORY / "accelerate_configs/cpu_ddp.yaml"), "--num_processes=4", "--main_process_port=0",
            script(BAD_INPUT),
        ],
        cwd=REPOSITORY,
    )  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "error: model: not here\n")


def test_the_first_rank_that_ended_says_how(monkeypatch, capsys):
    """The others are stopped for it, some before it by the clock of their own machine."""

    def fail(arguments):
        ends = {0: (3.0, -signal.SIGTERM), 1: (2.0, 69), 2: (1.0, -signal.SIGTERM), 3: (4.0, 2)}
        failures = {
            rank: SimpleNamespace(
                timestamp=when, exitcode=code, local_rank=rank, pid=1, error_file="", message="",
                signal_name=str, timestamp_isoformat=str,
            )
            for rank, (when, code) in ends.items()
        }  # fmt: skip
        raise ChildFailedError("rank.py", failures)

    monkeypatch.setattr("accelerate.commands.launch.launch_command", fail)
    assert launch.main([*CPU, "rank.py"]) == 69
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (None, "cannot read the configuration file .No such file"),
        ("foo: 1\ndistributed_type: 'NO'\ncompute_environment: LOCAL_MACHINE\n", "had unknown keys .*foo"),
        ("compute_environment: LOCAL_MACHINE\n", "A `distributed_type` must be specified"),
        ("[1, 2", "not valid YAML"),
        ("just text", "expected `key: value` lines"),
        ("compute_environment: LOCAL_MACHINE\ndistributed_type: FOO\n", "FOO"),
        ("", "an empty file"),
        ("num_processes: two\n", "num_processes: expected a whole number, found 'two'"),
        ("num_machines: '1'\n", "num_machines: expected a whole number, found '1'"),
        ("mixed_precision: no\n", "mixed_precision: expected 'no' .in quotes., bf16 or fp16, found False"),
        ("mixed_precision: fp8\n", "mixed_precision: expected 'no' .in quotes., bf16 or fp16, found 'fp8'"),
        ("distributed_type: MULTI_CPU\nnum_processes: 2\n", "distributed_type: MULTI_CPU starts one process"),
    ],
)
def test_a_wrong_accelerate_file_is_one_line(content, line, tmp_path, capsys):
    path = tmp_path / "accelerate.yaml"
    if content is not None:
        path.write_text(content)
    assert launch.main(["--config_file", str(path), "rank.py"]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.match(f"error: .*accelerate.yaml(:[0-9]+)?: .*{line}", said), said


def test_only_the_first_rank_says_what_all_found():
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {
        "TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port)
    }  # fmt: skip
    assert is_first_to_say("error: x", environment)
    assert not is_first_to_say("error: x", environment)
    assert is_first_to_say("error: rank 1: y", environment)
    assert is_first_to_say("error: x", {**environment, "TORCHELASTIC_RESTART_COUNT": "1"})
    assert is_first_to_say("error: x", {})
    assert is_first_to_say("error: x", {**environment, "MASTER_PORT": "none"})

"""How ranks leave."""

import subprocess
import sys

import pytest

from tests.conftest import REPOSITORY

SCRIPT = """
import atexit, os, sys
import torch
from modeling_foundry.settings import FoundryError, run
from modeling_foundry.training.processes.ranks import leave_at_exit, wait_for_all_ranks

class Aborts:
    def __del__(self, abort=os.abort):
        abort()

left_to_the_end = Aborts()  # as a thread of a process group that wants Python's lock
atexit.register(lambda: print("group at the end:", torch.distributed.is_initialized()))

class End(FoundryError):
    exit_code = int(sys.argv[2])

def main():
    wait_for_all_ranks()
    if sys.argv[1]:
        torch.distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=0, world_size=1)
    wait_for_all_ranks()
    leave_at_exit()
    leave_at_exit()  # a rollback that is refused comes by twice
    print("group before:", torch.distributed.is_initialized())
    if End.exit_code:
        raise End("over")

run(main)
"""


@pytest.mark.slow
@pytest.mark.parametrize("code", [0, 65])
def test_an_orderly_end_keeps_its_code(code, tmp_path):
    """Threads of gloo that were left to Python's end aborted one run in some thirty: signal 6, not the run's code."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store"), str(code)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == code, done.stderr
    assert done.stdout.splitlines() == ["group before: True", "group at the end: False"]


@pytest.mark.slow
def test_a_process_alone_ends_as_any_other():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, "", "65"], capture_output=True, text=True, cwd=REPOSITORY
    )
    assert done.returncode == -6, "left to Python's own end, and its __del__ aborts"

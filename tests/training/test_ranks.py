"""How ranks leave."""

import subprocess
import sys

from tests.conftest import REPOSITORY

SCRIPT = """
import atexit, sys
import torch
from modeling_foundry.training.ranks import leave_at_exit, wait_for_all_ranks
atexit.register(lambda: print("group at the end:", torch.distributed.is_initialized()))
wait_for_all_ranks()
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
wait_for_all_ranks()
leave_at_exit()
leave_at_exit()  # a rollback that is refused comes by twice
print("group before:", torch.distributed.is_initialized())
sys.exit(65)
"""


def test_the_process_group_is_gone_before_python_is_taken_down(tmp_path):
    """A gloo thread that was left to the end aborted one run in some thirty: signal 6, not the run's own code."""
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "store")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY)
    assert done.returncode == 65, done.stderr
    assert done.stdout.splitlines() == ["group before: True", "group at the end: False"]
